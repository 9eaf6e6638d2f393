"""The README's commands, as they are written, and its figures.

Oracles: the commands end, and leave the files that the next one reads, with a tiny model and few
steps; .ci/run calls programs that only note how they were called; the results files, the samples
and the stored answers.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from statistics import mean

import plot
import pytest
from analysis import drift_at, drift_for_good, read_stored
from conftest import ROOT

import baselines
import eval as evaluation
import sdft
from data import load_task, teacher_messages

README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = "pip install -r requirements.txt && "
# each line of a code block that calls one of our scripts, without the installation and the remark
COMMANDS = re.findall(
    rf"^(?:{re.escape(INSTALL)})?python (?!extras)(.*?)(?: {{2,}}#.*)?$", README, re.M
)
SHORT = "--steps 2 --batch-size 2 --eval-examples 2 --general-tokens 4 --max-new-tokens 6 --force"
LONG_PROMPTS = "--max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500"  # bytes are the tokens


def run(command, tiny_folder, url):
    """One command; only what makes it short and offline is added to its words."""
    script, *words = shlex.split(command)
    if "FOLDER" in words:
        samples = ROOT / "samples" / words[words.index("--task") + 1]
        words = [str(samples) if word == "FOLDER" else word for word in words]
    places = {"MODEL": str(tiny_folder), "URL": url}
    words = [places.get(word, word) for word in words]
    main = {"sdft.py": sdft.main, "baselines.py": baselines.main, "eval.py": evaluation.main}[
        script
    ]
    if script == "eval.py":
        words += ["--limit", "2", "--max-new-tokens", "4"]
    elif "--resume" not in words:
        words += ["--preset", "laptop", *shlex.split(f"{SHORT} {LONG_PROMPTS}")]
        words += [] if "--model" in words else ["--model", str(tiny_folder)]
    main(words)


def test_the_readmes_commands_run_in_order(tiny_folder, tmp_path, monkeypatch, capsys, server):
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) >= 7 and COMMANDS[0] == "sdft.py --task science --preset laptop"
    for command in COMMANDS:
        run(command, tiny_folder, server.url)
    runs = {folder.name for folder in Path("runs").iterdir()}
    assert {"science", "knowledge"} <= runs and Path("runs/science/last/config.json").exists()
    assert "science test, context none" in capsys.readouterr().out


def test_the_two_commands_for_a_fresh_machine_install_what_they_need():
    lines = [line.split("  #")[0].rstrip() for line in README.splitlines()]
    assert INSTALL + "python sdft.py --task science --preset laptop" in lines
    assert INSTALL + "pytest" in lines
    assert (ROOT / "requirements.txt").exists()


@pytest.mark.parametrize("failing", [None, "pip", "pytest", "ruff"])
def test_ci_runs_the_readmes_test_command_in_a_new_environment(failing, tmp_path):
    """python3 -m venv FOLDER makes an environment whose programs note their call, or fail."""
    calls = tmp_path / "calls"
    note = f"#!/bin/bash\necho $(basename $0) $* >> {calls}\n[ $(basename $0) != {failing} ]\n"
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/bash\nmkdir -p "$3/bin"\nfor p in pip pytest ruff; do cp {python.parent}/note '
        '"$3/bin/$p"; done\n'
    )
    (python.parent / "note").write_text(note)
    for program in python.parent.iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True)
    expected = ["pip install -r requirements.txt", "pytest", "ruff check", "ruff format --check"]
    last = {None: 4, "pip": 1, "pytest": 2, "ruff": 3}[failing]
    assert calls.read_text().splitlines() == expected[:last], done.stderr
    assert (done.returncode == 0) == (failing is None), done.stderr


# ---- figures ----


def runs_of(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())["runs"]


def figures(name, rival, row, measure):
    """The cells of a row of the README's table, from the results files of SDFT and of SFT."""
    runs = runs_of(name)
    [before] = {run["before"][row][measure] for run in runs}
    cells = [str(runs[0]["last"][row]["n"]), f"{100 * before:.1f} %"]
    for record in (runs, runs_of(rival)):
        cells.append(", ".join(f"{100 * run['last'][row][measure]:.1f}" for run in record) + " %")
    return f" | {' | '.join(cells)} |"


