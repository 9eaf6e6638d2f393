"""Sequential learning. Oracles: figures worked out by hand; what each stage's sdft.py reports of the same weights on its own."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT
from data import load_task

sys.path.insert(0, str(ROOT / "extras"))

import sequence  # noqa: E402

FLAGS = ["--preset", "laptop", "--steps", "2", "--batch-size", "2", "--max-new-tokens", "4", "--max-prompt-tokens", "1000",
         "--max-teacher-prompt-tokens", "1500", "--train-examples", "4", "--eval-examples", "2", "--general-tokens", "4", "--eval-every", "0",
         "--learning-rate", "0.01", "--skip-first-tokens", "0"]


def test_forgetting_and_transfer_by_hand():
    """Task 1 falls from its best 0.8 (after stage 2) to 0.5, task 2 rises from 0.4 to 0.6: forgetting (0.3 - 0.2) / 2 = 0.05;
    to their own stages, 0.7 and 0.4, they stand at -0.2 and +0.2: transfer 0."""
    A = [[0.7, 0.1, 0.9], [0.8, 0.4, 0.2], [0.5, 0.6, 0.3]]
    assert sequence.average_forgetting(A) == pytest.approx(0.05) and sequence.backward_transfer(A) == pytest.approx(0)
    assert sequence.average_forgetting([[0.7, 0.1], [0.2, 0.9]]) == pytest.approx(0.5)
    assert sequence.backward_transfer([[0.7, 0.1], [0.2, 0.9]]) == pytest.approx(-0.5)


def test_a_sequence_from_the_command_line_and_again(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sequence, "load_task", lambda *names: load_task(*names)[:6])     # a short probe
    evaluated, evaluate_all = [], sequence.evaluate_all
    monkeypatch.setattr(sequence, "evaluate_all", lambda model, *more: evaluated.append(model) or evaluate_all(model, *more))
    command = ["--task", "science", "knowledge", "--every", "1", "--output", str(tmp_path), "--", "--force", "--model", str(tiny_folder), *FLAGS]
    sequence.main(command)
    record = json.loads((tmp_path / "sequence.json").read_text())
    results = {stage: json.loads((tmp_path / stage / "results.json").read_text()) for stage in ("stage-1-science", "stage-2-knowledge")}
    assert [(done["stage"], done["task"], done["step"]) for done in record["evaluations"]] == [
        (1, "science", 1), (1, "science", 2), (2, "knowledge", 3), (2, "knowledge", 4)]
    assert record["configs"][0]["model"] == str(tiny_folder) and record["configs"][1]["model"] == str(tmp_path / "stage-1-science" / "last")

    knowledge = ["trained wordings", "held-out wordings", "indirect (OOD)"]
    assert list(record["before"]) == ["science, test", *(f"knowledge, {name}" for name in knowledge), "probe"]
    scores = [done["scores"] for done in record["evaluations"]]
    for found, stage, when in [(record["before"], "stage-1-science", "before"), (scores[1], "stage-1-science", "last"),
                                   (scores[1], "stage-2-knowledge", "before"), (scores[3], "stage-2-knowledge", "last")]:
        for name, summary in results[stage][when].items():
            assert found[f"{stage[8:]}, {name}"] == {key: value for key, value in summary.items() if key != "drift_from_base"}
    assert record["before"]["probe"]["n"] == 6
    assert evaluated == [str(tiny_folder)] + [tmp_path / stage / weights for stage in results for weights in ("checkpoint-000001/student", "last")]
    assert not list(tmp_path.glob("*/checkpoint-*"))
    table = capsys.readouterr().out.splitlines()[-5:]
    assert table[0].split() == ["correct", "science", "knowledge", "probe"] and table[3].startswith("after knowledge")

    record["evaluations"].pop()         # as if it had been stopped before the last evaluation
    (tmp_path / "sequence.json").write_text(json.dumps(record))
    monkeypatch.setattr(sequence.subprocess, "Popen", lambda *_: pytest.fail("a finished stage was run again"))
    sequence.main(command)
    assert len(evaluated) == 6 and evaluated[-1] == tmp_path / "stage-2-knowledge" / "last"
    assert [done["scores"] for done in json.loads((tmp_path / "sequence.json").read_text())["evaluations"]] == scores
    with pytest.raises(ValueError, match="sequence.json is of another command: python extras/sequence.py --task science knowledge"):
        sequence.main(command + ["--seed", "1"])


@pytest.mark.parametrize("checkpoints", [[], ["checkpoint-000001", "checkpoint-000002"]])
def test_an_unfinished_stage_is_resumed_or_begun_anew(checkpoints, tmp_path, monkeypatch):
    """The stage is replaced by a process that fails, as after a no-go."""
    folder, commands, popen = tmp_path / "stage-1-science", [], subprocess.Popen
    for name in checkpoints:
        (folder / name).mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / "before.json").write_text("{}")
    monkeypatch.setattr(sequence.subprocess, "Popen", lambda command: commands.append(command) or popen([sys.executable, "-c", "exit(1)"]))
    with pytest.raises(ValueError, match="stage-1-science did not end.* After a no-go: the same command with --force behind the --"):
        sequence.run_stage(["--task", "science"], folder)
    assert commands[0][2:] == (["--resume", str(folder)] if checkpoints else ["--task", "science"])
    assert folder.exists() == bool(checkpoints)


def test_older_checkpoints_keep_the_student_alone(tmp_path, monkeypatch):
    class Process:
        """Runs on at the first look, and has ended at the second."""
        returncode = None

        def wait(self, timeout):
            if (tmp_path / "results.json").exists():
                self.returncode = 0
                return
            (tmp_path / "results.json").write_text("{}")
            raise subprocess.TimeoutExpired("sdft.py", timeout)

    monkeypatch.setattr(sequence.subprocess, "Popen", lambda _: Process())
    for step in (1, 2):
        for file in ("student/model.safetensors", "teacher/model.safetensors", "optimizer.safetensors"):
            (tmp_path / f"checkpoint-{step:06d}" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"checkpoint-{step:06d}" / file).write_text("")
    sequence.run_stage([], tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*.safetensors"))] == [
        "checkpoint-000001/student/model.safetensors", "checkpoint-000002/optimizer.safetensors",
        "checkpoint-000002/student/model.safetensors", "checkpoint-000002/teacher/model.safetensors"]


@pytest.mark.parametrize("more, message", [
    (["--task", "science"], "a sequence is two tasks or more, each once"),
    (["--task", "science", "medical", "science"], "a sequence is two tasks or more, each once"),
    (["--task", "science", "medical", "--", "--data=folder"], "--data after the --: the sequence sets it"),
    (["--task", "science", "medical", "--every", "2", "--", "--save-every", "5"], "--save-every after the --"),
])
def test_refusals(more, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sequence.main(["--output", str(tmp_path / "out"), *more])
    assert message in capsys.readouterr().err


def test_what_sdft_refuses_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sequence, "load_model", lambda *_: pytest.fail("a model was loaded"))
    command = ["--task", "knowledge", "science", "--output", str(tmp_path / "out"), "--"]
    with pytest.raises(ValueError, match="--method cpt reads articles; only --task knowledge has them"):
        sequence.main([*command, "--method", "cpt"])
    with pytest.raises(ValueError, match="--save-every is 0; it must be at least 1"):
        sequence.main([*command[:-1], "--every", "0", "--"])
    with pytest.raises(ValueError, match="nowhere/knowledge is not a folder"):
        sequence.main([*command[:-1], "--data", "nowhere", "--"])
    assert not (tmp_path / "out").exists()
