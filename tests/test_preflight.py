"""The preflight, its verdict and its estimate.

Oracles: each model's own evaluation; a KL computed dense, without padding or chunks; hours by hand.
"""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from test_eval import questions

import eval as evaluation
import support.preflight
from config import Config
from data import Pair
from eval import evaluate
from support.chat import encode_prompt
from support.preflight import estimate, format_preflight, preflight, verdict
from support.tables import format_results


def config(**changes):
    return dataclasses.replace(Config(max_new_tokens=6, gradient_checkpointing=False), **changes)


def test_preflight_figures(model, tokenizer):
    """Oracle: each model's own evaluation, and a dense KL(teacher || student)."""
    figures = preflight(model, tokenizer, questions(), config())
    how = {"max_new_tokens": 6}
    student, _ = evaluate(model, tokenizer, questions(), **how)
    teacher, answers = evaluate(model, tokenizer, questions(), context="demonstration", **how)
    assert figures["student"] == student and figures["teacher"] == teacher
    assert figures["copied"] == 0
    total, tokens = 0.0, 0
    for example, answer in zip(questions(), answers, strict=True):
        content = (
            f"{example.messages[0]['content']}\n\nThis is an example for a response to the "
            "question:\nThe correct answer is A.\n\nNow answer with a response of your own, "
            "including the thinking process:"
        )
        logprobs = []
        for turn in ({"role": "user", "content": content}, example.messages[0]):
            prompt = encode_prompt(tokenizer, [turn])
            logits_LV = model(torch.tensor([prompt + answer.ids])).logits[0]
            logprobs.append(torch.distributions.Categorical(logits=logits_LV[len(prompt) - 1 : -1]))
        total += torch.distributions.kl_divergence(*logprobs).sum().item()
        tokens += len(answer.ids)
    assert figures["kl_teacher_student"] == pytest.approx(total / tokens, rel=1e-4)


def test_a_scorer_takes_no_part_in_the_speed_of_sampling(model, tokenizer, monkeypatch):
    """By a clock on which sampling takes 2 seconds, the scorer 100, and scoring a row 1."""
    clock = [0.0]
    now = SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(support.preflight, "time", now)

    def takes(seconds, name):
        plain = getattr(support.preflight, name)

        def timed(*arguments, **how):
            clock[0] += seconds
            return plain(*arguments, **how)

        monkeypatch.setattr(support.preflight, name, timed)

    def slow(examples, answers):
        clock[0] += 100
        return [{"correct": False} for _ in answers]

    takes(2, "answer_greedily")
    takes(1, "token_divergence")
    figures = preflight(model, tokenizer, questions(), config(), slow)
    tokens = 5 * figures["student"]["completion_tokens"]
    assert figures["student"]["correct"] == 0
    assert figures["sampling_tokens_per_s"] == pytest.approx(tokens / 2)
    pairs = [support.preflight.data.encode_pair(tokenizer, e, config()) for e in questions()]
    prompts = sum(len(pair.student_prompt) + len(pair.teacher_prompt) for pair in pairs)
    answers = 2 * 5 * figures["teacher"]["completion_tokens"]
    assert figures["scoring_tokens_per_s"] == pytest.approx((prompts + answers) / 5)


def test_copies_of_the_demonstration_are_counted(model, tokenizer, monkeypatch):
    """Thoughts and white space aside."""
    texts = ["The correct\nanswer is A.", "<think>…</think>The correct answer is A. ", "A.", "A"]
    plain = evaluation.answer_greedily

    def with_texts(*arguments, **how):
        pairs = zip(plain(*arguments, **how), texts, strict=True)
        return [dataclasses.replace(answer, text=text) for answer, text in pairs]

    monkeypatch.setattr(evaluation, "answer_greedily", with_texts)
    assert preflight(model, tokenizer, questions(4), config())["copied"] == 0.5


def test_without_a_context_one_model_is_evaluated_once(model, tokenizer, monkeypatch):
    """There is no teacher's row in the preflight, nor in the final table."""
    calls, plain = [], evaluation.answer_greedily
    for module in (evaluation, support.preflight):
        monkeypatch.setattr(
            module, "answer_greedily", lambda *a, **how: calls.append(how) or plain(*a, **how)
        )
    figures = preflight(model, tokenizer, questions(), config(teacher_context="none"))
    assert len(calls) == 1 and not {"teacher", "copied"} & figures.keys()
    assert figures["kl_teacher_student"] == pytest.approx(0, abs=1e-6)
    assert "teacher" not in format_preflight(figures, "none", "none: why")
    record = {"preflight": figures, "before": {"test": figures["student"]}}
    record |= {"last": record["before"], "config": {"teacher_context": "none"}}
    assert "teacher" not in format_results(record)
    figures = preflight(model, tokenizer, questions(), config())
    record |= {"preflight": figures, "config": {"teacher_context": "demonstration"}}
    assert "validation, teacher with demonstration" in format_results(record)


def figures(student, teacher, ended):
    summary = {"n": 4, "correct": student, "finished": 0.5}
    return {
        "student": summary,
        "teacher": summary | {"correct": teacher, "finished": ended},
        "copied": 0.25,
        "kl_teacher_student": 1.5,
    }


