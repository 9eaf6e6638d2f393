"""The sampled part of the preflight.

Oracles: inverse-CDF draws token by token from full passes without a cache; figures by hand.
"""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_tokenizer

import baselines
import sdft
from config import Config
from data import Example, Pair
from eval import Answer
from support import preflight as module
from support.chat import encode_prompt
from support.preflight import (
    error_over_questions,
    estimate,
    format_preflight,
    preflight,
    verdict,
    warnings,
)

SENTENCE = "Now answer with a response of your own, including the thinking process:"


def questions(n=3):
    return [
        Example(
            str(i),
            "science",
            [{"role": "user", "content": f"Is it {i}?"}],
            demonstration="The correct answer is A.",
            answer="A",
        )
        for i in range(n)
    ]


def config(**changes):
    return dataclasses.replace(Config(max_new_tokens=5, temperature=0.7), **changes)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_llama(vocab_size=len(tokenizer))


def draw_by_hand(model, prompt, uniforms, temperature):
    """Each token from a full pass: the first whose cumulative probability exceeds its number."""
    ids = list(prompt)
    for u in uniforms:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        cumulative = np.cumsum((logits / temperature).softmax(-1).detach().numpy())
        ids.append(int(np.nonzero(cumulative > u)[0][0]))
        if ids[-1] == 1:
            break
    return ids[len(prompt) :]


def test_sampled_answers_of_student_and_teacher_are_drawn_at_the_temperature(
    model, tokenizer, monkeypatch
):
    seen = []
    plain = module.score_answers

    def score_answers(examples, answers, scorer):
        seen.append([answer.ids for answer in answers])
        return plain(examples, answers, scorer)

    monkeypatch.setattr(module, "score_answers", score_answers)
    figures = preflight(
        model, tokenizer, questions(), config(), draws=np.random.default_rng([0, 3, 0])
    )
    uniforms = np.random.default_rng([0, 3, 0]).random((6, 5))
    expected = {"student": [], "teacher": []}
    for i, example in enumerate(questions()):
        shown = "\n\nThis is an example for a response to the question:\nThe correct answer is A."
        content = f"{example.messages[0]['content']}{shown}\n\n{SENTENCE}"
        for j in range(2):
            for role, text in (("student", example.messages[0]["content"]), ("teacher", content)):
                prompt = encode_prompt(tokenizer, [{"role": "user", "content": text}])
                drawn = draw_by_hand(model, prompt, uniforms[2 * i + j], 0.7)
                expected[role].append(drawn)
    assert seen[-2:] == [expected["student"], expected["teacher"]]
    for role, ids in expected.items():
        summary = figures["sampled"][role]
        assert summary["n"] == 6
        assert summary["completion_tokens"] == sum(map(len, ids)) / 6
        assert summary["finished"] == sum(row[-1] == 1 for row in ids) / 6
    assert figures["sampled"]["temperature"] == 0.7
    assert figures["sampled"]["answers_per_question"] == 2
    assert figures["student"]["n"] == 3, "greedy stays beside it"


def test_the_length_of_a_rollout_is_cut_where_training_cuts_it(model, tokenizer):
    long = config(max_new_tokens=2, eval_new_tokens=6)
    figures = preflight(model, tokenizer, questions(), long, draws=np.random.default_rng(0))
    student = figures["sampled"]["student"]
    assert student["rollout_tokens"] <= 2 < student["completion_tokens"] <= 6


def test_the_cost_is_bounded(model, tokenizer, monkeypatch):
    """40 questions are answered greedily; 32 of them are sampled, twice each."""
    sampled = []

    def answer(model, tokenizer, prompts, *, temperature, uniforms_BT, **how):
        sampled.append((len(prompts), len(uniforms_BT)))
        return [Answer("A.", [5, 1], True) for _ in prompts]

    monkeypatch.setattr(module, "sample_answers", answer)
    figures = preflight(model, tokenizer, questions(40), config(), draws=np.random.default_rng(0))
    assert sampled == [(64, 64)] * 2
    assert figures["student"]["n"] == 40 and figures["sampled"]["teacher"]["n"] == 64


