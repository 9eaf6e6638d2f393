"""The grids of Tables 3 and 4. Oracles: the tables' sizes, counted by hand; records written by hand."""

import json
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "extras"))

import sweep  # noqa: E402


@pytest.mark.parametrize("task, method, points", [("science", "sdft", 3 * 3 * 2 * 3), ("science", "sft", 3 * 3 * 2), ("science", "dft", 3 * 3 * 2),
                                                  ("knowledge", "sdft", 3 * 3 * 3 * 3), ("knowledge", "sft", 3 * 3 * 2), ("knowledge", "cpt", 3 * 4)])
def test_every_point_is_listed_and_none_is_run(task, method, points, tmp_path, capsys):
    sweep.main(["--task", task, "--method", method, "--list", "--results", str(tmp_path), "--", "--preset", "paper"])
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == points and all(line.startswith(f"to do  python sdft.py --task {task} --method {method} --preset paper") for line in lines)


def test_the_best_by_validation_comes_first_and_what_is_done_is_not_repeated(tmp_path, capsys, monkeypatch):
    ran = []

    def run(name, flags, runs, file, keep_weights):
        ran.append(name)
        file.write_text(json.dumps({"command": flags, "curve": [{"step": 1}, {"step": 2, "validation": {"correct": 0.5, "lenient": 0.5}}]}))

    monkeypatch.setattr(sweep, "run", run)
    done = {"command": "", "curve": [{"step": 1, "validation": {"correct": 0.75, "lenient": 0.8}}, {"step": 2, "validation": {"correct": 0.25, "lenient": 1}}]}
    (tmp_path / "sweep-knowledge-sft-learning-rate-1e-5-seed0.json").write_text(json.dumps(done))
    sweep.main(["--task", "knowledge", "--method", "sft", "--grid", "learning-rate=5e-6,1e-5", "--results", str(tmp_path), "--", "--preset", "laptop"])
    assert ran == ["sweep-knowledge-sft-learning-rate-5e-6-seed0"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["75.0%", "50.0%"] and "--learning-rate 1e-5" in lines[0]


def test_what_cannot_be_run_is_refused_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda *_, **__: pytest.fail("a run was started"))
    with pytest.raises(ValueError, match="learning-rate is -1"):
        sweep.main(["--task", "science", "--method", "sft", "--grid", "learning-rate=1e-5,-1", "--results", str(tmp_path), "--", "--preset", "laptop"])
    with pytest.raises(SystemExit):
        sweep.main(["--task", "science", "--method", "sft", "--grid", "learning-rate"])
    with pytest.raises(ValueError, match="--eval-every of 1 or more"):
        sweep.best_validation({"command": "python sdft.py", "curve": [{"step": 1}]})
