"""The README's commands, as they are written, with a tiny model and few steps.

Oracle: they end, and leave the files that the next command reads.
"""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

import baselines
import eval as evaluation
import sdft

COMMANDS = re.findall(
    r"^python (?!extras)(.*?)(?: {2,}#.*)?$", (ROOT / "README.md").read_text(), re.M
)
SHORT = "--steps 2 --batch-size 2 --eval-examples 2 --general-tokens 4 --max-new-tokens 6 --force"
LONG_PROMPTS = "--max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500"  # bytes are the tokens


def run(command, tiny_folder, url):
    """One command; only what makes it short and offline is added to its words."""
    script, *words = shlex.split(command)
    samples = "medical" if "medical" in words else "knowledge"
    places = {"FOLDER": str(ROOT / "samples" / samples), "MODEL": str(tiny_folder), "URL": url}
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
    assert len(COMMANDS) >= 6 and COMMANDS[0] == "sdft.py --task science"
    for command in COMMANDS:
        run(command, tiny_folder, server.url)
    runs = {folder.name for folder in Path("runs").iterdir()}
    assert {"science", "knowledge"} <= runs and Path("runs/science/last/config.json").exists()
    assert "science test, context none" in capsys.readouterr().out


@pytest.mark.smollm2
def test_the_first_command_with_the_built_in_model(tmp_path, monkeypatch, capsys):
    """The preflight finds that the teacher can do what the student cannot."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(COMMANDS[0])[1:] + ["--steps", "1", "--eval-examples", "8"]
    sdft.main([*words, "--general-tokens", "4", "--keep-last", "0"])
    printed = capsys.readouterr().out
    assert "go: with its context the model can do what it cannot do alone" in printed
    assert "weights: runs/science/last" in printed