def ends(name):
    """What a model ends with: the cells of test set, drift and everyday questions."""
    last = [run["last"] for run in runs_of(name)]
    right = ", ".join(f"{100 * run['test']['correct']:.1f}" for run in last)
    drift = ", ".join(f"{run['test']['drift_from_base']:.3f}" for run in last)
    kept = ", ".join(f"{100 * run['probe']['correct']:.0f}" for run in last)
    return f"{right} %", drift, f"{kept} %"


def test_the_readmes_first_table_holds_the_figures_of_the_results_files():
    for label, name in (
        ("SDFT, 2e-6", "qwen-science-2e-6"),
        ("SFT, 2e-6", "qwen-science-sft-2e-6"),
        ("SDFT, 5e-5", "science"),
        ("SFT, 2e-5", "science-sft-longer"),
        ("SFT at 3e-5, then re-invocation", "science-reinvoke"),
    ):
        assert f"| {' | '.join((label, *ends(name)))} |" in README
    for label, name in (
        ("**Qwen2.5-Coder-0.5B**, before", "qwen-science-2e-6"),
        ("**SmolLM2-135M**, before", "science"),
    ):
        before = runs_of(name)[0]["before"]
        right, kept = (100 * before[row]["correct"] for row in ("test", "probe"))
        assert f"| {label} | {right:.1f} % | 0 | {kept:.0f} % |" in README


def test_the_readmes_second_table_holds_the_figures_of_the_results_files():
    for row, measure in (("test", "finished"), ("new stems", "correct")):
        assert figures("science", "science-sft-longer", row, measure) in README
    for row, measure in (
        ("held-out wordings", "correct"),
        ("held-out wordings", "finished"),
        ("indirect (OOD)", "correct"),
    ):
        assert figures("knowledge", "knowledge-sft", row, measure) in README


def mean_drift(name, rule, accuracy):
    """Mean over the seeds of a run that have such a drift; analysis.py is tested by hand."""
    found = [rule(run, accuracy) for run in runs_of(name)]
    return mean(drift for drift in found if drift is not None)


def ratio(name, rule, accuracy):
    """Drift of a run of science over that of SFT's 80 steps, at equal accuracy."""
    sft = mean_drift("science-sft-longer", rule, accuracy)
    return f"{mean_drift(name, rule, accuracy) / sft:.2f}"


def test_the_readmes_drifts_are_those_of_the_results_files():
    """For and against: each figure in its sentence, with lines joined."""
    text = " ".join(README.split())
    first = [ratio("science", drift_at, level) for level in (0.7, 0.8)]
    stays = [ratio("science", drift_for_good, level) for level in (0.7, 0.8)]
    assert f"first passes 70 and 80 % at {' and '.join(first)} times the drift of SFT" in text
    assert f"passes them for good at {' and '.join(stays)} times" in text
    ours, chosen, lowest = (
        mean_drift(f"adapters-science-{name}", drift_at, 0.7)
        for name in ("5e-4", "sft-2e-4", "sft-1e-4")
    )
    assert (
        f"SDFT passes 70 % at {ours / chosen:.2f} of SFT's drift, and at {ours / lowest:.2f} of"
        in text
    )
    (facts, kept), (same, lost) = (
        [
            ", ".join(f"{100 * run['last'][row]['correct']:.0f}" for run in runs_of(name)) + " %"
            for row in ("held-out wordings", "probe")
        ]
        for name in ("adapters-knowledge-1e-3", "adapters-knowledge-sft-5e-4")
    )
    assert (
        f"ends at {facts} of held-out wordings and leaves {kept} of the everyday questions "
        f"(45 before), SFT at 5e-4 (one) at {same} and {lost} ("
    ) in text
    plain = ratio("science-plain", drift_at, 0.7)
    own_words = ratio("science-unmasked", drift_at, 0.7)
    assert f"SDFT passes 70 % at {plain} times SFT's drift" in text
    assert f"with the tuned sentence and no mask at {own_words}." in text

    [rival] = runs_of("science-reinvoke")
    [started_from] = [run for run in runs_of("science-sft") if run["seed"] == rival["seed"]]
    flops = rival["training_flops"] + started_from["training_flops"]
    own = runs_of("science")[0]["training_flops"]
    assert f"({flops * 1e-12:.0f} TFLOP against {own * 1e-12:.0f})" in text

    chosen = [r for r in runs_of("tries-science-dft-longer") if r["point"]["learning-rate"] == 3e-5]
    assert f"every validation question at a drift of {drift_at(chosen[0], 1.0):.3f}" in text
    forgotten = [
        ", ".join(f"{100 * run['last']['probe']['correct']:.0f}" for run in record)
        for record in (
            runs_of("knowledge"),
            [run for run in runs_of("knowledge-sft-5e-5") if "probe" in run["last"]],
        )
    ]
    sentence = "after learning facts SDFT is down to {} % (SFT at 5e-5 to {} %)"
    assert sentence.format(*forgotten) in text


