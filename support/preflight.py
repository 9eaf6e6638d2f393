"""Before training: can the teacher teach, and how long will the steps take?"""

import math
import statistics
import sys
import time

import torch

import data
import scoring
from eval import (
    answer_greedily,
    evaluate,
    in_parts,
    sample_answers,
    score_answers,
    token_divergence,
)
from sampling import pad_completions
from support.chat import encode_prompt
from support.watch import OTHERS, WATCHED_ROWS, WATCHED_TOKENS

SAMPLED_ANSWERS = 2  # to each question, by student and by teacher
SAMPLED_QUESTIONS = 32  # the first ones: at most 64 answers of each of the two
# shares of the teacher's sampled answers above which a warning names them
OFTEN, WRONG = 0.2, 1 / 3


@torch.no_grad()
def preflight(model, tokenizer, examples, config, scorer=scoring.score_by_rule, draws=None):
    """What the model can do alone and as its own teacher, before it is trained -> a dict.

    student, teacher     summaries of `evaluate`, without and with the teacher's context
    copied               share of teacher answers that are the demonstration word for word
    kl_teacher_student   KL(teacher || student) in nats a token, on the teacher's answers
    sampling_tokens_per_s, scoring_tokens_per_s   speeds, which price a step
    sampled              the same at --temperature, from `sample_both`; only with draws, a generator
                         of random numbers, for methods that sample in training
    With --teacher-context none the teacher sees what the student sees: there is no "teacher".
    """
    started = time.perf_counter()
    kwargs = config.chat_template_kwargs
    prompts = [encode_prompt(tokenizer, example.messages, kwargs) for example in examples]
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
            own_template=config.teacher_template,
            template_kwargs=kwargs,
            scorer=scorer,
            max_new_tokens=config.answer_tokens,
            description="preflight: teacher",
        )
        figures["copied"] = copied_share(answers, examples)
    figures |= measure_signal(model, tokenizer, examples, answers, config)
    if draws is not None:
        figures["sampled"] = sample_both(model, tokenizer, examples, config, scorer, draws)
    return figures


def sample_both(model, tokenizer, examples, config, scorer, draws):
    """Sampled answers of student and teacher, as training would see them -> a dict.

    student, teacher    summaries of SAMPLED_ANSWERS answers to each of the first SAMPLED_QUESTIONS;
                        rollout_tokens is their mean length within --max-new-tokens
    copied              as in `preflight`
    answers_per_question, temperature, seconds (of both), tokens_per_s

    A distribution that is right at its mode can be wrong in half of its draws. The teacher of SDFT
    is scored as a distribution, so these figures decide, and not the greedy ones.
    """
    asked = [e for e in examples[:SAMPLED_QUESTIONS] for _ in range(SAMPLED_ANSWERS)]
    # the same numbers for both, so that they differ by what they see
    uniforms_BT = torch.from_numpy(draws.random((len(asked), config.answer_tokens)))
    prompts = {"student": [], "teacher": []}
    for example in asked:
        pair = data.encode_pair(tokenizer, example, config)
        prompts["student"].append(pair.student_prompt)
        prompts["teacher"].append(pair.teacher_prompt)
    if config.teacher_context == "none":
        del prompts["teacher"]
    sampled = {"answers_per_question": SAMPLED_ANSWERS, "temperature": config.temperature}
    seconds, tokens = 0.0, 0
    for role, some in prompts.items():
        started = time.perf_counter()
        answers = sample_answers(
            model,
            tokenizer,
            some,
            temperature=config.temperature,
            uniforms_BT=uniforms_BT,
            description=f"preflight: {role}, sampled",
        )
        seconds += time.perf_counter() - started
        lengths = [len(answer.ids) for answer in answers]
        tokens += sum(lengths)
        rollouts = [min(length, config.max_new_tokens) for length in lengths]
        sampled[role] = score_answers(asked, answers, scorer)
        sampled[role]["standard_error"] = error_over_questions(answers)
        sampled[role]["rollout_tokens"] = sum(rollouts) / len(rollouts)
        if role == "teacher":
            sampled["copied"] = copied_share(answers, asked)
    return sampled | {"seconds": seconds, "tokens_per_s": tokens / seconds}


def error_over_questions(answers, samples=SAMPLED_ANSWERS):
    """Standard error of "correct" where each question has `samples` answers, in a row.

    Answers to one question are alike, so the mean of each question counts as one measurement.
    """
    means = []
    for own in in_parts(answers, samples):
        judged = [answer.scores["correct"] for answer in own if "correct" in answer.scores]
        if judged:
            means.append(sum(judged) / len(judged))
    return statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def copied_share(answers, examples):
    return sum(map(is_copy, answers, examples)) / len(answers)


