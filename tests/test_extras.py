"""Tables, matrix and pictures from result files. Oracles: numbers worked out by hand; the files' own text."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "extras"))

import matrix  # noqa: E402
import plot  # noqa: E402
import tables  # noqa: E402


def test_cells():
    """Three seeds 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, t = 4.303, so half of the interval is 0.1 x 4.303 / sqrt(3) = 0.248."""
    assert tables.cell([0.1, 0.2, 0.3], "correct") == "20.0 ± 24.8 %"
    assert tables.cell([0.5], "correct") == "50.0 %" and tables.cell([12.34], "completion_tokens") == "12.3"
    assert tables.cell([None], "lenient") == "" and tables.cell([None, 0.5], "correct") == "50.0 % (1 of 2 seeds)"


def test_a_finished_run_is_recorded_and_skipped(tmp_path):
    run, file = tmp_path / "run", tmp_path / "results" / "science-seed0.json"
    run.mkdir()
    config = {"output": "somewhere", "method": "sdft", "batch_size": 8, "rollouts_per_prompt": 1, "model": str(tmp_path / "earlier" / "last")}
    (run / "results.json").write_text(json.dumps({"command": "with a path", "config": config, "seconds": 60, "parameters": 1000}))
    (run / "metrics.jsonl").write_text('{"step": 1, "kl": 0.5, "completion_tokens": 3, "seconds": 2, "grad_norm": 1, '
                                       '"prompt_tokens": 10, "teacher_prompt_tokens": 20}\n')
    matrix.write_record(run, "python sdft.py --task science", file)
    record = json.loads(file.read_text())
    assert record["command"] == "python sdft.py --task science" and record["config"]["output"] is None
    assert record["config"]["model"] == "runs/earlier/last"
    assert record["curve"] == [{"step": 1, "kl": 0.5, "completion_tokens": 3, "seconds": 2}]
    # 8 rows, 1000 parameters: the student samples and trains 13 tokens (2 + 6), the teacher reads 23 (2)
    assert record["training_flops"] == 8 * 1000 * (8 * 13 + 2 * 23)
    assert matrix.training_flops(run / "metrics.jsonl", config | {"method": "sft"}, 1000) == 8 * 1000 * 6 * 13
    assert matrix.training_flops(run / "metrics.jsonl", config | {"rollouts_per_prompt": 3}, 1000) == 3 * record["training_flops"]
    listed = subprocess.run([sys.executable, ROOT / "extras" / "matrix.py", "science", "--list", "--results", str(file.parent)],
                            capture_output=True, text=True, check=True).stdout.splitlines()[:3]
    assert [line.split(":")[0] for line in listed] == ["done   science seed 0", "to do  science seed 1", "to do  science seed 2"]


def test_the_page_shows_every_token_as_text():
    token = {"token": "<b>&", "kl": 0.7, "student": [["<i>", 0.5]], "teacher": [["\n", 0.25]]}
    rollout = {"step": 3, "id": "q<1>", "prompt": "<|im_start|>", "teacher_prompt": "x", "divergence": "forward", "skipped": 1, "tokens": [token, token]}
    page = plot.rollouts_page([rollout])
    assert page.count("&lt;b&gt;&amp;") == 2 and "<b>" not in page and "&lt;|im_start|&gt;" in page and "q&lt;1&gt;" in page
    assert page.count("t skipped") == 1 and page.count("0.70 nats") == 2 and "<script" not in page and "http" not in page


def test_colours_run_from_white_to_full():
    assert plot.colour(0) == (255, 255, 255) and plot.colour(3) == plot.colour(9) == (240, 120, 20)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match="rollouts.jsonl does not exist; give the folder of a run"):
        plot.read_lines(tmp_path / "rollouts.jsonl")


def test_one_row_for_each_method(tmp_path, monkeypatch):
    """Two seeds that are right in 0.5 and 0.7 of the questions: 60 ± 0.1 x 12.706 = 127.1 %; the base's row comes from a run's start."""
    def record(correct, drift):
        return {"test": {"n": 64, "correct": correct, "well_formed": 1.0, "finished": 1.0, "completion_tokens": 14.0, "drift_from_base": drift}}

    (tmp_path / "results").mkdir()
    for name, correct in [("science-seed0", 0.5), ("science-seed1", 0.7), ("science-sft-seed0", 0.25)]:
        run = {"command": f"python sdft.py --task science --seed {name[-1]}", "before": record(0.125, 0.0), "last": record(correct, 0.05),
               "probe": {"correct": 0.5}, "training_flops": 9.4e12}
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(run))
    (tmp_path / "results" / "base-model.json").write_text(json.dumps({"probe": {"summary": {"correct": 0.6}}}))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.methods("science", "science", "science-sft").splitlines()[2:5] == [
        "| base |  | 12.5 % | 100.0 % | 60.0 % | 0.000 | 14.0 | 0 | 32.1 / 65.5 |",
        "| SDFT, forward KL | 2 | 60.0 ± 127.1 % | 100.0 ± 0.0 % | 50.0 ± 0.0 % | 0.050 ± 0.000 | 14.0 ± 0.0 | 9 ± 0 | 70.2 / 64.5 |",
        "| science-sft | 1 | 25.0 % | 100.0 % | 50.0 % | 0.050 | 14.0 | 9 |  |"]
    assert tables.methods("science", "science").splitlines()[-1] == "- SDFT, forward KL: `python sdft.py --task science`"
    with pytest.raises(SystemExit, match="science-dft-seed.*there is none"):
        tables.methods("science", "science-dft")
