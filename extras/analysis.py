"""What the paper measures of a model, apart from the table that every run prints.

    python extras/analysis.py pass-at-k --model DIR --task science --k 128
    python extras/analysis.py kl-to-base --model DIR --task science --base smollm2
    python extras/analysis.py published --model DIR --task tooluse
    python extras/analysis.py rescore runs/science --task science
    python extras/analysis.py equal-accuracy results/science.json results/science-sft.json

pass-at-k    pass@1, 2, 4, ..., K of answers sampled at temperature 1, top-p 0.95 (Fig. 5)
kl-to-base   KL(model || base) in nats a token, on the model's own sampled answers (Fig. 2)
published    greedy tool use, scored by our rule and by the one behind the published figures
rescore      the answers that a run stored, scored again by scoring.py as it is now: of a run's
             folder, its answers.jsonl or results/answers/NAME-seedN.jsonl.gz; needs no model

equal-accuracy   the drift at which the curves of results files first pass an accuracy on validation

`confidence_interval`, the 95 % interval over seeds, is what the tables of experiments.py show.
"""

import argparse
import gzip
import itertools
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of eval.py

import models
from config import REPORTS
from data import (
    CONTEXTS,
    TASKS,
    TEACHER_INSTRUCTIONS,
    check_context,
    encode_prompt,
    load_task,
    teacher_messages,
)
from eval import Answer, answers_of, config_of_run, evaluate, split, token_divergence
from sampling import sample_completions
from scoring import final_answer, format_table, score, score_published, summarise

# two-sided 95 % quantiles of Student's t for 2, 3, ... values: 1, 2, ... degrees of freedom
T_95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


# ---- sampled answers and pass@k ----