def is_copy(answer, example):
    return scoring.final_answer(answer.text).split() == example.demonstration.split()


def measure_signal(model, tokenizer, examples, answers, config):
    """KL(teacher || student) on given answers, and the speed of scoring them."""
    pairs = [data.encode_pair(tokenizer, example, config) for example in examples]
    rows = sorted(zip(pairs, answers, strict=True), key=lambda row: len(row[0].teacher_prompt))
    longest = max(max(len(p.student_prompt), len(p.teacher_prompt)) + len(a.ids) for p, a in rows)
    kl, tokens, scored_tokens = 0.0, 0, 0
    started = time.perf_counter()
    # A GPU is as fast as in training with as many rows. On a CPU a row alone tells the speed of a
    # step better: passes of many rows are faster there than their backward.
    at_once = config.micro_batch_tokens // longest if model.device.type == "cuda" else 1
    for part in in_parts(rows, max(1, at_once)):
        student_prompts = [pair.student_prompt for pair, _ in part]
        teacher_prompts = [pair.teacher_prompt for pair, _ in part]
        ids = [answer.ids for _, answer in part]
        ids_BT, mask_BT = pad_completions(ids, 0, model.device)
        kl_BT, _, _ = token_divergence(
            model, student_prompts, model, teacher_prompts, (ids_BT, mask_BT), "forward"
        )
        kl += kl_BT[mask_BT].sum().item()
        tokens += int(mask_BT.sum())
        scored_tokens += sum(map(len, student_prompts + teacher_prompts)) + 2 * int(mask_BT.sum())
    seconds = time.perf_counter() - started
    return {"kl_teacher_student": kl / tokens, "scoring_tokens_per_s": scored_tokens / seconds}


def preflight_or_exit(run, draws, must_teach=True, sampled_before=0):
    """Print the preflight, and exit if there is nothing to teach (--force goes on) -> its figures.

    draws is a generator of random numbers, None for methods that never sample. must_teach is False
    for methods that do not learn from the model in its teacher's context; sampled_before is the
    number of completions that a method samples once, before its first step.
    """
    config = run.config
    examples = run.splits.validation
    figures = preflight(run.student, run.tokenizer, examples, config, run.scorer, draws)
    if must_teach:
        go, why = verdict(figures)
    else:
        go, why = True, "none: this method needs no such teacher"
    print(format_preflight(figures, config.teacher_context, why))
    drift_tokens = sum(map(len, run.base.prompts)) + int(run.base.completion_mask_BT.sum())
    line = estimate(figures, run.pairs, config, sampled_before, drift_tokens)
    print(f"  estimate     {line}")
    if not go and not config.force:
        sys.exit("nothing was trained; --force trains all the same")
    return figures


def verdict(figures):
    """(whether the teacher can teach, why) from the figures of `preflight`: the sampled ones.

    Without them, which is how a method is judged that never samples, from the greedy ones.
    """
    if "teacher" not in figures:
        return False, "no-go: with --teacher-context none the teacher sees what the student sees"
    measured = figures.get("sampled", figures)
    student, teacher = measured["student"], measured["teacher"]
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


def warnings(figures):
    """What the teacher's sampled answers show and its greedy ones may hide -> list of lines."""
    teacher = figures.get("sampled", {}).get("teacher")
    if teacher is None:
        return []
    lines = []
    greedy, sampled = figures["teacher"].get("correct"), teacher.get("correct")
    if None not in (greedy, sampled):  # a judge may have judged nothing
        lost = greedy - sampled
        if lost > OFTEN and lost > 2 * teacher["standard_error"]:
            lines.append(
                f"sampled, the teacher is right in {sampled:.0%} and not in {greedy:.0%}: the "
                "student learns its wrong answers, too"
            )
        elif 1 - sampled > WRONG:
            lines.append(
                f"the teacher is wrong in {1 - sampled:.0%} of its sampled answers; the student "
                "learns these, too"
            )
    if teacher["artefacts"] > OFTEN:
        lines.append(
            f"{teacher['artefacts']:.0%} of the teacher's sampled answers open with words about "
            "what only it sees; the student learns to say them"
        )
    if 1 - teacher["finished"] > OFTEN:
        lines.append(
            f"{1 - teacher['finished']:.0%} of the teacher's sampled answers do not end within "
            "the limit; the student learns to go on"
        )
    if figures["sampled"]["copied"] > 0.5:
        lines.append(
            f"{figures['sampled']['copied']:.0%} of the teacher's sampled answers are the "
            "demonstration word for word: close to SFT on it"
        )
    return lines


