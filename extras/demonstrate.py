"""Make demonstrations for a data set without them, as the paper did.

    python extras/demonstrate.py questions.jsonl train.jsonl --task science --model DIR
    OPENAI_API_KEY=... python extras/demonstrate.py questions.jsonl train.jsonl --task science \\
        --url https://api.openai.com/v1 --server-model gpt-4o

Of up to 8 sampled answers to a question, the first right one is kept. questions.jsonl is our format
(data.py) without `demonstration`; train.jsonl gets the same records with it. The model sees what a
student sees, and scoring.py decides what is right. The model is asked in rounds, one sample a
question, until a question has its demonstration. Questions that never get one are named and left
out, and an answer cut at --max-new-tokens is not kept.

--url takes any OpenAI-compatible server, which samples with its own defaults. The key and the cache
are as in judge.py: an interrupted run resumes, and new samples need another --cache.
"""

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of data.py

from judge import ask_all, ask_server, load_to_sample

from data import TASKS, read_jsonl, teacher_messages
from scoring import score

# flags for --model alone, and for --url alone
LOCAL = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 256, "batch_size": 32, "seed": 0}
SERVER = {"workers": 4, "cache": Path("runs/demonstrate-cache.jsonl")}


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


def local_sampler(name, context, samples, *, temperature, top_p, max_new_tokens, batch_size, seed):
    """sample(examples, n) for `demonstrate` with a model on this machine."""
    from analysis import sample_answers  # here: a server needs no model

    model, tokenizer = load_to_sample(name)

    def sample(examples, n):
        # a seed of its own for each (seed, n): draws are a function of the seed and an example's
        # place
        answers = sample_answers(
            model,
            tokenizer,
            examples,
            samples=1,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed * samples + n,
            context=context,
            batch_size=batch_size,
            description=f"sample {n + 1}",
        )
        return [answer.text if answer.finished else None for [answer] in answers]

    return sample


def server_sampler(url, model, context, *, workers, cache):
    """sample(examples, n) for `demonstrate` with a model on a server.

    n is in the cache's key, so that each sample is asked for.
    """

    def sample(examples, n):
        return ask_all(
            [teacher_messages(example, context) for example in examples],
            f"{url} {model}, sample {n}",
            partial(ask_server, url, model),
            cache,
            workers,
        )

    return sample


def write_demonstrated(questions, output, examples, right):
    """Write the lines of `questions` that have a demonstration, with it, in their order."""
    text = questions.read_bytes().decode("utf-8-sig")
    lines = [line for line in text.split("\n") if line.strip()]  # as read_jsonl sees them
    with open(output, "x", encoding="utf-8") as file:
        for line, example in zip(lines, examples, strict=True):
            if example.id in right:
                file.write(
                    json.dumps(
                        json.loads(line) | {"demonstration": right[example.id]}, ensure_ascii=False
                    )
                    + "\n"
                )


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("questions", type=Path, help="JSONL file in our format, without demonstrations")
    add("output", type=Path, help="file to write; an existing one is refused")
    add(
        "--task",
        required=True,
        choices=[task for task, fields in TASKS.items() if "demonstration" in fields],
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", help="folder, hub id, or smollm2: sample on this machine")
    where.add_argument("--url", help="address of an OpenAI-compatible server, up to /v1")
    add("--server-model", help="name of the model on the server; only with --url")
    add("--samples", type=int, default=8, help="at most so many a question (default: %(default)s)")
    add(
        "--context",
        default="none",
        choices=["none", "text"],
        help="text: the model also sees the article (default: %(default)s)",
    )
    for flag, defaults in (("--model", LOCAL), ("--url", SERVER)):
        for name, default in defaults.items():
            add(
                "--" + name.replace("_", "-"),
                type=type(default),
                help=f"only with {flag} (default: {default})",
            )
    args = parser.parse_args(argv)
    if (args.url is None) != (args.server_model is None):
        parser.error(
            "--url and --server-model go together: a server, and the name of the model there"
        )
    for name in LOCAL if args.url else SERVER:
        if getattr(args, name) is not None:
            parser.error(
                f"--{name.replace('_', '-')} is only for {'--model' if args.url else '--url'}"
            )
    how = {
        name: default if getattr(args, name) is None else getattr(args, name)
        for name, default in (SERVER if args.url else LOCAL).items()
    }
    for name, value in [("samples", args.samples), *how.items()]:
        if name not in ("cache", "seed") and not value > 0:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    try:
        if args.output.exists():
            raise ValueError(f"{args.output} exists already; name another output, or move it away")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        examples = read_jsonl(args.questions, args.task, needs_demonstration=False)
        for example in examples:
            if example.demonstration is not None:
                raise ValueError(
                    f'{example.source}: field "demonstration" is there already; take out this '
                    "line, or the field"
                )
            # before the model loads: is every field there that the context needs?
            teacher_messages(example, args.context)
        sample = (
            server_sampler(args.url, args.server_model, args.context, **how)
            if args.url
            else local_sampler(args.model, args.context, args.samples, **how)
        )
        right = demonstrate(examples, sample, args.samples)
        if not right:
            raise ValueError(
                "no question got a demonstration, and nothing was written; try a larger model "
                "or more --samples"
            )
        write_demonstrated(args.questions, args.output, examples, right)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"{len(right)} of {len(examples)} questions have a demonstration; they are in {args.output}"
    )
    if len(right) < len(examples):
        print(
            "left out, without a right answer: "
            + ", ".join(example.id for example in examples if example.id not in right)
        )


if __name__ == "__main__":
    main()
