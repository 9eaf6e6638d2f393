"""Our own data sets: they read, do not leak, and come from their generators byte for byte."""

import pytest
from conftest import ROOT, run_generator

from data import load_task
from scoring import score

SPLITS = {
    "science": ["train", "validation", "test"],
    "knowledge": ["train", "validation", "test", "ood"],
    "tooluse": ["train", "validation", "test"],
}


@pytest.mark.parametrize("task", SPLITS)
def test_no_question_stands_in_two_splits(task):
    questions = [
        example.messages[-1]["content"]
        for split in SPLITS[task]
        for example in load_task(task, split)
    ]
    assert len(questions) == len(set(questions)) >= 100


@pytest.mark.parametrize("task", SPLITS)
def test_every_demonstration_is_scored_right_and_no_other_answer_is(task):
    for split in SPLITS[task]:
        examples = load_task(task, split)
        for example, other in zip(examples, examples[1:] + examples[:1], strict=True):
            assert score(example.demonstration, example)["correct"], example.id
            if example.answer and other.answer != example.answer:
                assert not score(other.demonstration, example)["correct"]


def test_general_prompts_are_enough():
    assert len(load_task("general", "test")) >= 24


@pytest.mark.parametrize("task", SPLITS)
def test_generators_write_the_files_that_are_here(task, tmp_path):
    run_generator(task, tmp_path)
    for split in SPLITS[task]:
        name = f"{task}/{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (ROOT / "samples" / name).read_bytes(), name
