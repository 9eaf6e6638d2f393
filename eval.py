"""Greedy accuracy, drift, the preflight and the final table.

    python eval.py --model runs/science/last --task science
    python eval.py --model smollm2 --task science --split validation --context demonstration

Needs torch, transformers and tqdm, and data.py, sampling.py, models.py, kl_estimators.py and
scoring.py beside it.
"""

import argparse
import copy
import dataclasses
import json
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import models
import scoring
from kl_estimators import compare_completions
from models import output_head
from sampling import completion_hidden, sample_completions
from support.judge import choose_scorer

# ---- greedy accuracy ----


@dataclass
class Answer:
    """One answer, greedy or sampled."""

    text: str  # thoughts included, also if the template wrote the <think> before them
    ids: list  # through the EOS, if there is one
    finished: bool
    scores: dict | None = None  # {"correct": …}; a judge that failed gives {"not_judged": True}


def evaluate(
    model,
    tokenizer,
    examples,
    *,
    context="none",
    instruction="thinking",
    scorer=scoring.score_by_rule,
    **how,
):
    """Greedy accuracy -> (summary dict, list of Answer).

    scorer(examples, answers) is the rule or a judge (support/judge.py). summary: n; the share
    of each score ("correct", "lenient", "well_formed", "not_judged"); standard_error of "correct";
    finished, the share that reached an EOS; completion_tokens, their mean number; artefacts, the
    share that opens with words about what only a teacher sees. how are the max_new_tokens,
    batch_size and description of answer_greedily.
    """
    messages = [data.teacher_messages(example, context, instruction) for example in examples]
    prompts = [data.encode_prompt(tokenizer, turns) for turns in messages]
    answers = answer_greedily(model, tokenizer, prompts, **how)
    return score_answers(examples, answers, scorer), answers


def score_answers(examples, answers, scorer):
    """Keep the scores of each answer in it -> their summary."""
    for answer, scores in zip(answers, scorer(examples, answers), strict=True):
        answer.scores = scores
    return scoring.summarise(answers)