@pytest.mark.parametrize(
    "student, teacher, ended, go, why",
    [
        (0.25, 0.5, 0.1, True, "^go: "),
        (0.96, 1.0, 0.9, True, "^go: "),
        (0.25, 0.25, 0.1, False, "no-go: .* cut off; raise --eval-new-tokens"),
        (0.25, 0.25, 0.9, False, "no-go: .*larger --model"),
        (0.5, 0.25, 0.9, False, "no-go: .*--teacher-instruction"),
        (1.0, 1.0, 0.9, False, "^nothing to learn: "),  # both at the ceiling
        (0.95, 0.95, 0.1, False, "^nothing to learn: "),
    ],
)
def test_the_verdict_names_what_is_wrong(student, teacher, ended, go, why):
    found = verdict(figures(student, teacher, ended))
    assert found[0] is go and re.search(why, found[1], re.DOTALL)
    text = format_preflight(figures(student, teacher, ended), "text", found[1])
    for expected in (f"{ended:.1%} ended; context: text; 25% of its answers", "= 1.50 nats"):
        assert expected in text
    assert text.endswith(found[1])


SPEEDS = {"sampling_tokens_per_s": 100, "scoring_tokens_per_s": 1000}
MEASURED = {"student": {"n": 24, "completion_tokens": 10}} | SPEEDS


@pytest.mark.parametrize(
    "teacher, given, sampled_before, line",
    [
        # sdft: 600 x (0.09 + 0.05 + 0.1)
        ("ema", None, 0, "50 steps of about 144 s = 120 minutes"),
        # teacher-kd: 600 x (0.09 + 0.05), and 600 answers of 0.1 s
        (
            "base",
            None,
            600,
            "50 steps of about 84 s and 600 completions sampled before them = 71 minutes",
        ),
        # teacher-sft: 600 x 0.09, and the same answers
        (
            "none",
            None,
            600,
            "50 steps of about 54 s and 600 completions sampled before them = 46 minutes",
        ),
        # sft: 600 x 3 x (20 + 20), for demonstrations of 15 and 25 tokens
        ("none", [15, 25], 0, "50 steps of about 72 s = 60 minutes"),
    ],
)
def test_the_estimate_by_hand(teacher, given, sampled_before, line):
    """600 rows a step. Student 20 + 10 tokens, three passes; teacher 40 + 10, one; 10 sampled."""
    pairs = [
        Pair(str(n), [3] * 20, [3] * 40, given and [3] * given[n % len(given)]) for n in range(4)
    ]
    sizes = {"batch_size": 200, "rollouts_per_prompt": 3, "steps": 50, "eval_every": 0}
    found = estimate(MEASURED, pairs, config(teacher=teacher, **sizes), sampled_before)
    assert found == line
    if teacher == "ema":  # and one pass more of the student's where layers are computed twice
        deep = config(teacher=teacher, gradient_checkpointing=True, **sizes)
        assert estimate(MEASURED, pairs, deep).startswith("50 steps of about 162 s")
    short = sizes | {"steps": 10, "warmup": 10, "teacher": teacher}
    found = estimate(MEASURED, pairs, config(**short), sampled_before)
    assert found.endswith("; all of them warm up (--warmup 10), so it learns little: --steps")
    # nine tenths of a single step
    assert "warm up" not in estimate(MEASURED, pairs, config(**short | {"steps": 1, "warmup": 0.9}))


def test_the_estimate_counts_validations_by_hand():
    """24 greedy answers of 10 tokens at 100 a second: 2.4 s. Drift: 5,000 tokens at 1000. Watched:
    8 rows of 10 sampled tokens, 20 + 10 of the student's and four times 40 + 10 of the teacher's at
    1000: 8 (0.1 + 0.23) = 2.64 s. 50 steps, one validation each 20 and one at the end.
    """
    pairs = [Pair(str(n), [3] * 20, [3] * 40) for n in range(9)]
    sizes = {"batch_size": 200, "rollouts_per_prompt": 3, "steps": 50, "eval_every": 20}
    found = estimate(MEASURED, pairs, config(**sizes), 0, 5000)
    assert found == "50 steps of about 144 s and 3 validations of about 10 s = 121 minutes"
    given = [Pair(str(n), [3] * 20, [3] * 40, [3] * 20) for n in range(9)]
    found = estimate(MEASURED, given, config(teacher="none", **sizes), 0, 5000)
    assert found == "50 steps of about 72 s and 3 validations of about 7 s = 60 minutes"


def test_the_estimate_counts_the_steps_of_what_is_trained_on():
    """Two epochs of 12 blocks, 4 a step, 1 + 99 tokens each: 6 steps of 4 x 0.3 s."""
    blocks = [Pair(str(n), [3], [], [3] * 99) for n in range(12)]
    run = config(teacher="none", batch_size=4, epochs=2, warmup=0, eval_every=0)
    assert estimate(MEASURED, blocks, run) == "6 steps of about 1 s = 0 minutes"
    assert estimate(MEASURED, blocks * 100, run).startswith("600 steps of about 1 s = 12 minutes")
