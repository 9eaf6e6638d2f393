"""Greedy accuracy, pass@k, the preflight and drift.  python eval.py --model DIR --task NAME [--context demonstration]

    python eval.py --model DIR --task NAME --pass-at-k 128          pass@1, 2, 4, …, 128 from 128 sampled answers a question
    python eval.py --model DIR --task NAME --kl-to-base smollm2     also how far its own answers are from that model's

Needs torch, transformers and tqdm, and data.py, sampling.py, models.py, kl_estimators.py and scoring.py beside it.
"""

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import CONTEXTS, TASKS, encode_prompt, load_task, opens_thoughts, teacher_messages
from kl_estimators import compare_completions
from models import describe_machine, load_model, stop_tokens
from sampling import completion_hidden, sample_completions
from scoring import CHANCE, artefact_rate, final_answer, score


# ---- greedy accuracy ----

@dataclass
class Answer:
    """One answer, greedy or sampled."""
    text: str           # with its thoughts, also where the template wrote the <think> before them
    ids: list           # through the EOS, if there is one
    finished: bool


def answer_greedily(model, tokenizer, prompts, max_new_tokens, batch_size=32, description=None):
    """Greedy completions of a list of prompts (token ids) -> list of Answer in the same order."""
    stop = stop_tokens(model, tokenizer)
    answers = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # rows of similar length together: less padding
    for rows in tqdm(_split(by_length, 8 * batch_size), desc=description, leave=False, disable=description is None):
        rollout = sample_completions(model, [prompts[i] for i in rows], max_new_tokens=max_new_tokens, temperature=0, max_rows=batch_size, **stop)
        for row, i in enumerate(rows):
            answers[i] = _answer(tokenizer, prompts[i], rollout, row)
    return answers


def _answer(tokenizer, prompt, rollout, row):
    ids = rollout.completion_ids_BT[row][rollout.completion_mask_BT[row]].tolist()
    # without it, thoughts that the length limit cut off would look like an answer
    opened = "<think>" if opens_thoughts(tokenizer, prompt) else ""
    return Answer(opened + tokenizer.decode(ids, skip_special_tokens=True), ids, bool(rollout.finished_B[row]))


def evaluate(model, tokenizer, examples, *, context="none", max_new_tokens, batch_size=32, description=None):
    """Greedy accuracy -> (summary dict, list of Answer).

    summary: n; for each score ("correct", "lenient", "well_formed") its share; standard_error of "correct";
    finished: share that reached an EOS; completion_tokens: their mean number, thoughts included; artefacts: share that opens
    with words about what only a teacher sees (scoring.ARTEFACTS).
    """
    prompts = [encode_prompt(tokenizer, teacher_messages(example, context)) for example in examples]
    answers = answer_greedily(model, tokenizer, prompts, max_new_tokens, batch_size, description)
    scores = [score(answer.text, example) for answer, example in zip(answers, examples)]
    n = len(examples)
    summary = {"n": n} | {name: sum(s[name] for s in scores) / n for name in scores[0]}
    summary["standard_error"] = math.sqrt(summary["correct"] * (1 - summary["correct"]) / n)
    summary["finished"] = sum(answer.finished for answer in answers) / n
    summary["completion_tokens"] = sum(len(answer.ids) for answer in answers) / n
    summary["artefacts"] = artefact_rate([answer.text for answer in answers])
    return summary, answers


def format_table(rows, chance=None):
    """[(label, summary)] as lines of text; a summary may hold drift_from_base, and what it lacks is left blank."""
    columns = [name for name in ("correct", "lenient", "well_formed", "finished", "completion_tokens", "drift_from_base")
               if any(name in summary for _, summary in rows)]
    width = max(len(label) for label, _ in rows)
    lines = [f"{'':{width}}     n" + "".join(f"{name.replace('_', ' '):>18}" for name in columns)]
    for label, summary in rows:
        cells = []
        for name in columns:
            if name not in summary:
                cells.append("")
            elif name == "correct":
                cells.append(f"{summary[name]:.1%} ± {summary['standard_error']:.1%}")
            elif name == "completion_tokens":
                cells.append(f"{summary[name]:.1f}")
            elif name == "drift_from_base":
                cells.append(f"{summary[name]:.3f} nats")
            else:
                cells.append(f"{summary[name]:.1%}")
        lines.append(f"{label:{width}}  {summary['n']:>4}" + "".join(f"{cell:>18}" for cell in cells))
    if chance is not None:
        lines.append(f"chance, for a well-formed answer: {chance:.0%}; ± is one standard error")
    return "\n".join(lines)