def format_preflight(figures, context, why):
    lines = [
        f"preflight on {figures['student']['n']} validation examples",
        f"  student      {format_scores(figures['student'])}",
    ]
    if "teacher" in figures:
        lines.append(
            f"  teacher      {format_scores(figures['teacher'])}; context: {context}; "
            f"{figures['copied']:.0%} of its answers copy the demonstration verbatim"
        )
    if "sampled" in figures:
        lines += format_sampled(figures["sampled"])
    if "teacher" in figures:
        lines.append(
            f"  to learn     KL(teacher || student) = {figures['kl_teacher_student']:.2f} nats a "
            "token on the teacher's answers"
        )
    found = warnings(figures)
    lines += [f"  warning      {line}" for line in found]
    if found:
        lines.append(
            "               compare teachers: python extras/teacher.py, with --task and --model"
        )
    return "\n".join([*lines, f"  verdict      {why}"])


def format_sampled(sampled):
    """The lines of a preflight that show sampled answers, and what these cost."""
    lines = [
        f"  sampled      {sampled['answers_per_question']} answers a question at temperature "
        f"{sampled['temperature']:g}, as in training; they took {sampled['seconds']:.0f} s"
    ]
    for role in ("student", "teacher"):
        if role in sampled:
            summary = sampled[role]
            line = (
                f"    {role}    {format_scores(summary)}, {summary['completion_tokens']:.0f} tokens"
            )
            if role == "teacher":
                line += (
                    f"; {sampled['copied']:.0%} copied, {summary['artefacts']:.0%} open like "
                    '"Based on the text"'
                )
            lines.append(line)
    return lines


def format_scores(summary):
    words = {
        "correct": "right",
        "not_judged": "not judged",
        "well_formed": "well formed",
        "finished": "ended",
    }
    return ", ".join(f"{summary[key]:.1%} {words[key]}" for key in words if key in summary)


def estimate(figures, pairs, config, sampled_before=0, drift_tokens=0):
    """How long training will take, from the speeds that the preflight measured.

    A pair without a completion is sampled in each step that draws it. sampled_before completions
    are sampled once, before the first step. Each validation measures drift on drift_tokens, prompts
    and answers.
    """
    measured = figures.get("sampled")
    if measured is None:
        tokens_per_s = figures["sampling_tokens_per_s"]
        answer_tokens = teacher_tokens = figures["student"]["completion_tokens"]
    else:
        tokens_per_s = measured["tokens_per_s"]
        answer_tokens = measured["student"]["rollout_tokens"]
        teacher_tokens = measured.get("teacher", measured["student"])["rollout_tokens"]
    passes = 4 if config.gradient_checkpointing else 3  # a backward costs two forwards
    seconds_before = sampled_before * teacher_tokens / tokens_per_s
    seconds = 0
    for pair in pairs:
        if pair.completion is not None:
            completion_tokens = len(pair.completion)
        elif sampled_before:
            completion_tokens = teacher_tokens
        else:
            completion_tokens = answer_tokens
            seconds += answer_tokens / tokens_per_s
        tokens = passes * (len(pair.student_prompt) + completion_tokens)
        if config.teacher != "none":
            tokens += len(pair.teacher_prompt) + completion_tokens
        seconds += tokens / figures["scoring_tokens_per_s"]
    rows = config.batch_size * config.rollouts_per_prompt
    step_seconds = rows * seconds / len(pairs)
    steps = config.total_steps(len(pairs))
    validations = math.ceil(steps / config.eval_every) if config.eval_every else 0
    validation = validation_seconds(figures, pairs, config, answer_tokens, drift_tokens)
    minutes = (steps * step_seconds + seconds_before + validations * validation) / 60
    parts = [f"{steps} steps of about {step_seconds:.0f} s"]
    if sampled_before:
        parts.append(f"{sampled_before} completions sampled before them")
    if validations:
        parts.append(f"{validations} validations of about {validation:.0f} s")
    line = f"{' and '.join(parts)} = {minutes:.0f} minutes"
    if config.warmup_steps(steps) >= steps:
        line += f"; all of them warm up (--warmup {config.warmup:g}), so it learns little: --steps"
    return line


def validation_seconds(figures, pairs, config, answer_tokens, drift_tokens):
    """Of one validation: its greedy answers, the drift, and what support/watch.py looks at."""
    greedy, speed = figures["student"], figures["scoring_tokens_per_s"]
    seconds = greedy["n"] * greedy["completion_tokens"] / figures["sampling_tokens_per_s"]
    seconds += drift_tokens / speed
    if config.teacher != "none" and config.teacher_context != "none":
        watched_tokens = min(answer_tokens, WATCHED_TOKENS)
        for pair in pairs[:WATCHED_ROWS]:
            seconds += watched_tokens / figures["sampling_tokens_per_s"]
            teachers = (1 + OTHERS) * (len(pair.teacher_prompt) + watched_tokens)
            seconds += (len(pair.student_prompt) + watched_tokens + teachers) / speed
    return seconds