def test_without_a_context_only_the_student_is_sampled(model, tokenizer):
    alone = config(teacher_context="none")
    figures = preflight(model, tokenizer, questions(), alone, draws=np.random.default_rng(0))
    assert "student" in figures["sampled"] and not {"teacher", "copied"} & figures["sampled"].keys()
    text = format_preflight(figures, "none", "none: why")
    assert "    student    " in text and "teacher" not in text.replace("teacher || student", "")


def answers(*rows):
    """Answers to questions, two each, from strings such as "10": right, then wrong."""
    return [Answer("", [], True, {"correct": c == "1"}) for row in rows for c in row]


def test_answers_to_one_question_are_one_measurement():
    """Means 1, 1/2, 0: their standard deviation is 1/2, and 1/2 / sqrt(3) = 0.2887."""
    assert error_over_questions(answers("11", "10", "00")) == pytest.approx(0.28867513)
    # alike within each question: the error of 2 values, and not of 4
    assert error_over_questions(answers("11", "00")) == pytest.approx(0.5)
    unjudged = [Answer("", [], True, {"not_judged": True})] * 2
    assert error_over_questions(unjudged + answers("11", "00")) == pytest.approx(0.5)


def summary(correct, finished=0.9, artefacts=0.0, tokens=10):
    return {
        "n": 4,
        "correct": correct,
        "finished": finished,
        "artefacts": artefacts,
        "completion_tokens": tokens,
        "standard_error": 0.05,
        "rollout_tokens": tokens,
    }


def figures(greedy, sampled, copied=0.25, **teacher):
    """From (student, teacher) right greedily and sampled; teacher: more of its sampled summary."""
    return {
        "student": summary(greedy[0]),
        "teacher": summary(greedy[1]),
        "copied": 0.25,
        "kl_teacher_student": 1.5,
        "sampled": {
            "answers_per_question": 2,
            "temperature": 0.5,
            "seconds": 21.4,
            "student": summary(sampled[0]),
            "teacher": summary(sampled[1], **teacher),
            "copied": copied,
            "tokens_per_s": 50,
        },
    }


@pytest.mark.parametrize(
    "greedy, sampled, go, why",
    [
        ((0.2, 1.0), (0.5, 0.4), False, "no-go: .*larger --model"),
        ((0.5, 0.4), (0.2, 0.9), True, "^go: "),
        ((0.2, 1.0), (0.96, 0.9), False, "^nothing to learn"),
        ((0.96, 0.9), (0.2, 0.9), True, "^go: "),
    ],
)
def test_the_verdict_uses_the_sampled_figures(greedy, sampled, go, why):
    found = verdict(figures(greedy, sampled))
    assert found[0] is go and re.search(why, found[1], re.DOTALL)


def test_sampled_answers_that_are_cut_off_are_named():
    cut = figures((0.2, 1.0), (0.2, 0.1), finished=0.3)
    assert re.search("cut off; raise --eval-new-tokens", verdict(cut)[1])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"sampled": (0.1, 0.48)}, "right in 48% and not in 100%"),
        ({"sampled": (0.1, 0.88)}, None),
        ({"artefacts": 0.3}, "30% of the teacher's sampled answers open with words"),
        ({"finished": 0.67}, "33% of the teacher's sampled answers do not end"),
        ({"finished": 0.85}, None),
        ({"greedy": (0.1, 0.4), "sampled": (0.1, 0.48)}, "wrong in 52% of its sampled answers"),
        ({"greedy": (0.1, 0.7), "sampled": (0.1, 0.7)}, None),
        ({"copied": 0.75}, "75% .* word for word"),
    ],
)
def test_warnings_name_what_greedy_answers_hide(changes, words):
    changed = figures(**{"greedy": (0.1, 1.0), "sampled": (0.1, 1.0)} | changes)
    found = warnings(changed)
    text = format_preflight(changed, "demonstration", "go: why")
    if words is None:
        assert found == [] and "warning" not in text
    else:
        assert len(found) == 1 and re.search(words, found[0])
        assert f"  warning      {found[0]}\n" in text and "extras/teacher.py" in text
    assert text.endswith("  verdict      go: why")