# ---- pass@k ----

def pass_at_k(n, correct, k):
    """Chance that at least one of k answers is right, unbiased, from n sampled answers of which `correct` are right.

    1 - C(n - correct, k) / C(n, k), as a product of `correct` factors, so that nothing overflows (Chen et al. 2021).
    Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} of {n} samples with {correct} right: k must be in 1..{n} and the number of right ones in 0..{n}")
    # (i - k) / i is C(i - 1, k) / C(i, k); where fewer than k answers are wrong, i = k is among them and makes the product 0
    return 1.0 - math.prod((i - k) / i for i in range(n - correct + 1, n + 1))


def sample_answers(model, tokenizer, examples, *, samples, temperature=1.0, top_p=0.95, max_new_tokens, seed=0, context="none",
                   batch_size=32, description=None):
    """`samples` sampled answers to each example -> a list of lists of Answer, in the examples' order.

    Draws are a function of (seed, example's place, sample): neither batch_size nor a larger `samples` changes an answer.
    """
    prompts = [encode_prompt(tokenizer, teacher_messages(example, context)) for example in examples]
    stop, answers = stop_tokens(model, tokenizer), [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows = [(i, j) for i in by_length for j in range(samples)]
    for batch in tqdm(_split(rows, 8 * batch_size), desc=description, leave=False, disable=description is None):
        uniforms_BT = torch.from_numpy(np.stack([np.random.default_rng([seed, i, j]).random(max_new_tokens) for i, j in batch]))
        rollout = sample_completions(model, [prompts[i] for i, _ in batch], max_new_tokens=max_new_tokens, uniforms_BT=uniforms_BT,
                                     temperature=temperature, top_p=top_p, max_rows=batch_size, **stop)
        for row, (i, _) in enumerate(batch):
            answers[i].append(_answer(tokenizer, prompts[i], rollout, row))
    return answers


def evaluate_pass_at_k(model, tokenizer, examples, *, k, samples, **how_to_sample):
    """pass@1, 2, 4, … and k, each a mean over the examples -> (summary dict, number of right answers to each example)."""
    answers = sample_answers(model, tokenizer, examples, samples=samples, **how_to_sample)
    right = [sum(score(answer.text, example)["correct"] for answer in own) for own, example in zip(answers, examples)]
    ks = [2 ** i for i in range(k.bit_length())] + [k]
    shares = {f"pass@{j}": sum(pass_at_k(samples, count, j) for count in right) / len(right) for j in ks}
    return {"n": len(examples), "samples": samples} | shares, right


# ---- preflight: is there anything to learn? ----

@torch.no_grad()
def preflight(model, tokenizer, examples, context, max_new_tokens):
    """What the model can do alone and as its own teacher, before it is trained -> a dict.

    student, teacher           summaries of `evaluate`, without and with the teacher's context
    copied                     share of teacher answers that are the demonstration word for word
    kl_teacher_student         KL(teacher || student) in nats a token, on the teacher's answers: what there is to learn
    sampling_tokens_per_s, scoring_tokens_per_s    of new tokens, and of one forward pass: they price a step
    """
    started = time.perf_counter()
    student, answers = evaluate(model, tokenizer, examples, max_new_tokens=max_new_tokens, description="preflight: student")
    sampling_speed = sum(len(answer.ids) for answer in answers) / (time.perf_counter() - started)
    teacher, answers = evaluate(model, tokenizer, examples, context=context, max_new_tokens=max_new_tokens, description="preflight: teacher")
    copied = [final_answer(answer.text).split() == example.demonstration.split() for answer, example in zip(answers, examples)]

    kl, tokens, scored, started = 0.0, 0, 0, time.perf_counter()
    for example, answer in zip(examples, answers):
        ids_BT = torch.tensor([answer.ids], device=model.device)
        prompts = [encode_prompt(tokenizer, messages) for messages in (example.messages, teacher_messages(example, context))]
        student_hidden_BTD, teacher_hidden_BTD = (completion_hidden(model, [prompt], ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
                                                  for prompt in prompts)
        kl_BT, _, _ = compare_completions(student_hidden_BTD, model.lm_head, teacher_hidden_BTD, model.lm_head, ids_BT, "forward")
        kl, tokens = kl + kl_BT.sum().item(), tokens + len(answer.ids)
        scored += sum(len(prompt) + len(answer.ids) for prompt in prompts)
    return {"student": student, "teacher": teacher, "copied": sum(copied) / len(copied), "kl_teacher_student": kl / tokens,
            "sampling_tokens_per_s": sampling_speed, "scoring_tokens_per_s": scored / (time.perf_counter() - started)}


def teaches(figures):
    """Whether the teacher is better than the student: else SDFT has nothing to teach."""
    return figures["teacher"]["correct"] > figures["student"]["correct"]


def format_preflight(figures, context, lengths_report, estimate, enforced=True):
    """The preflight's figures and a verdict, as lines of text; not enforced: the method has no such teacher."""
    def scores(summary):
        return (f"{summary['correct']:.1%} right, " + (f"{summary['well_formed']:.1%} well formed, " if "well_formed" in summary else "")
                + f"{summary['finished']:.1%} ended")

    if not enforced:
        verdict = "none: this method needs no teacher that is better than the student"
    elif teaches(figures):
        verdict = "go: with its context the model can do what it cannot do alone"
    elif figures["teacher"]["finished"] < 0.5:
        verdict = ("no-go: the teacher is no better than the student, but most of its answers are cut at --max-new-tokens;\n"
                   "               raise that first")
    else:
        verdict = ("no-go: the teacher is no better than the student, so SDFT has nothing to teach here. Try a larger\n"
                   "               --model, another --teacher-context, or demonstrations in a form that this model would say anyway")
    return f"""preflight on {figures["student"]["n"]} validation examples
  student      {scores(figures["student"])}
  teacher      {scores(figures["teacher"])}; it sees {context} and repeats the demonstration word for word in {figures["copied"]:.1%}
  to learn     KL(teacher || student) = {figures["kl_teacher_student"]:.2f} nats a token on the teacher's answers
  prompts      {lengths_report}
  estimate     {estimate}
  verdict      {verdict}"""


# ---- where student and teacher disagree ----

@torch.no_grad()
def token_report(student, teacher, tokenizer, student_prompt, teacher_prompt, completion_ids, divergence, likeliest=3):
    """For each token of a completion its divergence in nats, and the likeliest tokens of student and teacher -> list of dict.

    One entry: {"token": "44", "kl": 1.9, "student": [["12", 0.3], …], "teacher": [["44", 0.9], …]}. extras/plot.py draws it.
    """
    ids_BT = torch.tensor([completion_ids], device=student.device)
    hidden_BTD, likely = {}, {}
    for role, model, prompt in (("student", student, student_prompt), ("teacher", teacher, teacher_prompt)):
        hidden_BTD[role] = completion_hidden(model, [prompt], ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
        top = model.lm_head(hidden_BTD[role])[0].float().softmax(-1).topk(likeliest)
        likely[role] = [[[tokenizer.decode([i]), round(p, 4)] for i, p in zip(ids, probs)]
                        for ids, probs in zip(top.indices.tolist(), top.values.tolist())]
    kl_BT, _, _ = compare_completions(hidden_BTD["student"], student.lm_head, hidden_BTD["teacher"], teacher.lm_head, ids_BT, divergence)
    return [{"token": tokenizer.decode([token]), "kl": round(kl, 4), "student": student_likely, "teacher": teacher_likely}
            for token, kl, student_likely, teacher_likely in zip(completion_ids, kl_BT[0].tolist(), likely["student"], likely["teacher"])]


# ---- forgetting: how far a model has moved on what it was never trained on ----

@dataclass
class BaseAnswers:
    """The base model's sampled answers to general prompts, with what is needed to know its distribution at each token."""
    prompts: list
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor
    hidden_BTD: torch.Tensor
    head: torch.nn.Module


@torch.no_grad()
def sample_base_answers(base_model, tokenizer, examples, max_new_tokens):
    """Answers of the base model to general prompts; the draws are fixed, so they are the same for every run and seed."""
    prompts = [encode_prompt(tokenizer, example.messages) for example in examples]
    uniforms_BT = torch.from_numpy(np.random.default_rng(0).random((len(prompts), max_new_tokens)))
    rollout = sample_completions(base_model, prompts, max_new_tokens=max_new_tokens, uniforms_BT=uniforms_BT,
                                 **stop_tokens(base_model, tokenizer))
    hidden_BTD = completion_hidden(base_model, prompts, rollout.completion_ids_BT, rollout.completion_mask_BT)
    # a copy of the head: with tied embeddings training changes it
    return BaseAnswers(prompts, rollout.completion_ids_BT, rollout.completion_mask_BT, hidden_BTD, copy.deepcopy(base_model.lm_head))


@torch.no_grad()
def drift_from_base(base_answers, model, batch_size=8):
    """Mean over tokens of KL(base || model) on the base model's own answers, nats a token; 0 for the base itself."""
    total = 0.0
    for rows in _split(list(range(len(base_answers.prompts))), batch_size):
        ids_BT, mask_BT = base_answers.completion_ids_BT[rows], base_answers.completion_mask_BT[rows]
        hidden_BTD = completion_hidden(model, [base_answers.prompts[i] for i in rows], ids_BT, mask_BT)
        kl_BT, _, _ = compare_completions(base_answers.hidden_BTD[rows], base_answers.head, hidden_BTD, model.lm_head, ids_BT, "reverse")
        total += kl_BT[mask_BT].sum().item()
    return total / base_answers.completion_mask_BT.sum().item()


@torch.no_grad()
def kl_to_base(model, base_model, tokenizer, examples, *, max_new_tokens, seed=0, context="none", batch_size=8):
    """Mean over tokens of KL(model || base) on the model's own sampled answers to the examples, nats a token (Fig. 2).

    Sampled at temperature 1 and top-p 1. The model's prompt has `context`, the base's never has: so a teacher is compared with
    the base that sees the question alone.
    """
    total, tokens = 0.0, 0
    sampled = sample_answers(model, tokenizer, examples, samples=1, top_p=1.0, max_new_tokens=max_new_tokens, seed=seed, context=context,
                             batch_size=batch_size)
    for rows in _split(list(zip(examples, sampled)), batch_size):
        ids = [torch.tensor(answer.ids, device=model.device) for _, (answer,) in rows]
        ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) < torch.tensor([[len(row)] for row in ids], device=ids_BT.device)
        prompts = [encode_prompt(tokenizer, teacher_messages(example, context)) for example, _ in rows]
        base_prompts = [encode_prompt(tokenizer, example.messages) for example, _ in rows]
        hidden_BTD = completion_hidden(model, prompts, ids_BT, mask_BT)
        base_hidden_BTD = completion_hidden(base_model, base_prompts, ids_BT, mask_BT)
        kl_BT, _, _ = compare_completions(hidden_BTD, model.lm_head, base_hidden_BTD, base_model.lm_head, ids_BT, "reverse")
        total, tokens = total + kl_BT[mask_BT].sum().item(), tokens + mask_BT.sum().item()
    return total / tokens


def _split(items, size):
    return [items[i:i + size] for i in range(0, len(items), size)]


# ---- python eval.py ----

def config_of_run(model):
    """The configuration of the run of sdft.py whose last/ or best/ a model's folder is; {} for any other model."""
    file = Path(model).parent / "before.json"
    try:
        return json.loads(file.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Greedy accuracy, or pass@k, of a model on a task.")
    parser.add_argument("--model", required=True, help="folder, hub id, or smollm2")
    parser.add_argument("--task", required=True, choices=[task for task in TASKS if task != "general"])
    parser.add_argument("--split", default="test", help="file of the data set: test, validation, train, ood (default: %(default)s)")
    parser.add_argument("--data", help="folder with our JSONL files (default: our own samples)")
    parser.add_argument("--context", default="none", choices=CONTEXTS, help="what stands in the prompt beside the question (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N examples")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: that of the run which left the model, else 64)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the model's arithmetic (default: that of its run, else float32)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path, help="also write summary and answers to this file")
    parser.add_argument("--pass-at-k", type=int, metavar="K",
                        help="instead of greedy accuracy: pass@1, 2, 4, …, K of answers sampled at temperature 1, top-p 0.95")
    parser.add_argument("--samples", type=int, help="answers a question for --pass-at-k; more than K make it less noisy (default: K)")
    parser.add_argument("--kl-to-base", metavar="BASE",
                        help="also KL(model || BASE) on the model's own sampled answers; BASE sees no context")
    parser.add_argument("--seed", type=int, help="of sampled answers (default: 0)")
    args = parser.parse_args(argv)
    if args.pass_at_k is not None and args.pass_at_k < 1:
        parser.error(f"--pass-at-k {args.pass_at_k}: it must be at least 1")
    if args.samples is not None and (args.pass_at_k is None or args.samples < args.pass_at_k):
        parser.error(f"--samples {args.samples} needs a --pass-at-k of at most as many")
    if args.seed is not None and args.pass_at_k is None and args.kl_to_base is None:
        parser.error(f"--seed {args.seed}: greedy answers have no seed; it is for --pass-at-k and --kl-to-base")
    for name in ("limit", "batch_size", "max_new_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be at least 1")
    samples, seed = args.samples or args.pass_at_k, args.seed or 0
    run = config_of_run(args.model)
    args.max_new_tokens, args.dtype = args.max_new_tokens or run.get("max_new_tokens", 64), args.dtype or run.get("dtype", "float32")
    try:
        examples = load_task(args.task, args.split, args.data)[:args.limit]
        for example in examples:
            teacher_messages(example, args.context)  # a field that the context needs is missing? say so before the model loads
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = load_model(args.model, device, args.dtype)
        base_model = load_model(args.kl_to_base, device, args.dtype)[0] if args.kl_to_base else None
    except ValueError as error:
        sys.exit(f"error: {error}")
    label = f"{args.task} {args.split}, context {args.context}, at most {args.max_new_tokens} tokens"
    if args.pass_at_k:
        summary, right = evaluate_pass_at_k(model, tokenizer, examples, k=args.pass_at_k, samples=samples, seed=seed, context=args.context,
                                            max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, description="sampling")
        print(f"{label}: {summary['n']} questions, {samples} answers each at temperature 1, top-p 0.95, seed {seed}")
        print("\n".join(f"{name:>9}  {share:.1%}" for name, share in summary.items() if name.startswith("pass@")))
        details = {"right": [{"id": example.id, "right": count} for example, count in zip(examples, right)]}
    else:
        summary, answers = evaluate(model, tokenizer, examples, context=args.context, max_new_tokens=args.max_new_tokens,
                                    batch_size=args.batch_size, description="answering")
        print(format_table([(label, summary)], CHANCE.get(args.task)))
        details = {"answers": [{"id": example.id, "answer": answer.text} for example, answer in zip(examples, answers)]}
    if base_model:
        summary["kl_to_base"] = kl_to_base(model, base_model, tokenizer, examples, max_new_tokens=args.max_new_tokens, seed=seed,
                                           context=args.context)
        print(f"KL(model || {args.kl_to_base}) on the model's own sampled answers: {summary['kl_to_base']:.3f} nats a token")
    if args.json:
        record = {"command": " ".join(["python", "eval.py"] + (argv or sys.argv[1:])), "summary": summary, "machine": describe_machine()} | details
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
