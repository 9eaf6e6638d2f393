"""The README's commands, as they are written, and its figures.

Oracles: the commands end, and leave the files that the next one reads, with a tiny model and few
steps; .ci/run calls programs that only note how they were called; the results files.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

import baselines
import eval as evaluation
import sdft

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
    assert len(COMMANDS) >= 7 and COMMANDS[0] == "sdft.py --task science"
    for command in COMMANDS:
        run(command, tiny_folder, server.url)
    runs = {folder.name for folder in Path("runs").iterdir()}
    assert {"science", "knowledge"} <= runs and Path("runs/science/last/config.json").exists()
    assert "science test, context none" in capsys.readouterr().out


def test_the_two_commands_for_a_fresh_machine_install_what_they_need():
    lines = [line.split("  #")[0].rstrip() for line in README.splitlines()]
    assert INSTALL + "python sdft.py --task science" in lines and INSTALL + "pytest" in lines
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


def figures(task, row, name):
    """The cells of a row of the README's table, from the results file of a task."""
    runs = json.loads((ROOT / "results" / f"{task}.json").read_text())["runs"]
    [before] = {run["before"][row][name] for run in runs}
    after = ", ".join(f"{100 * run['last'][row][name]:.1f}" for run in runs)
    return f"| {runs[0]['last'][row]['n']} | {100 * before:.1f} % | {after} % |"


def test_the_readmes_table_holds_the_figures_of_the_results_files():
    sets = {
        "science": ("test", "new stems"),
        "knowledge": ("held-out wordings", "indirect (OOD)"),
    }
    for task, (test, other) in sets.items():
        for row, name in ((test, "correct"), (test, "finished"), (other, "correct")):
            assert figures(task, row, name) in README


def test_the_readmes_preflight_is_that_of_the_results_file():
    runs = json.loads((ROOT / "results" / "science.json").read_text())["runs"]
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
