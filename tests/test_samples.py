"""Our own data sets: they read, do not leak, and come from their generators byte for byte."""

import runpy

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
        # test questions may have neither; they are left out
        examples = [e for e in load_task(task, split) if e.demonstration or e.reference]
        answers = [example.demonstration or example.reference for example in examples]
        others = answers[1:] + answers[:1]
        following = examples[1:] + examples[:1]
        for example, answer, other, next_one in zip(
            examples, answers, others, following, strict=True
        ):
            scores = score(answer, example)
            assert scores["correct"] and not scores.get("recites"), example.id
            if example.answer and next_one.answer != example.answer:
                assert not score(other, example)["correct"], example.id


def test_general_prompts_are_enough():
    assert len(load_task("general", "test")) >= 24


@pytest.mark.parametrize("task", SPLITS)
def test_generators_write_the_files_that_are_here(task, tmp_path):
    run_generator(task, tmp_path)
    for split in SPLITS[task]:
        name = f"{task}/{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (ROOT / "samples" / name).read_bytes(), name


def test_the_questions_about_the_articles_are_those_of_the_recorded_replies(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="needs: pip install openai")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = runpy.run_path(str(ROOT / "samples" / "make" / "articles.py"))
    made["main"](tmp_path / "made")
    own = ROOT / "samples" / "articles-questions"
    names = sorted(file.name for file in own.iterdir())
    assert names == ["ood.jsonl", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == names
    for name in names:
        assert (tmp_path / "made" / name).read_bytes() == (own / name).read_bytes(), name
