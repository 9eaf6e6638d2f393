"""The medical samples.

Oracles: their generator; the counts and the rules written out here; answers judged by hand.
"""

import re

import pytest
from conftest import ROOT, run_generator

from data import load_task, parse_line
from scoring import score

COUNTS = {"train": 60, "validation": 16, "test": 28}
FOLDERS = ["medical", "medical-answer-only"]


@pytest.fixture(scope="module", params=FOLDERS)
def splits(request):
    return {
        split: load_task("medical", split, ROOT / "samples" / request.param) for split in COUNTS
    }


def words(text):
    return " " + " ".join(re.findall(r"\w+", text.casefold())) + " "


def holds(text_words, example):
    """Whether a text, as words between blanks, has all key facts; scoring.py is not used."""
    return all(
        any(words(variant) in text_words for variant in variants) for variants in example.key_facts
    )


def test_counts_and_the_one_wording(splits):
    assert {split: len(examples) for split, examples in splits.items()} == COUNTS
    for example in sum(splits.values(), []):
        question, ask = example.messages[-1]["content"].split("? ")
        assert ask == "Answer in one or two sentences." and len(example.demonstration.split()) <= 45


def test_no_question_and_no_fact_stands_in_two_splits(splits):
    everything = sum(splits.values(), [])
    assert len({example.messages[-1]["content"] for example in everything}) == len(everything)
    for earlier, later in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for other in splits[earlier]:
            seen = words(other.messages[-1]["content"] + " " + other.demonstration)
            assert [example.id for example in splits[later] if holds(seen, example)] == [], other.id


def test_no_copied_demonstration_answers_a_test_question(splits):
    """Not even all demonstrations of training and validation in one answer."""
    seen = [example.demonstration for split in ("train", "validation") for example in splits[split]]
    for example in splits["test"]:
        for copied in [*seen, " ".join(seen)]:
            assert not score(copied, example)["correct"], (example.id, copied)


def test_demonstrations_are_scored_right_and_questions_and_other_answers_wrong(splits):
    for examples in splits.values():
        for example, other in zip(examples, examples[1:] + examples[:1], strict=True):
            assert (
                score(example.demonstration, example)["correct"]
                and score(example.reference, example)["correct"]
            ), example.id
            assert not score(example.messages[-1]["content"], example)["lenient"], example.id
            assert not score(other.reference, example)["correct"], (example.id, other.id)


def test_answer_only_has_the_reference_alone():
    for split in COUNTS:
        with_reason, alone = (
            load_task("medical", split, ROOT / "samples" / folder) for folder in FOLDERS
        )
        for a, b in zip(with_reason, alone, strict=True):
            assert (a.id, a.messages, a.key_facts, a.reference) == (
                b.id,
                b.messages,
                b.key_facts,
                b.reference,
            )
            assert b.demonstration == a.reference and a.demonstration.endswith(". " + a.reference)


@pytest.mark.parametrize(
    "text, scores",
    [
        ("It records the ELECTRICAL activity of the heart.", {"correct": True, "lenient": True}),
        ("It records electric signals: cardiac ones.", {"correct": True, "lenient": True}),
        ("It records the sound of the heart.", {"correct": False, "lenient": True}),
        ("It records hearts and electricity.", {"correct": False, "lenient": False}),
    ],
)
def test_scores_by_hand(text, scores):
    [ecg] = [
        example
        for example in load_task("medical", "test")
        if "electrocardiogram" in example.messages[-1]["content"]
    ]
    assert score(text, ecg) == scores


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            '"key_facts": [["bile"]]',
            'field "demonstration" is missing; each line of task medical needs',
        ),
        (
            '"demonstration": "Bile.", "key_facts": [["bile"]], "reference": 5',
            'field "reference" must be a string that is not empty, .*; it is 5',
        ),
    ],
)
def test_wrong_lines(fields, message):
    with pytest.raises(ValueError, match=f"my.jsonl:1: {message}"):
        parse_line(f'{{"prompt": "Why?", {fields}}}', "my.jsonl:1", "medical")


def test_generator_writes_the_files_that_are_here(tmp_path):
    run_generator("medical", tmp_path)
    for name in [f"{folder}/{split}.jsonl" for folder in FOLDERS for split in COUNTS]:
        assert (tmp_path / name).read_bytes() == (ROOT / "samples" / name).read_bytes(), name