def answer_greedily(model, tokenizer, prompts, max_new_tokens, batch_size=32, description=None):
    """Greedy completions of prompts (lists of token ids) -> list of Answer, in the same order."""
    stop, answers = models.stop_tokens(model, tokenizer), [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding
    quiet = description is None
    for rows in tqdm(split(by_length, batch_size), desc=description, leave=False, disable=quiet):
        some = [prompts[i] for i in rows]
        rollout = sample_completions(
            model, some, max_new_tokens=max_new_tokens, temperature=0, **stop
        )
        for i, answer in zip(rows, answers_of(rollout, some, tokenizer), strict=True):
            answers[i] = answer
    return answers


def answers_of(rollout, prompts, tokenizer):
    """The completions of a rollout as a list of Answer."""
    answers = []
    for row, prompt in enumerate(prompts):
        ids = rollout.completion_ids_BT[row][rollout.completion_mask_BT[row]].tolist()
        # or thoughts that the length limit cut off would look like an answer
        opened = "<think>" if data.opens_thoughts(tokenizer, prompt) else ""
        text = opened + tokenizer.decode(ids, skip_special_tokens=True)
        answers.append(Answer(text, ids, bool(rollout.finished_B[row])))
    return answers


def split(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


# ---- where two models, or one model with two prompts, disagree ----


def token_divergence(student, student_prompts, teacher, teacher_prompts, completions, divergence):
    """compare_completions on given completions (ids_BT, mask_BT) -> its three [B, T] tensors."""
    student_hidden_BTD = completion_hidden(student, student_prompts, *completions)
    teacher_hidden_BTD = completion_hidden(teacher, teacher_prompts, *completions)
    return compare_completions(
        student_hidden_BTD,
        output_head(student),
        teacher_hidden_BTD,
        output_head(teacher),
        completions[0],
        divergence,
    )


# ---- drift: how far a model has moved on what it was never trained on ----


@dataclass
class BaseAnswers:
    """The base model's sampled answers to general prompts, and its distribution at each token."""

    prompts: list
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor
    hidden_BTD: torch.Tensor
    head: torch.nn.Module


@torch.no_grad()
def sample_base_answers(base_model, tokenizer, examples, max_new_tokens):
    """Answers of the base model to general prompts; the draws are the same for every run."""
    prompts = [data.encode_prompt(tokenizer, example.messages) for example in examples]
    shape = len(prompts), max_new_tokens
    rollout = sample_completions(
        base_model,
        prompts,
        max_new_tokens=max_new_tokens,
        uniforms_BT=torch.from_numpy(np.random.default_rng(0).random(shape)),
        **models.stop_tokens(base_model, tokenizer),
    )
    completions = rollout.completion_ids_BT, rollout.completion_mask_BT
    hidden_BTD = completion_hidden(base_model, prompts, *completions)
    # a copy of the head: with tied embeddings training changes it
    return BaseAnswers(prompts, *completions, hidden_BTD, copy.deepcopy(output_head(base_model)))


@torch.no_grad()
def drift_from_base(base, model, batch_size=8):
    """Mean over tokens of KL(base || model) on the base model's answers, in nats; 0 for itself."""
    total = 0.0
    for rows in split(list(range(len(base.prompts))), batch_size):
        ids_BT, mask_BT = base.completion_ids_BT[rows], base.completion_mask_BT[rows]
        hidden_BTD = completion_hidden(model, [base.prompts[i] for i in rows], ids_BT, mask_BT)
        base_hidden_BTD = base.hidden_BTD[rows]
        # forward: KL(teacher || student) with the base as the teacher
        kl_BT, _, _ = compare_completions(
            hidden_BTD, output_head(model), base_hidden_BTD, base.head, ids_BT, "forward"
        )
        total += kl_BT[mask_BT].sum().item()
    return total / base.completion_mask_BT.sum().item()


# ---- the preflight: do the prompts fit, and is there anything to learn? ----


def encode_pairs(tokenizer, examples, config):
    """The examples whose prompts fit the limits -> list of Pair; prints how many, and which do not.

    Nothing is ever cut: half a question is another question. ValueError if none fits, or if one
    does not and --too-long is stop.
    """
    limits = config.max_prompt_tokens, config.max_teacher_prompt_tokens
    fitting, too_long, longest = [], [], [0, 0]
    for example in examples:
        context = data.teacher_messages(example, config.teacher_context, config.teacher_instruction)
        turns = example.messages, context
        prompts = [data.encode_prompt(tokenizer, messages) for messages in turns]
        longest = [max(most, len(prompt)) for most, prompt in zip(longest, prompts, strict=True)]
        fits = len(prompts[0]) <= limits[0] and len(prompts[1]) <= limits[1]
        (fitting if fits else too_long).append(data.Pair(example.id, *prompts))
    report = (
        f"{len(fitting)} of {len(examples)} fit; longest student prompt {longest[0]} tokens "
        f"(limit {limits[0]}), longest teacher prompt {longest[1]} (limit {limits[1]})"
    )
    if too_long:
        some = ", ".join(pair.id for pair in too_long[:5]) + (" …" if len(too_long) > 5 else "")
        report += f"; left out: {some}"
    if not fitting or (too_long and config.too_long == "stop"):
        remedy = "Raise --max-prompt-tokens or --max-teacher-prompt-tokens, or shorten these"
        drop = ", or leave them out with --too-long drop" if fitting else ""
        raise ValueError(f"prompts: {report}\n{remedy}{drop}")
    print(f"prompts: {report}")
    return fitting


@torch.no_grad()
def preflight(model, tokenizer, examples, config, scorer=scoring.score_by_rule):
    """What the model can do alone and as its own teacher, before it is trained -> a dict.

    student, teacher     summaries of `evaluate`, without and with the teacher's context
    copied               share of teacher answers that are the demonstration word for word
    kl_teacher_student   KL(teacher || student) in nats a token, on the teacher's answers
    sampling_tokens_per_s, scoring_tokens_per_s   speeds, which price a step
    With --teacher-context none there is no such teacher, and only the student is evaluated.
    """
    length, started = {"max_new_tokens": config.answer_tokens}, time.perf_counter()
    prompts = [data.encode_prompt(tokenizer, example.messages) for example in examples]
    answers = answer_greedily(model, tokenizer, prompts, **length, description="preflight: student")
    seconds = time.perf_counter() - started  # a judge's time is not part of it
    figures = {"student": score_answers(examples, answers, scorer)}
    figures["sampling_tokens_per_s"] = sum(len(answer.ids) for answer in answers) / seconds
    context = {"context": config.teacher_context, "instruction": config.teacher_instruction}
    if config.teacher_context != "none":
        how = context | length | {"scorer": scorer, "description": "preflight: teacher"}
        figures["teacher"], answers = evaluate(model, tokenizer, examples, **how)
        copied = [
            scoring.final_answer(answer.text).split() == example.demonstration.split()
            for answer, example in zip(answers, examples, strict=True)
        ]
        figures["copied"] = sum(copied) / len(copied)

    kl, tokens, scored, started = 0.0, 0, 0, time.perf_counter()
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        ids_BT = torch.tensor([answer.ids], device=model.device)
        teacher_prompt = data.encode_prompt(tokenizer, data.teacher_messages(example, **context))
        completions = ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)
        kl_BT, _, _ = token_divergence(
            model, [prompt], model, [teacher_prompt], completions, "forward"
        )
        kl, tokens = kl + kl_BT.sum().item(), tokens + len(answer.ids)
        scored += len(prompt) + len(teacher_prompt) + 2 * len(answer.ids)
    figures["kl_teacher_student"] = kl / tokens
    figures["scoring_tokens_per_s"] = scored / (time.perf_counter() - started)
    return figures


def preflight_or_exit(run, must_teach=True):
    """Print the preflight, stop if there is nothing to teach, evaluate once -> before.json.

    must_teach is False for methods that do not learn from the model in its teacher's context.
    """
    config = run.config
    validation, scorer = run.splits.validation, run.splits.scorer
    figures = preflight(run.student, run.tokenizer, validation, config, scorer)
    no_teacher = True, "none: this method needs no such teacher"
    go, why = scoring.verdict(figures) if must_teach else no_teacher
    print(scoring.format_preflight(figures, config.teacher_context, why))
    print(f"  estimate     {scoring.estimate(figures, run.pairs, config, run.method)}")
    if not go and not config.force:
        sys.exit("nothing was trained; --force trains all the same")
    record = {
        "command": " ".join(run.command),
        "config": dataclasses.asdict(config),
        "preflight": figures,
        "before": report(run, run.splits.reports, "before"),
    }
    (run.folder / "before.json").write_text(json.dumps(record, indent=1) + "\n")


# ---- what a run logs and leaves ----


@contextmanager
def catch_signals():
    """Yield a list that the first Ctrl-C or SIGTERM fills; a second one stops at once."""
    interrupted, numbers = [], (signal.SIGINT, signal.SIGTERM)
    previous = [signal.getsignal(number) for number in numbers]

    def restore():
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)

    def note(number, _frame):
        interrupted.append(number)
        restore()
        print("\nstopping: this step is finished and saved first", flush=True)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield interrupted
    finally:
        restore()


