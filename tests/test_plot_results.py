"""Pictures of several runs. Oracles: made-up numbers with results worked out by hand; matplotlib's own lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "extras"))

import plot_results  # noqa: E402


def summary(correct, drift=None):
    return {"correct": correct} | ({} if drift is None else {"drift_from_base": drift})


RUN = {"preflight": {"student": summary(0.1)}, "before": {"trained wordings": summary(0.0, 0.01), "held-out wordings": summary(0.0, 0.01)}, "last": {"trained wordings": summary(0.9, 0.4), "held-out wordings": summary(0.5, 0.4)},
       "curve": [{"step": 1}, {"step": 5, "validation": summary(0.2, 0.15)}, {"step": 9, "validation": summary(0.3)},
                 {"step": 10, "validation": summary(0.4, 0.3)}]}


def sequence_record(science, medical):
    """Accuracies of two tasks before, at step 5 and at the ends of two stages, steps 10 and 30."""
    def scores(i):
        return {"science, test": summary(science[i]), "medical, test": summary(medical[i]), "probe": summary(0.3)}
    return {"tasks": ["science", "medical"], "before": scores(0), "accuracy": [],
            "evaluations": [{"stage": stage, "step": step, "scores": scores(i)} for i, (stage, step) in enumerate([(1, 5), (1, 10), (2, 30)], start=1)]}


SEQUENCES = {"sdft": sequence_record([0.2, 0.3, 0.6, 0.5], [0.4, 0.4, 0.3, 0.4]), "sft": sequence_record([0.2, 0.4, 0.4, 0.1], [0.4, 0.3, 0.3, 0.2])}
PASS = {"summary": {"n": 3, "samples": 8, "pass@1": 0.25, "pass@2": 0.5, "pass@8": 0.75, "pass@4": 0.625}}


@pytest.fixture
def folder(tmp_path):
    for name, record in [("science-seed0.json", RUN | {"probe": summary(0.6)}), ("science-seed12.json", RUN), ("science-sft-seed0.json", RUN),
                         ("sdft/sequence.json", SEQUENCES["sdft"]), ("sft-seed3/sequence.json", SEQUENCES["sft"]), ("base.json", PASS)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(record))
    return tmp_path


def test_names_and_seeds_come_from_files_and_folders(folder):
    read = {file: plot_results.read_run(folder / file, picture)[:2] for file, picture in [
        ("science-sft-seed0.json", "trade-off"), ("science-seed12.json", "trade-off"), ("sdft/sequence.json", "sequence"),
        ("sft-seed3/sequence.json", "sequence"), ("base.json", "pass-at-k")]}
    assert list(read.values()) == [("science-sft", 0), ("science", 12), ("sdft", 0), ("sft", 3), ("base", 0)]


@pytest.mark.parametrize("file, picture", [("base.json", "trade-off"), ("base.json", "sequence"), ("science-seed0.json", "pass-at-k")])
def test_other_files_are_named(file, picture, folder):
    with pytest.raises(ValueError, match=f"{file} has nothing for {picture}"):
        plot_results.read_run(folder / file, picture)
    with pytest.raises(ValueError, match="missing.json cannot be read"):
        plot_results.read_run(folder / "missing.json", picture)


def test_trade_off_has_the_base_at_its_start_and_only_what_was_measured():
    assert plot_results.trade_off(RUN) == {"validation": [(0.1, 0.01), (0.2, 0.15), (0.4, 0.3)], "test": [(0.5, 0.4)]}
    without = RUN | {"curve": [{"step": 9, "validation": summary(0.3)}], "probe": summary(0.6)}
    assert plot_results.trade_off(without) == {"test": [(0.5, 0.4)], "probe": [(0.5, 0.6)]}


def test_curves_are_normalised_by_the_best_of_any_method():
    """science: base 0.2, best 0.6 (sdft), so sft's 0.4 is 0.5 and its 0.1 is -0.25; medical: no method is above the base."""
    sdft, sft = plot_results.sequence_curves(list(SEQUENCES.values()))
    assert [step for step, _ in sdft["science"]] == [0, 5, 10, 30]
    assert [value for _, value in sdft["science"]] == pytest.approx([0, 0.25, 1, 0.75])
    assert [value for _, value in sft["science"]] == pytest.approx([0, 0.5, 0.5, -0.25])
    assert [value for _, value in sdft["medical"] + sft["medical"]] == [None] * 8
    assert plot_results.stage_ends(SEQUENCES["sdft"]) == [(10, "science"), (30, "medical")]


def test_pass_at_k_by_k():
    assert plot_results.pass_curve(PASS) == [(1, 0.25), (2, 0.5), (4, 0.625), (8, 0.75)]


# ---- with matplotlib ----

def drawn(ax):
    """{label: [(x, y), …]} of the lines that have a label."""
    return {line.get_label(): list(zip(*line.get_data())) for line in ax.get_lines() if not line.get_label().startswith("_")}


def figure_of(picture, files, folder):
    pytest.importorskip("matplotlib").use("Agg")
    return plot_results.PICTURES[picture]([plot_results.read_run(folder / file, picture) for file in files])


def test_trade_off_is_drawn(folder):
    figure = figure_of("trade-off", ["science-seed0.json", "science-seed12.json", "science-sft-seed0.json"], folder)
    validation, test, probe = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["science, seed 0", "science, seed 12", "science-sft, seed 0"]
    assert drawn(validation) == {"science, seed 0": [(0.4, 0.3)], "science, seed 12": [(0.4, 0.3)], "science-sft, seed 0": [(0.4, 0.3)]}
    assert sum(list(line.get_xdata()) == [0.1, 0.2, 0.4] for line in validation.get_lines()) == 3
    assert drawn(test)["science-sft, seed 0"] == [(0.5, 0.4)] and drawn(probe) == {"science, seed 0": [(0.5, 0.6)]}
    looks = {line.get_label(): (line.get_color(), line.get_marker()) for line in test.get_lines()}
    assert looks["science, seed 0"][0] == looks["science, seed 12"][0] != looks["science-sft, seed 0"][0]
    assert looks["science, seed 0"][1] == looks["science-sft, seed 0"][1] != looks["science, seed 12"][1]
    assert validation.yaxis_inverted() and not probe.yaxis_inverted()       # up is less forgetting


def test_sequences_are_drawn(folder):
    sdft, sft = figure_of("sequence", ["sdft/sequence.json", "sft-seed3/sequence.json"], folder).axes
    assert (sdft.get_title(), sft.get_title()) == ("sdft, seed 0", "sft, seed 3")
    steps, values = zip(*drawn(sft)["science"])
    assert steps == (0, 5, 10, 30) and values == pytest.approx((0, 0.5, 0.5, -0.25))
    assert drawn(sft)["medical: no method above the base"] == []


def test_pass_at_k_is_drawn(folder):
    [ax] = figure_of("pass-at-k", ["base.json"], folder).axes
    assert drawn(ax) == {"base": [(1, 0.25), (2, 0.5), (4, 0.625), (8, 0.75)]} and ax.get_xscale() == "log"


def test_command_line(folder):
    pytest.importorskip("matplotlib")
    command = [sys.executable, ROOT / "extras" / "plot_results.py", "pass-at-k", folder / "base.json", "--output", folder / "pass.png"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(folder / "pass.png")
    assert (folder / "pass.png").read_bytes().startswith(b"\x89PNG") and Path(folder / "pass.png").stat().st_size > 5000
