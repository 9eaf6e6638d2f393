"""Judge stored answers, with the prompts of --judge of sdft.py, baselines.py and eval.py.

    python eval.py --model runs/knowledge/best --task knowledge --json answers.json
    python extras/judge.py answers.json --task knowledge --url http://127.0.0.1:8080/v1 --model NAME
    python extras/judge.py answers.json --task knowledge --local DIR

The judge is any OpenAI-compatible server, which sees questions, references and answers; the key is
read from OPENAI_API_KEY. With --local a model judges in this process, greedily, and nothing leaves
the machine. Replies are kept in --cache: an interrupted command continues, and a second one costs
nothing. A reply without a verdict is not asked for again, and is in the shares as unparsable, never
as right; --judge asks three times, and leaves such answers out of the shares.
"""

import json
from pathlib import Path

import journal

from data import load_task
from support.judge import PROBE, VERDICTS, judge_prompt, parse_verdict


def summarise(verdicts, task):
    """n, and the shares of correct (strict), lenient, incorrect and unparsable.

    Knowledge alone has lenient: CORRECT or PARTIALLY_CORRECT.
    """
    share = {word: verdicts.count(word) / len(verdicts) for word in VERDICTS[task] + [None]}
    summary = {"n": len(verdicts), "correct": share["CORRECT"]}
    if task == "knowledge":
        summary["lenient"] = share["CORRECT"] + share["PARTIALLY_CORRECT"]
    return summary | {"incorrect": share["INCORRECT"], "unparsable": share[None]}


def read_answers(file, examples):
    """[(example, answer)] from what `python eval.py --json FILE` wrote."""
    write = f"write it with: python eval.py --model DIR --task NAME --json {file}"
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["answers"]
        answers = [(record["id"], record["answer"]) for record in records]
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist; {write}") from None
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f'{file} has no "answers"; {write}') from None
    by_id = {example.id: example for example in examples}
    for id, _ in answers:
        if id not in by_id:
            raise ValueError(
                f'{file}: id "{id}" is no example of this --task, --split and --data; give '
                "those that eval.py had"
            )
    if not answers:
        raise ValueError(f"{file}: there is no answer in it")
    return [(by_id[id], answer) for id, answer in answers]


def main(argv=None):
    parser = journal.make_parser(__doc__)
    add = parser.add_argument
    add("answers", type=journal.path, help="file that eval.py --json wrote")
    add("--task", required=True, choices=VERDICTS)
    add("--split", default="test", help="as given to eval.py (default: %(default)s)")
    add("--data", type=journal.path, help="as given to eval.py")
    journal.add_model_flags(parser)
    cache = Path("runs/judge-cache.jsonl")
    add("--cache", type=journal.path, default=cache, help="(default: %(default)s)")
    add("--json", type=journal.path, help="also write summary, verdicts and replies to this file")
    args = parser.parse_args(argv)
    journal.check_model_flags(parser, args)
    journal.run_command(judge, args)


def judge(args):
    if args.json:
        journal.check_writable(args.json)
    pairs = read_answers(args.answers, load_task(args.task, args.split, args.data))
    prompts = [judge_prompt(args.task, example, answer) for example, answer in pairs]
    prompts = [judge_prompt(args.task, PROBE, PROBE.answer), *prompts]  # can it judge at all?
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    name, ask, workers = journal.chosen_model(args, max_new_tokens=16, temperature=0)
    probe, *replies = journal.ask_all(turns, f"{name} at temperature 0", ask, args.cache, workers)
    if parse_verdict(probe.text, args.task) != "CORRECT":
        said = probe.text[-60:]
        print(f"warning: asked about a right answer, the judge said {said!r}, not CORRECT")
    verdicts = [parse_verdict(reply.text, args.task) for reply in replies]
    summary = summarise(verdicts, args.task)
    shares = {name: share for name, share in summary.items() if name != "n"}
    print(f"{args.task} {args.split}, judged by {args.model or args.local}")
    names = ["strict" if name == "correct" else name for name in shares]
    print("     n" + "".join(f"{name:>12}" for name in names))
    print(f"{summary['n']:>6}" + "".join(f"{share:>12.1%}" for share in shares.values()))
    if args.json:
        rows = [
            {"id": example.id, "verdict": verdict, "reply": reply.text}
            for (example, _), verdict, reply in zip(pairs, verdicts, replies, strict=True)
        ]
        record = {"judge": args.model or args.local, "task": args.task, "split": args.split}
        record |= {"summary": summary, "verdicts": rows}
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        # half a surrogate pair becomes its escape
        args.json.write_text(text, encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    main()