def test_a_gap_within_two_standard_errors_is_no_warning():
    noisy = figures((0.1, 1.0), (0.1, 0.75))
    noisy["sampled"]["teacher"]["standard_error"] = 0.13
    assert warnings(noisy) == []
    noisy["sampled"]["teacher"]["standard_error"] = 0.12
    assert len(warnings(noisy)) == 1


def test_greedy_and_sampled_stand_side_by_side():
    lines = format_preflight(figures((0.1, 1.0), (0.2, 0.95)), "text", "go: why").splitlines()
    assert lines[1].startswith("  student      10.0% right") and "100.0% right" in lines[2]
    assert lines[3] == (
        "  sampled      2 answers a question at temperature 0.5, as in training; they took 21 s"
    )
    assert lines[4] == "    student    20.0% right, 90.0% ended, 10 tokens"
    assert lines[5].startswith("    teacher    95.0% right, 90.0% ended, 10 tokens; 25% copied, 0%")


@pytest.mark.parametrize(
    "before, line",
    [
        # a row samples 8 tokens at 50 a second and scores 3 (20 + 8) + 40 + 8 = 132 at 1000
        (0, "50 steps of about 29 s = 24 minutes"),  # 100 (0.16 + 0.132) = 29.2
        # 300 answers of the teacher, of 16 tokens: 96 s; a row scores 3 (20 + 16) + 40 + 16 = 164
        (300, "50 steps of about 16 s and 300 completions sampled before them = 15 minutes"),
    ],
)
def test_the_estimate_takes_lengths_and_speeds_of_sampled_answers(before, line):
    measured = figures((0.1, 1.0), (0.2, 0.95)) | {
        "sampling_tokens_per_s": 1,  # of greedy answers: not used
        "scoring_tokens_per_s": 1000,
    }
    measured["sampled"]["student"]["rollout_tokens"] = 8
    measured["sampled"]["teacher"]["rollout_tokens"] = 16
    pairs = [Pair(str(n), [3] * 20, [3] * 40) for n in range(4)]
    plan = Config(batch_size=100, steps=50, eval_every=0, gradient_checkpointing=False)
    assert estimate(measured, pairs, plan, before) == line


SHORT = """--task science --preset laptop --steps 1 --batch-size 2 --eval-examples 2 --eval-every 0
    --general-tokens 4 --max-new-tokens 6 --eval-new-tokens 6 --keep-last 0 --force
    --max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500""".split()


@pytest.mark.parametrize(
    "main, method, samples",
    [(sdft.main, [], True), (baselines.main, ["--method", "sft"], False)],
)
def test_only_methods_that_sample_pay_for_it(main, method, samples, tiny_folder, tmp_path, capsys):
    """Two runs of one seed measure the same."""
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        main([*method, *SHORT, "--model", str(tiny_folder), "--output", str(folder)])
        found.append(json.loads((folder / "before.json").read_text())["preflight"])
    assert ("sampled" in found[0]) is samples
    assert ("  sampled  " in capsys.readouterr().out) is samples
    if samples:
        for role in ("student", "teacher"):
            assert found[0]["sampled"][role] == found[1]["sampled"][role]


def test_the_readmes_preflight_is_that_of_the_results_file():
    """Each line of the README's block, as far as it is shown; times differ between machines."""
    record = json.loads((ROOT / "results" / "preflight-science.json").read_text())
    measured = record["preflight"]
    printed = format_preflight(measured, "demonstration", verdict(measured)[1]).splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("```\npreflight on")[1].split("\n```")[0]
    shown = ("preflight on" + block).splitlines()
    assert len(shown) == len(printed) and len(printed) == 8
    for line, whole in zip(shown, printed, strict=True):
        assert whole.startswith(line.removesuffix("…").rstrip()), line