def test_the_readmes_drifts_of_the_larger_model_are_those_of_the_results_files():
    text = " ".join(README.split())

    def ratios(rate):
        names = f"qwen-science-{rate}", "qwen-science-sft" + f"-{rate}" * (rate != "5e-6")
        drifts = [[mean_drift(name, drift_at, level) for name in names] for level in (0.7, 0.9)]
        return " and ".join(f"{sdft / sft:.2f}" for sdft, sft in drifts)

    assert f"passes 70 and 90 % at {ratios('2e-6')} of SFT's drift" in text
    assert f"At 5e-6, two seeds of each, it passes them at {ratios('5e-6')} of it" in text
    [fast] = runs_of("qwen-science")
    assert f"leaves {100 * fast['last']['probe']['correct']:.0f} % of the everyday" in text


def test_the_readmes_figures_of_the_thick_lines_are_those_of_the_picture():
    """Of the files that the command in docs/results.md draws."""
    command = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    command = re.search(r"plot\.py frontiers (.*?)--output", command, re.DOTALL)[1]
    files = [ROOT / word for word in command.replace("\\", " ").split()]
    records = [plot.read_record(file, "frontiers") for file in files]
    methods = plot.recipes(records)["smollm2"]
    sdft, sft = (
        {round(level, 3): drift for drift, level in plot.frontier(methods[name])}
        for name in ("sdft", "sft")
    )
    found = {level: f"{sdft[level] / sft[level]:.2f}" for level in (0.4, 0.7, 0.8, 0.9)}
    text = " ".join(README.split())
    assert (
        f"thick line has {found[0.7]}, {found[0.8]} and {found[0.9]} of SFT's drift at 70, 80 and "
        f"90 %, and {found[0.4]} at 40 %"
    ) in text
    [slowest] = [
        run for run in runs_of("tries-science-sft-longer") if run["point"]["learning-rate"] == 1e-5
    ]
    slow = [
        f"{mean_drift('science', drift_at, level) / drift_at(slowest, level):.2f}"
        for level in (0.4, 0.5, 0.6, 0.7)
    ]
    assert f"{', '.join(slow[:3])} and {slow[3]} times its drift at 40, 50, 60 and 70 %" in text


def test_the_readmes_example_is_in_the_samples_and_in_the_stored_answers():
    text = " ".join(README.split())
    example = load_task("science", "train")[0]
    assert f"demonstration {example.demonstration}" in text
    turns = teacher_messages(example, "demonstration", "own-words")
    shown = " ".join(f"({turn['role']}) {turn['content']}" for turn in turns)
    assert f"teacher's prompt {' '.join(shown.split())}" in text
    stored = read_stored(ROOT / "results" / "answers" / "science-seed0.jsonl.gz")
    for when, label in (("before", "before"), ("last", "after")):
        assert f"{label} {stored[when, 'test']['hexyne']}" in text
    assert f'"{stored["last", "test"]["tetradecanamine"]}" counts' in text


def test_the_readmes_preflight_is_that_of_the_results_file():
    runs = runs_of("science")
    for key in ("student", "teacher"):
        [scores] = {
            f"{s['correct']:.1%} right, {s['well_formed']:.1%} well formed, {s['finished']:.1%}"
            for s in (run["preflight"][key] for run in runs)
        }
        assert f"  {key}      {scores} ended" in README
    [kl] = {f"{run['preflight']['kl_teacher_student']:.2f}" for run in runs}
    assert f"KL(teacher || student) = {kl} nats a token" in README


def test_links_lead_to_files():
    """Relative links of the README and of each document; anchors are left out."""
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
    for document in documents:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.smollm2
def test_the_first_command_with_the_built_in_model(tmp_path, monkeypatch, capsys):
    """The preflight finds that the teacher can do what the student cannot."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(COMMANDS[0])[1:] + ["--steps", "1", "--eval-examples", "8"]
    sdft.main([*words, "--general-tokens", "4", "--keep-last", "0"])
    printed = capsys.readouterr().out
    assert "go: with its context the model can do what it cannot do alone" in printed
    assert "weights: runs/science/last" in printed
