"""What the paper measures of a model, apart from the table that every run prints.

    python extras/analysis.py pass-at-k --model DIR --task science --k 128
    python extras/analysis.py kl-to-base --model DIR --task science --base smollm2
    python extras/analysis.py published --model DIR --task tooluse

pass-at-k    pass@1, 2, 4, ..., K of answers sampled at temperature 1, top-p 0.95 (Fig. 5)
kl-to-base   KL(model || base) in nats a token, on the model's own sampled answers (Fig. 2)
published    greedy tool use, scored by our rule and by the one behind the published figures

`confidence_interval`, the 95 % interval over seeds, is what the tables of experiments.py show.
"""

import argparse
import json
import math
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of eval.py

import models  # noqa: E402
from data import (  # noqa: E402
    CONTEXTS,
    TASKS,
    encode_prompt,
    load_task,
    opens_thoughts,
    teacher_messages,
)
from eval import Answer, config_of_run, evaluate  # noqa: E402
from kl_estimators import compare_completions  # noqa: E402
from sampling import completion_hidden, sample_completions  # noqa: E402
from scoring import final_answer, score  # noqa: E402

output_head = getattr(models, "output_head", lambda model: model.lm_head)

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
    batch_size=32,
    description=None,
):
    """`samples` sampled answers to each example -> a list of lists of Answer, in the same order.

    Draws are a function of (seed, place of the example, sample): neither batch_size nor a larger
    `samples` changes an answer.
    """
    prompts = [encode_prompt(tokenizer, teacher_messages(example, context)) for example in examples]
    stop, answers = models.stop_tokens(model, tokenizer), [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding
    rows = [(i, j) for i in by_length for j in range(samples)]
    batches = tqdm(split(rows, batch_size), desc=description, leave=False, disable=not description)
    for batch in batches:
        uniforms = [np.random.default_rng([seed, i, j]).random(max_new_tokens) for i, j in batch]
        rollout = sample_completions(
            model,
            [prompts[i] for i, _ in batch],
            max_new_tokens=max_new_tokens,
            uniforms_BT=torch.from_numpy(np.stack(uniforms)),
            temperature=temperature,
            top_p=top_p,
            **stop,
        )
        for row, (i, _) in enumerate(batch):
            answers[i].append(read_answer(tokenizer, prompts[i], rollout, row))
    return answers


def read_answer(tokenizer, prompt, rollout, row):
    """One row of a rollout as an Answer."""
    ids = rollout.completion_ids_BT[row][rollout.completion_mask_BT[row]].tolist()
    # the template wrote this <think>; without it, thoughts cut at the limit would look like answers
    opened = "<think>" if opens_thoughts(tokenizer, prompt) else ""
    text = opened + tokenizer.decode(ids, skip_special_tokens=True)
    return Answer(text, ids, bool(rollout.finished_B[row]))


def split(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


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
        for own, example in zip(answers, examples)
    ]
    ks = [2**i for i in range(k.bit_length())] + [k]
    shares = {
        f"pass@{j}": sum(pass_at_k(samples, count, j) for count in right) / len(right) for j in ks
    }
    return {"n": len(examples), "samples": samples} | shares, right


# ---- KL to the base ----


@torch.no_grad()
def kl_to_base(model, base_model, tokenizer, examples, *, batch_size=8, context="none", **how):
    """Mean over tokens of KL(model || base) on the model's own sampled answers, nats a token.

    Answers are sampled at temperature 1 and top-p 1; `how` is max_new_tokens, seed, description.
    Only the model's prompt has `context`, so that a teacher is compared with the base that sees the
    question alone.
    """
    how |= {"samples": 1, "top_p": 1.0, "context": context, "batch_size": batch_size}
    sampled = sample_answers(model, tokenizer, examples, **how)
    total, tokens = 0.0, 0
    for rows in split(list(zip(examples, sampled)), batch_size):
        lengths_B1 = torch.tensor([[len(answer.ids)] for _, (answer,) in rows])
        ids = [torch.tensor(answer.ids) for _, (answer,) in rows]
        ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(model.device)
        mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B1).to(model.device)
        messages = [teacher_messages(example, context) for example, _ in rows]
        prompts = [encode_prompt(tokenizer, own) for own in messages]
        base_prompts = [encode_prompt(tokenizer, example.messages) for example, _ in rows]
        kl_BT, _, _ = compare_completions(
            completion_hidden(model, prompts, ids_BT, mask_BT),
            output_head(model),
            completion_hidden(base_model, base_prompts, ids_BT, mask_BT),
            output_head(base_model),
            ids_BT,
            "reverse",
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


# ---- tool use as the published figures score it ----


def score_published(text, calls):
    """Whether a text is right by the rule of the authors' code; scoring.score_tooluse is ours.

    The multiset of names must be the golden one, and so must all arguments merged into one dict.
    The rule reads an input up to the first "}" and a name as one word: nested JSON and names with
    brackets fail even when right. It never sees which call an argument belongs to.
    """
    inputs = []
    for block in re.findall(r"Action Input:\s*(\{[^}]*\})", text):
        try:
            inputs.append(json.loads(block))
        except (ValueError, RecursionError):
            continue  # skipped: part of the rule
    names = Counter(re.findall(r"Action:\s*(\w+)", text))
    golden_names = Counter(call["name"] for call in calls)
    golden = merge(call["arguments"] for call in calls)
    return names == golden_names and merge(inputs) == golden


def merge(dicts):
    """One dict; a later value of a key hides an earlier one."""
    return {key: value for arguments in dicts for key, value in arguments.items()}


# ---- the command ----


def measure_pass_at_k(model, tokenizer, examples, args, **how):
    samples = args.samples or args.k
    summary, right = evaluate_pass_at_k(
        model, tokenizer, examples, k=args.k, samples=samples, seed=args.seed, **how
    )
    print(f"{samples} answers to each of {summary['n']} questions, temperature 1, top-p 0.95")
    for name, share in summary.items():
        if name.startswith("pass@"):
            print(f"{name:>9}  {share:.1%}")
    rows = [{"id": example.id, "right": count} for example, count in zip(examples, right)]
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
        for example, answer in zip(examples, answers)
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
    parsers["kl-to-base"].add_argument("--base", required=True, help="folder, hub id, or smollm2")
    for name in ("pass-at-k", "kl-to-base"):
        parsers[name].add_argument("--seed", type=int, default=0, help="of the sampled answers")
    args = parser.parse_args(argv)
    for name in ("limit", "batch_size", "max_new_tokens", "k"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    if args.measure == "pass-at-k" and args.samples is not None and args.samples < args.k:
        parser.error(f"--samples {args.samples} is below --k {args.k}; give at least as many")
    if args.measure == "published" and args.task != "tooluse":
        parser.error(f"published scores tool use alone; --task is {args.task}")
    run = config_of_run(args.model)
    args.max_new_tokens = args.max_new_tokens or run.get("max_new_tokens", 64)
    args.dtype = args.dtype or run.get("dtype", "float32")
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    try:
        examples = load_task(args.task, args.split, args.data)[: args.limit]
        for example in examples:
            teacher_messages(example, args.context)  # before the model loads: is every field there?
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = models.load_model(args.model, device, args.dtype)
        measured = MEASURES[args.measure](
            model,
            tokenizer,
            examples,
            args,
            context=args.context,
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