def rollout_report(tokenizer, batch, rollout):
    """The first completion of a batch; extras/plot.py shows where the teacher disagrees."""
    pair, mask_T = batch.pairs[0], rollout.completion_mask_BT[0]
    ids = rollout.completion_ids_BT[0][mask_T].tolist()
    return {"id": pair.id, "completion": tokenizer.decode(ids), "completion_ids": ids}


def report(run, sets, when):
    """{name: summary} of the weights as they are, drift included; answers go to answers.jsonl."""
    drift, summaries = drift_from_base(run.base, run.student), {}
    how = {"scorer": run.splits.scorer, "max_new_tokens": run.config.answer_tokens}
    with open(run.folder / "answers.jsonl", "a", encoding="utf-8") as file:
        for name, examples in sets.items():
            how["description"] = f"{when}: {name}"
            summaries[name], answers = evaluate(run.student, run.tokenizer, examples, **how)
            summaries[name]["drift_from_base"] = drift
            for example, answer in zip(examples, answers, strict=True):
                line = {"when": when, "set": name, "id": example.id} | dataclasses.asdict(answer)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return summaries


def finish(run):
    """After the last step: the weights, what they and the best ones score, and the table."""
    models.save_model(run.folder / "last", run.student, run.tokenizer)
    record = json.loads((run.folder / "before.json").read_text())
    record |= {"config": dataclasses.asdict(run.config), "method": run.method}
    record["last"] = report(run, run.splits.reports, "last")
    if run.best is not None and run.best["step"] < run.steps:
        models.load_weights(run.student, run.folder / "best")
        record["best"] = report(run, run.splits.reports, "best")
    record["best_step"] = run.best and run.best["step"]
    record["parameters"] = sum(parameter.numel() for parameter in run.student.parameters())
    record["seconds"] = time.perf_counter() - run.started
    record["machine"] = models.describe_machine()
    (run.folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"\n{scoring.format_results(record)}\nweights: {run.folder}/last"
        + (f", {run.folder}/best" if run.best else "")
    )


