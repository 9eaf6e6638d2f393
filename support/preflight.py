"""Before training: can the teacher teach, and how long will the steps take?"""

import sys
import time
from itertools import starmap

import torch

import data
import scoring
from eval import answer_greedily, evaluate, score_answers, token_divergence
from support.chat import encode_prompt


@torch.no_grad()
def preflight(model, tokenizer, examples, config, scorer=scoring.score_by_rule):
    """What the model can do alone and as its own teacher, before it is trained -> a dict.

    student, teacher     summaries of `evaluate`, without and with the teacher's context
    copied               share of teacher answers that are the demonstration word for word
    kl_teacher_student   KL(teacher || student) in nats a token, on the teacher's answers
    sampling_tokens_per_s, scoring_tokens_per_s   speeds, which price a step
    With --teacher-context none the teacher sees what the student sees: there is no "teacher".
    """
    started = time.perf_counter()
    prompts = [encode_prompt(tokenizer, example.messages) for example in examples]
    answers = answer_greedily(
        model, tokenizer, prompts, config.answer_tokens, description="preflight: student"
    )
    seconds = time.perf_counter() - started  # a judge's time is not part of it
    figures = {"student": score_answers(examples, answers, scorer)}
    figures["sampling_tokens_per_s"] = sum(len(answer.ids) for answer in answers) / seconds
    if config.teacher_context != "none":
        figures["teacher"], answers = evaluate(
            model,
            tokenizer,
            examples,
            context=config.teacher_context,
            instruction=config.teacher_instruction,
            scorer=scorer,
            max_new_tokens=config.answer_tokens,
            description="preflight: teacher",
        )
        copied = list(starmap(is_copy, zip(answers, examples, strict=True)))
        figures["copied"] = sum(copied) / len(copied)
    return figures | measure_gap(model, tokenizer, examples, answers, config)


def is_copy(answer, example):
    return scoring.final_answer(answer.text).split() == example.demonstration.split()


def measure_gap(model, tokenizer, examples, answers, config):
    """KL(teacher || student) on given answers, and the speed of scoring them."""
    kl, tokens, scored_tokens = 0.0, 0, 0
    started = time.perf_counter()
    for example, answer in zip(examples, answers, strict=True):
        pair = data.encode_pair(tokenizer, example, config)
        ids_BT = torch.tensor([answer.ids], device=model.device)
        completions = ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)
        kl_BT, _, _ = token_divergence(
            model, [pair.student_prompt], model, [pair.teacher_prompt], completions, "forward"
        )
        kl += kl_BT.sum().item()
        tokens += len(answer.ids)
        scored_tokens += len(pair.student_prompt) + len(pair.teacher_prompt) + 2 * len(answer.ids)
    seconds = time.perf_counter() - started
    return {"kl_teacher_student": kl / tokens, "scoring_tokens_per_s": scored_tokens / seconds}


def preflight_or_exit(run, must_teach=True, sampled_before=0):
    """Print the preflight, and exit if there is nothing to teach (--force goes on) -> its figures.

    must_teach is False for methods that do not learn from the model in its teacher's context;
    sampled_before is the number of completions that a method samples once, before its first step.
    """
    config = run.config
    figures = preflight(run.student, run.tokenizer, run.splits.validation, config, run.scorer)
    if must_teach:
        go, why = verdict(figures)
    else:
        go, why = True, "none: this method needs no such teacher"
    print(format_preflight(figures, config.teacher_context, why))
    print(f"  estimate     {estimate(figures, run.pairs, config, sampled_before)}")
    if not go and not config.force:
        sys.exit("nothing was trained; --force trains all the same")
    return figures


def verdict(figures):
    """(whether the teacher can teach, why) from the figures of `preflight`."""
    if "teacher" not in figures:
        return False, "no-go: with --teacher-context none the teacher sees what the student sees"
    student, teacher = figures["student"], figures["teacher"]
    if "correct" not in student or "correct" not in teacher:
        return False, "no-go: the judge judged no answer; try another --judge-model"
    if teacher["correct"] > student["correct"]:
        return True, "go: with its context the model can do what it cannot do alone"
    no_better = "no-go: the teacher is no better than the student"
    if student["correct"] >= 0.95:
        return False, "nothing to learn: the student already answers nearly everything right"
    if teacher["finished"] < 0.5:
        cut = "but most of its answers are cut off; raise --eval-new-tokens"
        return False, f"{no_better}, {cut}"
    return False, (
        f"{no_better}, so SDFT has nothing to teach. Try a larger --model,\n               another "
        "--teacher-instruction, or demonstrations in a form that this model would say anyway"
    )


def format_preflight(figures, context, why):
    lines = [
        f"preflight on {figures['student']['n']} validation examples",
        f"  student      {format_scores(figures['student'])}",
    ]
    if "teacher" in figures:
        lines += [
            f"  teacher      {format_scores(figures['teacher'])}; context: {context}; "
            f"{figures['copied']:.0%} of its answers copy the demonstration verbatim",
            f"  to learn     KL(teacher || student) = {figures['kl_teacher_student']:.2f} nats a "
            "token on the teacher's answers",
        ]
    return "\n".join([*lines, f"  verdict      {why}"])


def format_scores(summary):
    words = {
        "correct": "right",
        "not_judged": "not judged",
        "well_formed": "well formed",
        "finished": "ended",
    }
    return ", ".join(f"{summary[key]:.1%} {words[key]}" for key in words if key in summary)


def estimate(figures, pairs, config, sampled_before=0):
    """How long the steps will take, from the speeds that the preflight measured.

    A pair without a completion is sampled in each step that draws it. sampled_before completions
    are sampled once, before the first step.
    """
    answer_tokens = figures["student"]["completion_tokens"]
    sampling_seconds = answer_tokens / figures["sampling_tokens_per_s"]  # of one completion
    seconds = 0
    for pair in pairs:
        sampled = pair.completion is None
        completion_tokens = answer_tokens if sampled else len(pair.completion)
        tokens = 3 * (len(pair.student_prompt) + completion_tokens)  # a backward costs two forwards
        if config.teacher != "none":
            tokens += len(pair.teacher_prompt) + completion_tokens
        seconds += tokens / figures["scoring_tokens_per_s"]
        if sampled and not sampled_before:
            seconds += sampling_seconds
    rows = config.batch_size * config.rollouts_per_prompt
    step_seconds = rows * seconds / len(pairs)
    steps = config.total_steps(len(pairs))
    minutes = (steps * step_seconds + sampled_before * sampling_seconds) / 60
    line = f"{steps} steps of about {step_seconds:.0f} s"
    if sampled_before:
        line += f" and {sampled_before} completions sampled before them"
    line += f" = {minutes:.0f} minutes"
    if 1 <= config.warmup >= steps:
        line += f"; all of them warm up (--warmup {config.warmup:g}), so it learns little: --steps"
    return line
