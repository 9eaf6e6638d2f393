"""Around the loop: folders, errors, logs and reports. Oracle: the lines, written out here."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from test_config import saved_run
from test_eval import questions

from config import Config
from eval import evaluate, sample_base_answers
from scoring import score_by_rule
from support.run import evaluate_and_log, explain, new_run_folder, run_folder, start_log
from support.tables import log_line


def test_an_existing_folder_is_never_written_into(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(new_run_folder(Config())) for _ in range(3)] == [
        "runs/science",
        "runs/science-2",
        "runs/science-3",
    ]
    for saves, remedy in ((False, "move it away: it has no c"), (True, "go on with --resume r")):
        if saves:
            saved_run(tmp_path / "runs" / "science")
        with pytest.raises(SystemExit, match=f"runs/science exists; name another .*{remedy}"):
            with run_folder(Config(output="runs/science"), None):
                pytest.fail("the folder was entered")


@pytest.mark.parametrize("found", [None, 4])
@pytest.mark.parametrize(
    "error, remedy",
    [
        (FloatingPointError("step 5: loss is not finite"), "with a lower --learning-rate"),
        (torch.OutOfMemoryError("CUDA out of memory."), "with a smaller --micro-batch-tokens"),
        (RuntimeError("… can't allocate memory: you tried …"), "--gradient-checkpointing"),
    ],
)
def test_an_error_names_the_checkpoint_that_is_there(found, error, remedy, tmp_path):
    if found:
        saved_run(tmp_path, step=2)
        saved_run(tmp_path, step=found)
    message = explain(error, tmp_path)
    assert message.startswith(f"{error}\n") and remedy in message
    resume = f"--resume {tmp_path} goes on from checkpoint-000004"
    assert (resume in message, "No checkpoint was saved" in message) == (bool(found), not found)


def test_only_what_a_user_can_mend_is_explained(tmp_path):
    assert explain(ValueError("my.jsonl:3: …"), tmp_path) == "my.jsonl:3: …"
    assert explain(RuntimeError("size mismatch"), tmp_path) is None


def test_an_error_of_pythons_memory_has_the_same_remedies(tmp_path):
    with pytest.raises(SystemExit, match="^error: out of memory\nA new run takes less memory"):
        with run_folder(Config(output=str(tmp_path / "run")), None):
            raise MemoryError


def test_interrupted_runs_say_how_to_go_on(tmp_path):
    with pytest.raises(SystemExit, match="a run that has a checkpoint goes on with --resume"):
        with run_folder(Config(output=str(tmp_path / "run")), None):
            raise KeyboardInterrupt


def test_a_log_line_that_a_full_disk_cut_off_is_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "kl": 0.5}\n{"step": 2, "kl": 0.4}\n{"step": 3, "k')
    with start_log(file, 2) as log:
        log.write('{"step": 3, "kl": 0.3}\n')
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


def test_a_log_line_says_each_metric_once():
    metrics = {"kl": 0.5, "grad_norm": 2.0, "finished": 1.0, "seconds": 3.0, "correct": 0.25}
    line = log_line(7, metrics, "  validation")
    assert line == "step    7  validation  kl 0.5000  grad_norm 2.00  correct 25.0%  finished 100%"


def test_every_evaluated_answer_is_kept(model, tokenizer, tmp_path):
    """answers.jsonl has a line for each answer of each report, appended."""
    base = sample_base_answers(model, tokenizer, questions(2), 4)
    run = SimpleNamespace(folder=tmp_path, base=base, student=model, tokenizer=tokenizer)
    run.config, run.scorer = Config(max_new_tokens=6), score_by_rule
    sets = {"test": questions(3), "ood": questions(2)}
    summaries = evaluate_and_log(run, sets, "before")
    evaluate_and_log(run, {"validation": questions(1)}, "step 5")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(line["when"], line["set"], line["id"]) for line in lines] == [
        *(("before", "test", f"q{i}") for i in range(3)),
        *(("before", "ood", f"q{i}") for i in range(2)),
        ("step 5", "validation", "q0"),
    ]
    _, answers = evaluate(model, tokenizer, questions(3), max_new_tokens=6)
    for line, answer in zip(lines[:3], answers, strict=True):
        assert dataclasses.asdict(answer).items() <= line.items()
    assert summaries["test"]["drift_from_base"] == pytest.approx(0, abs=1e-6)