def sample_answers(
    model,
    tokenizer,
    examples,
    *,
    samples,
    temperature=1.0,
    top_p=0.95,
    max_new_tokens,
    seed=0,
    context="none",
    instruction="thinking",
    batch_size=32,
    description=None,
):
    """`samples` sampled answers to each example -> a list of lists of Answer, in the same order.

    Draws are a function of (seed, place of the example, sample): neither batch_size nor a larger
    `samples` changes an answer.
    """
    messages = [teacher_messages(example, context, instruction) for example in examples]
    prompts = [encode_prompt(tokenizer, turns) for turns in messages]
    stop, answers = models.stop_tokens(model, tokenizer), [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding
    rows = [(i, j) for i in by_length for j in range(samples)]
    batches = tqdm(split(rows, batch_size), desc=description, leave=False, disable=not description)
    for batch in batches:
        uniforms = [np.random.default_rng([seed, i, j]).random(max_new_tokens) for i, j in batch]
        some = [prompts[i] for i, _ in batch]
        rollout = sample_completions(
            model,
            some,
            max_new_tokens=max_new_tokens,
            uniforms_BT=torch.from_numpy(np.stack(uniforms)),
            temperature=temperature,
            top_p=top_p,
            **stop,
        )
        for (i, _), answer in zip(batch, answers_of(rollout, some, tokenizer), strict=True):
            answers[i].append(answer)
    return answers


def pass_at_k(n, correct, k):
    """Chance that at least one of k answers is right, from n answers of which `correct` are right.

    Unbiased: 1 - C(n - correct, k) / C(n, k) (Chen et al. 2021), written as a product of `correct`
    factors so that nothing overflows. Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass@{k} of {n} samples with {correct} right: k must be in 1..{n} "
            f"and the number of right ones in 0..{n}"
        )
    # (i - k) / i = C(i - 1, k) / C(i, k); with fewer than k wrong answers, i = k makes it 0
    return 1.0 - math.prod((i - k) / i for i in range(n - correct + 1, n + 1))


def evaluate_pass_at_k(model, tokenizer, examples, *, k, samples, **how_to_sample):
    """pass@1, 2, 4, ... and k, each a mean over the examples.

    Returns (summary dict, number of right answers to each example).
    """
    answers = sample_answers(model, tokenizer, examples, samples=samples, **how_to_sample)
    right = [
        sum(score(answer.text, example)["correct"] for answer in own)
        for own, example in zip(answers, examples, strict=True)
    ]
    ks = [2**i for i in range(k.bit_length())] + [k]
    shares = {
        f"pass@{j}": sum(pass_at_k(samples, count, j) for count in right) / len(right) for j in ks
    }
    return {"n": len(examples), "samples": samples} | shares, right


# ---- KL to the base ----


@torch.no_grad()
def kl_to_base(
    model,
    base_model,
    tokenizer,
    examples,
    *,
    batch_size=8,
    context="none",
    instruction="thinking",
    **how,
):
    """Mean over tokens of KL(model || base) on the model's own sampled answers, nats a token.

    Answers are sampled at temperature 1 and top-p 1; `how` is max_new_tokens, seed, description.
    Only the model's prompt has `context`, so that a teacher is compared with the base that sees the
    question alone.
    """
    seen = {"context": context, "instruction": instruction}
    how |= seen | {"samples": 1, "top_p": 1.0, "batch_size": batch_size}
    sampled = sample_answers(model, tokenizer, examples, **how)
    total, tokens = 0.0, 0
    for rows in split(list(zip(examples, sampled, strict=True)), batch_size):
        lengths_B1 = torch.tensor([[len(answer.ids)] for _, (answer,) in rows])
        ids = [torch.tensor(answer.ids) for _, (answer,) in rows]
        ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(model.device)
        mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B1).to(model.device)
        messages = [teacher_messages(example, **seen) for example, _ in rows]
        prompts = [encode_prompt(tokenizer, turns) for turns in messages]
        base_prompts = [encode_prompt(tokenizer, example.messages) for example, _ in rows]
        kl_BT, _, _ = token_divergence(
            model, prompts, base_model, base_prompts, (ids_BT, mask_BT), "reverse"
        )
        total, tokens = total + kl_BT[mask_BT].sum().item(), tokens + mask_BT.sum().item()
    return total / tokens


# ---- over seeds ----


def confidence_interval(values):
    """(mean, half width of its 95 % confidence interval) over seeds: t s / sqrt(n), Student's t.

    Raises ValueError unless there are 2 to 10 values.
    """
    n = len(values)
    if not 2 <= n <= len(T_95) + 1:
        raise ValueError(
            f"a confidence interval over {n} seeds: it needs 2 to {len(T_95) + 1} of them"
        )
    return statistics.mean(values), T_95[n - 2] * statistics.stdev(values) / math.sqrt(n)


def drift_at(run, accuracy):
    """Drift at which a run's validation curve first passes an accuracy, linear between validations.

    None if it never does. The curve starts at the base: drift 0, the preflight's student.
    """
    points = [(run["preflight"]["student"]["correct"], 0.0)]
    points += [(entry["correct"], entry["drift_from_base"]) for entry in run["curve"]]
    for (low, start), (high, end) in itertools.pairwise(points):
        if low < accuracy <= high:
            return start + (end - start) * (accuracy - low) / (high - low)
    return None


def equal_accuracy(files, levels=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8)):
    """Lines of a markdown table: mean (lowest to highest) drift over seeds at each accuracy."""
    records = {Path(file).stem: json.loads(Path(file).read_text())["runs"] for file in files}
    yield "| accuracy on validation | " + " | ".join(records) + " |"
    yield "|---" * (1 + len(records)) + "|"
    for level in levels:
        cells = [f"{level:.0%}"]
        for runs in records.values():
            found = [drift for run in runs if (drift := drift_at(run, level)) is not None]
            span = f"{min(found):.3f} to {max(found):.3f}" if found else ""
            passed = f"{len(found)} of {len(runs)} seeds"
            cells.append(f"{statistics.mean(found):.3f} ({span}; {passed})" if found else "never")
        yield f"| {' | '.join(cells)} |"


# ---- stored answers, scored again ----


def rescore(file, task, folder=None):
    """[(label, summary)] of stored answers to a task, by the scorer as it is now.

    file is answers.jsonl, also compressed, or the folder of a run that has it. A set is called
    "NAME" or, with several tasks in one file, "TASK, NAME". Raises ValueError for an answer to a
    question that the data lack.
    """
    stored, prefix, rows = read_stored(file), f"{task}, ", []
    splits = {split: split for split in ("train", "validation", "test", "ood")}
    splits |= REPORTS.get(task, {})
    several = any(name.startswith(prefix) for _, name in stored)
    for (when, name), texts in stored.items():
        if name.startswith(prefix) if several else ", " not in name:
            split = splits.get(name.removeprefix(prefix))
            if split is None:
                raise ValueError(f'{file}: set "{name}" is not of task {task}')
            known = {example.id: example for example in load_task(task, split, folder)}
            if unknown := texts.keys() - known.keys():
                raise ValueError(
                    f'{file}: id "{min(unknown)}" is not in the {split} questions of {task}; '
                    "give the --task and --data of the run"
                )
            summary = summarise(
                [Answer(text, [], False, score(text, known[id])) for id, text in texts.items()]
            )
            # these two need the token ids, which are not stored
            del summary["finished"], summary["completion_tokens"]
            rows.append((f"{name}, {when}", summary))
    if not rows:
        raise ValueError(f"{file} has no answers to questions of {task}")
    return rows


def read_stored(file):
    """{(when, set): {id: text}}; of equal ones the last, as a resumed run may repeat some."""
    file = file / "answers.jsonl" if file.is_dir() else file
    stored = {}
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                stored.setdefault((line["when"], line["set"]), {})[line["id"]] = line["text"]
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as the answers of a run ({error!r})") from None
    if not stored:
        raise ValueError(f"{file} has no answer in it")
    return stored


# ---- the command ----


def measure_pass_at_k(model, tokenizer, examples, args, **how):
    samples, how = args.samples or args.k, how | {"temperature": args.temperature}
    summary, right = evaluate_pass_at_k(
        model, tokenizer, examples, k=args.k, samples=samples, seed=args.seed, **how
    )
    sampled = f"temperature {args.temperature:g}, top-p 0.95"
    print(f"{samples} answers to each of {summary['n']} questions, {sampled}")
    for name, share in summary.items():
        if name.startswith("pass@"):
            print(f"{name:>9}  {share:.1%}")
    rows = [
        {"id": example.id, "right": count} for example, count in zip(examples, right, strict=True)
    ]
    return {"summary": summary, "right": rows}


def measure_kl_to_base(model, tokenizer, examples, args, **how):
    base_model, _ = models.load_model(args.base, model.device, args.dtype)
    kl = kl_to_base(model, base_model, tokenizer, examples, seed=args.seed, **how)
    print(f"KL(model || {args.base}) on the model's own sampled answers: {kl:.3f} nats a token")
    return {"summary": {"n": len(examples), "kl_to_base": kl}}


def measure_published(model, tokenizer, examples, args, **how):
    summary, answers = evaluate(model, tokenizer, examples, **how)
    rows = [
        {
            "id": example.id,
            "answer": answer.text,
            "published": score_published(final_answer(answer.text), example.calls),
        }
        for example, answer in zip(examples, answers, strict=True)
    ]
    summary["published"] = sum(row["published"] for row in rows) / len(rows)
    print(
        f"right by our rule {summary['correct']:.1%}, by the published {summary['published']:.1%}"
    )
    return {"summary": summary, "answers": rows}


MEASURES = {
    "pass-at-k": measure_pass_at_k,
    "kl-to-base": measure_kl_to_base,
    "published": measure_published,
}


def parse_arguments(argv):
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--model", required=True, help="folder, hub id, or smollm2")
    add("--task", required=True, choices=[task for task in TASKS if task != "general"])
    add("--split", default="test", help="file of the data set (default: %(default)s)")
    add("--data", help="folder with our JSONL files (default: our own samples)")
    add(
        "--context",
        default="none",
        choices=CONTEXTS,
        help="what the prompt has beside the question",
    )
    add("--instruction", choices=list(TEACHER_INSTRUCTIONS), help="end of a teacher's prompt")
    add("--limit", type=int, help="only the first N examples")
    add("--max-new-tokens", type=int, help="default: that of the run that left the model, else 64")
    add("--dtype", choices=["float32", "bfloat16"], help="default: that of its run, else float32")
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    add("--json", type=Path, help="also write the figures to this file")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    measures = parser.add_subparsers(dest="measure", required=True)
    parsers = {name: measures.add_parser(name, parents=[shared]) for name in MEASURES}
    add = parsers["pass-at-k"].add_argument
    add("--k", type=int, required=True, help="largest k")
    add("--samples", type=int, help="answers to each question, at least K; more are less noisy")
    add("--temperature", type=float, default=1.0, help="default: %(default)s")
    parsers["kl-to-base"].add_argument("--base", required=True, help="folder, hub id, or smollm2")
    for name in ("pass-at-k", "kl-to-base"):
        parsers[name].add_argument("--seed", type=int, default=0, help="of the sampled answers")
    add = measures.add_parser("rescore").add_argument
    add("answers", type=Path, metavar="FILE_OR_RUN", help="a run, or its stored answers")
    add("--task", required=True, choices=[task for task in TASKS if task != "general"])
    add("--data", help="folder with our JSONL files (default: our own samples)")
    measures.add_parser("equal-accuracy").add_argument("files", nargs="+", metavar="RESULTS")
    args = parser.parse_args(argv)
    if args.measure in ("rescore", "equal-accuracy"):
        return args
    for name in ("limit", "batch_size", "max_new_tokens", "k"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    if args.measure == "pass-at-k" and args.samples is not None and args.samples < args.k:
        parser.error(f"--samples {args.samples} is below --k {args.k}; give at least as many")
    if args.measure == "pass-at-k" and not args.temperature > 0:
        parser.error(f"--temperature {args.temperature}: it must be above 0")
    if args.measure == "published" and args.task != "tooluse":
        parser.error(f"published scores tool use alone; --task is {args.task}")
    run = config_of_run(args.model)
    args.max_new_tokens = args.max_new_tokens or run.get("max_new_tokens", 64)
    args.dtype = args.dtype or run.get("dtype", "float32")
    args.instruction = args.instruction or run.get("teacher_instruction", "thinking")
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    try:
        if args.measure == "equal-accuracy":
            print("\n".join(equal_accuracy(args.files)))
            return
        if args.measure == "rescore":
            print(format_table(rescore(args.answers, args.task, args.data)))
            return
        examples = load_task(args.task, args.split, args.data)[: args.limit]
        for example in examples:
            check_context(example, args.context)
        model, tokenizer = models.load_model(args.model, models.best_device(), args.dtype)
        measured = MEASURES[args.measure](
            model,
            tokenizer,
            examples,
            args,
            context=args.context,
            instruction=args.instruction,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            description=args.measure,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    command = " ".join(["python", "extras/analysis.py", *argv])
    if args.json:
        record = {"command": command, "machine": models.describe_machine()} | measured
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        args.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
