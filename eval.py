"""Scorers, greedy accuracy, the preflight and drift.  python eval.py --model DIR --task NAME [--context demonstration]

Needs torch, transformers and tqdm, and data.py, sampling.py, models.py and kl_estimators.py beside it.
"""

import argparse
import copy
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import CONTEXTS, TASKS, encode_prompt, load_task, teacher_messages
from kl_estimators import compare_completions
from models import load_model, stop_tokens
from sampling import completion_hidden, sample_completions


# ---- scorers: text -> a dict of booleans, "correct" among them ----

def science_letter(text):
    """The letter in the last <answer>…</answer>, else in the last "answer is X"; None where there is neither."""
    tagged = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    if tagged:
        letter = tagged[-1].strip()
        return letter if letter in ("A", "B", "C", "D") else None
    stated = re.findall(r"answer is:?\s+[*(\"']*([A-D])\b(?!')", text)
    return stated[-1] if stated else None


def score_science(text, answer):
    """correct: the letter is the gold one; well_formed: the text ends with a letter so stated, as the prompts ask."""
    letter = science_letter(text)
    at_the_end = re.search(r"(</answer>|answer is:?\s+[*(\"']*[A-D])[\s.*)\"']*$", text)
    return {"correct": letter == answer, "well_formed": letter is not None and at_the_end is not None}


def score_reference(text, key_facts):
    """correct (strict): every key fact occurs in one of its accepted variants; lenient: at least one does.

    Case is folded, white space normalised, and a variant counts at word boundaries only: 31 is not in 312.
    """
    text = _normalise(text)
    found = [any(re.search(r"(?<!\w)" + re.escape(_normalise(variant)) + r"(?!\w)", text) for variant in variants)
             for variants in key_facts]
    return {"correct": all(found), "lenient": any(found)}


def score(text, example):
    """The scorer of the example's task."""
    if example.task == "science":
        return score_science(text, example.answer)
    if example.task == "knowledge":
        return score_reference(text, example.key_facts)
    raise ValueError(f'task "{example.task}" has no scorer')


CHANCE = {"science": 0.25}


def _normalise(text):
    return " ".join(text.casefold().split())


# ---- greedy accuracy ----

@dataclass
class Answer:
    """One greedy answer."""
    text: str
    ids: list           # through the EOS, if there is one
    finished: bool


def answer_greedily(model, tokenizer, prompts, max_new_tokens, batch_size=32, description=None):
    """Greedy completions of a list of prompts (token ids) -> list of Answer in the same order."""
    stop = stop_tokens(model, tokenizer)
    answers = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # rows of similar length together: less padding
    for rows in tqdm(_split(by_length, batch_size), desc=description, leave=False, disable=description is None):
        rollout = sample_completions(model, [prompts[i] for i in rows], max_new_tokens=max_new_tokens, temperature=0, **stop)
        for row, i in enumerate(rows):
            ids = rollout.completion_ids_BT[row][rollout.completion_mask_BT[row]].tolist()
            answers[i] = Answer(tokenizer.decode(ids, skip_special_tokens=True), ids, bool(rollout.finished_B[row]))
    return answers


def evaluate(model, tokenizer, examples, *, context="none", max_new_tokens, batch_size=32, description=None):
    """Greedy accuracy -> (summary dict, list of Answer).

    summary: n; for each score ("correct", "lenient", "well_formed") its share; standard_error of "correct";
    finished: share that reached an EOS; completion_tokens: their mean number.
    """
    prompts = [encode_prompt(tokenizer, teacher_messages(example, context)) for example in examples]
    answers = answer_greedily(model, tokenizer, prompts, max_new_tokens, batch_size, description)
    scores = [score(answer.text, example) for answer, example in zip(answers, examples)]
    n = len(examples)
    summary = {"n": n} | {name: sum(s[name] for s in scores) / n for name in scores[0]}
    summary["standard_error"] = math.sqrt(summary["correct"] * (1 - summary["correct"]) / n)
    summary["finished"] = sum(answer.finished for answer in answers) / n
    summary["completion_tokens"] = sum(len(answer.ids) for answer in answers) / n
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
    copied = [answer.text.split() == example.demonstration.split() for answer, example in zip(answers, examples)]

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


def format_preflight(figures, context, lengths_report, estimate):
    """The preflight's figures and a verdict, as lines of text."""
    def scores(summary):
        return f"{summary['correct']:.1%} right" + (f", {summary['well_formed']:.1%} well formed" if "well_formed" in summary else "")

    if figures["teacher"]["correct"] > figures["student"]["correct"]:
        verdict = "go: with its context the model can do what it cannot do alone"
    else:
        verdict = ("WARNING: the teacher is no better than the student, so SDFT has nothing to teach here. Try a larger\n"
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


def _split(items, size):
    return [items[i:i + size] for i in range(0, len(items), size)]


# ---- python eval.py ----

def main(argv=None):
    parser = argparse.ArgumentParser(description="Greedy accuracy of a model on a task.")
    parser.add_argument("--model", required=True, help="folder, hub id, or smollm2")
    parser.add_argument("--task", required=True, choices=[task for task in TASKS if task != "general"])
    parser.add_argument("--split", default="test", help="file of the data set: test, validation, train, ood (default: %(default)s)")
    parser.add_argument("--data", help="folder with our JSONL files (default: our own samples)")
    parser.add_argument("--context", default="none", choices=CONTEXTS, help="what stands in the prompt beside the question (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N examples")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path, help="also write summary and answers to this file")
    args = parser.parse_args(argv)
    try:
        examples = load_task(args.task, args.split, args.data)[:args.limit]
        for example in examples:
            teacher_messages(example, args.context)  # a field that the context needs is missing? say so before the model loads
        model, tokenizer = load_model(args.model, "cuda" if torch.cuda.is_available() else "cpu")
    except ValueError as error:
        sys.exit(f"error: {error}")
    summary, answers = evaluate(model, tokenizer, examples, context=args.context, max_new_tokens=args.max_new_tokens,
                                batch_size=args.batch_size, description="answering")
    print(format_table([(f"{args.task} {args.split}, context {args.context}", summary)], CHANCE.get(args.task)))
    if args.json:
        record = {"command": " ".join(["python", "eval.py"] + (argv or sys.argv[1:])), "summary": summary,
                  "answers": [{"id": example.id, "answer": answer.text} for example, answer in zip(examples, answers)]}
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
