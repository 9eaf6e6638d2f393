"""Make demonstrations for a data set without them, as the paper did.

    python extras/demonstrate.py questions.jsonl train.jsonl --task science --model DIR
    OPENAI_API_KEY=... python extras/demonstrate.py questions.jsonl train.jsonl --task science \\
        --url https://api.openai.com/v1 --server-model gpt-4o

Of up to 8 sampled answers to a question, the first right one is kept. questions.jsonl is our format
(data.py) without `demonstration`; train.jsonl gets the same records with it. The model sees what a
student sees, and scoring.py decides what is right. The model is asked in rounds, one sample a
question, until a question has its demonstration. Questions that never get one are named and left
out, and an answer cut at --max-new-tokens is not kept.

--url takes any OpenAI-compatible server, which samples with its own defaults; its key is read from
the environment variable --key-env. Replies are kept in --cache: an interrupted run continues, and
new samples need another --cache.
"""

import json
import os
import re
from pathlib import Path

import journal

from data import TASKS, read_jsonl, teacher_messages
from scoring import score
from support.server import Server

# flags for --model alone, and for --url alone
LOCAL = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 256, "batch_size": 32, "seed": 0}
SERVER = {"concurrency": 4, "timeout": 600.0, "key_env": journal.KEY_ENV}
SERVER |= {"cache": Path("runs/demonstrate-cache.jsonl")}


def demonstrate(examples, sample, samples):
    """{id: the first right answer}.

    sample(examples, n), for n = 0 ... samples - 1, gives one answer to each, or None.
    """
    right = {}
    for n in range(samples):
        unanswered = [example for example in examples if example.id not in right]
        if not unanswered:
            break
        answers = sample(unanswered, n)
        right |= {
            example.id: answer
            for example, answer in zip(unanswered, answers, strict=True)
            if is_demonstration(answer, example)
        }
        print(
            f"sample {n + 1}: {len(right)} of {len(examples)} questions have a demonstration",
            flush=True,
        )
    return right


def is_demonstration(answer, example):
    """Whether an answer is right and can be read back.

    data.py refuses a NUL and half a surrogate pair, which a model may write.
    """
    return (
        answer is not None
        and score(answer, example)["correct"]
        and not re.search("[\0\ud800-\udfff]", answer)
    )


def local_sampler(name, context, samples, seed, **how):
    """sample(examples, n) for `demonstrate` with a model on this machine."""
    from analysis import sample_answers  # here: a server needs no model

    model, tokenizer = journal.load_to_sample(name)

    def sample(examples, n):
        # draws are a function of the seed and an example's place: each (seed, n) needs a seed
        again = {"seed": seed * samples + n, "description": f"sample {n + 1}", "context": context}
        answers = sample_answers(model, tokenizer, examples, samples=1, **again, **how)
        return [answer.text if answer.finished else None for [answer] in answers]

    return sample


def server_sampler(url, model, context, cache, **how):
    """sample(examples, n) for `demonstrate` with a model on a server."""
    server = Server(url, model, flags=("--server-model", "--timeout"), **how)

    def sample(examples, n):
        turns = [teacher_messages(example, context) for example in examples]
        # n is in the journal's key, so that each sample is asked for
        name = f"{url} {model}, sample {n}"
        replies = journal.ask_all(turns, name, server.ask, cache, how["concurrency"])
        return [None if reply.lacks else reply.text for reply in replies]

    return sample


def write_demonstrated(questions, output, examples, right):
    """Write the lines of `questions` that have a demonstration, with it, in their order."""
    text = questions.read_bytes().decode("utf-8-sig")
    lines = [line for line in text.split("\n") if line.strip()]  # as read_jsonl sees them
    with open(output, "x", encoding="utf-8") as file:
        for line, example in zip(lines, examples, strict=True):
            if example.id in right:
                record = json.loads(line) | {"demonstration": right[example.id]}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def parse_arguments(argv):
    """-> (args, the flags of LOCAL or SERVER with their values)"""
    parser = journal.make_parser(__doc__)
    add = parser.add_argument
    add("questions", type=journal.path, help="JSONL file in our format, without demonstrations")
    add("output", type=journal.path, help="file to write; an existing one is refused")
    tasks = [task for task, fields in TASKS.items() if "demonstration" in fields]
    add("--task", required=True, choices=tasks)
    where = parser.add_mutually_exclusive_group(required=True)
    local = "folder, hub id, or smollm2: sample on this machine"
    where.add_argument("--model", type=os.path.expanduser, help=local)
    where.add_argument("--url", help="address of an OpenAI-compatible server, up to /v1")
    add("--server-model", help="name of the model on the server; only with --url")
    add("--samples", type=int, default=8, help="at most so many a question (default: %(default)s)")
    context = "text: the model also sees the article (default: %(default)s)"
    add("--context", default="none", choices=["none", "text"], help=context)
    for owner, defaults in (("--model", LOCAL), ("--url", SERVER)):
        for name, default in defaults.items():
            kind = journal.path if isinstance(default, Path) else type(default)
            add(flag(name), type=kind, help=f"only with {owner} (default: {default})")
    args = parser.parse_args(argv)
    if (args.url is None) != (args.server_model is None):
        what = "a server, and the name of the model there"
        parser.error(f"--url and --server-model go together: {what}")
    defaults, others = (SERVER, LOCAL) if args.url else (LOCAL, SERVER)
    for name in others:
        if getattr(args, name) is not None:
            parser.error(f"{flag(name)} is only for {'--model' if args.url else '--url'}")
    given = {name: getattr(args, name) for name in defaults if getattr(args, name) is not None}
    how = defaults | given
    for name, value in {"samples": args.samples, **how}.items():
        if name not in ("cache", "seed", "key_env") and not value > 0:
            parser.error(f"{flag(name)} is {value}; it must be above 0")
    journal.check_key_env(parser, how.get("key_env", journal.KEY_ENV))
    return args, how


def flag(name):
    return "--" + name.replace("_", "-")


def read_questions(file, task, context):
    """Examples; ValueError, before anything is asked, for one that cannot get a demonstration."""
    examples = read_jsonl(file, task, needs_demonstration=False)
    for example in examples:
        if example.demonstration is not None:
            remedy = "take out this line, or the field"
            raise ValueError(f'{example.source}: field "demonstration" is there already; {remedy}')
        teacher_messages(example, context)  # is every field there that the context needs?
        score("", example)  # is there something to score by?
    return examples


def make_demonstrations(args, how):
    if args.output.exists():
        raise ValueError(f"{args.output} exists already; name another output, or move it away")
    journal.check_writable(args.output)
    examples = read_questions(args.questions, args.task, args.context)
    if args.url:
        sample = server_sampler(args.url, args.server_model, args.context, **how)
    else:
        sample = local_sampler(args.model, args.context, args.samples, **how)
    right = demonstrate(examples, sample, args.samples)
    if not right:
        what = "no question got a demonstration, and nothing was written"
        raise ValueError(f"{what}; try a larger model or more --samples")
    write_demonstrated(args.questions, args.output, examples, right)
    where = f"they are in {args.output}"
    print(f"{len(right)} of {len(examples)} questions have a demonstration; {where}")
    if left_out := [example.id for example in examples if example.id not in right]:
        print("left out, without a right answer: " + ", ".join(left_out))


def main(argv=None):
    args, how = parse_arguments(argv)
    journal.run_command(make_demonstrations, args, how, is_kept=args.url is not None)


if __name__ == "__main__":
    main()