# ---- python eval.py ----


def config_of_run(model):
    """The configuration of the run whose last/ or best/ a model's folder is; else defaults."""
    run = {"max_new_tokens": 64, "dtype": "float32", "teacher_instruction": "thinking"}
    with suppress(OSError, ValueError, KeyError, TypeError):
        run |= json.loads((Path(model).parent / "before.json").read_text())["config"]
    return run | {"answer_tokens": max(run["max_new_tokens"], run.get("eval_new_tokens", 0))}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, hub id, or smollm2")
    add("--task", required=True, choices=[task for task in data.TASKS if task != "general"])
    add("--split", default="test", help="file of the data set (default: test)")
    add("--data", help="folder with our JSONL files (default: our own samples)")
    add("--context", default="none", choices=data.CONTEXTS, help="what stands beside the question")
    add("--instruction", choices=list(data.TEACHER_INSTRUCTIONS), help="end of a teacher's prompt")
    add("--judge", metavar="URL", help="a model at this server scores knowledge and medical")
    add("--judge-model", metavar="NAME", help="its name there, if the server needs one")
    add("--judge-timeout", type=float, default=60, help="seconds for a verdict (default: 60)")
    add("--judge-repeats", type=int, default=1, metavar="N", help="verdicts for each answer")
    add("--limit", type=int, help="only the first N examples")
    add("--max-new-tokens", type=int, help="longest answer (default: its run's, else 64)")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: its run's, else float32)")
    add("--batch-size", type=int, default=32)
    add("--json", type=Path, help="also write summary and answers to this file")
    args = parser.parse_args(argv)
    for name in ("limit", "max_new_tokens", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be at least 1")
    run = config_of_run(args.model)
    length = args.max_new_tokens or run["answer_tokens"]
    instruction = args.instruction or run["teacher_instruction"]
    try:
        examples = data.load_task(args.task, args.split, args.data)[: args.limit]
        for example in examples:
            data.check_context(example, args.context)
        judge = args.judge, args.judge_model, args.judge_timeout, args.judge_repeats
        scorer = choose_scorer(args.task, examples, *judge)
        dtype = args.dtype or run["dtype"]
        model, tokenizer = models.load_model(args.model, models.best_device(), dtype)
        how = {"max_new_tokens": length, "batch_size": args.batch_size, "description": "answering"}
        how |= {"context": args.context, "instruction": instruction, "scorer": scorer}
        summary, answers = evaluate(model, tokenizer, examples, **how)
    except ValueError as error:
        sys.exit(f"error: {error}")
    label = f"{args.task} {args.split}, context {args.context}, at most {length} tokens"
    print(scoring.format_table([(label, summary)]))
    if args.json:
        command = " ".join(["python", "eval.py", *(argv or sys.argv[1:])])
        record = {"command": command, "summary": summary, "machine": models.describe_machine()}
        pairs = zip(examples, answers, strict=True)
        record["answers"] = [{"id": e.id, "answer": a.text, "scores": a.scores} for e, a in pairs]
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
