"""Optional packages: where one is missing, its command ends in one line that says what to install.

Oracles: the lines, written out here, and requirements-extras.txt. Each command runs in a process of
its own in which the package cannot be imported.
"""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

WITHOUT = """
import os, runpy, sys
sys.modules[sys.argv[1]] = None
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ALL = "pip install -r requirements-extras.txt"
CASES = [
    (
        "matplotlib",
        "plot.py trade-off {root}/results/science.json --output picture.png",
        "error: PNG files need matplotlib: pip install matplotlib",
    ),
    ("matplotlib", "toy.py --png toy.png", "--png needs matplotlib: pip install matplotlib"),
    (
        "pyarrow",
        "convert.py table.parquet folder",
        "error: table.parquet is in Parquet format; pip install pyarrow, then run this again",
    ),
    (
        "lm_eval",
        "analysis.py prior --model smollm2",
        f"error: this needs the evaluation harness lm-eval; {ALL}",
    ),
    (
        "lm_eval",
        "prior_tasks.py folder --ifeval input_data.jsonl",
        f"error: this needs lm-eval: {ALL}",
    ),
    ("trl", "to_trl.py --train folder", "error: training needs TRL: pip install trl==1.16.0"),
    (
        "openai",
        "questions.py {root}/samples/articles --output folder --url http://127.0.0.1:1 --model m",
        "error: a server is asked through the package openai; pip install -U openai",
    ),
]


@pytest.mark.parametrize(("package", "command", "line"), CASES)
def test_a_missing_package_is_one_line(package, command, line, tmp_path):
    (tmp_path / "table.parquet").touch()
    script, *flags = command.format(root=ROOT).split()
    words = [sys.executable, "-c", WITHOUT, package, ROOT / "extras" / script, *flags]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [line]
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_what_a_line_asks_for_is_pinned():
    pins = re.findall(
        r"^([\w-]+)(?:\[\w+\])?==", (ROOT / "requirements-extras.txt").read_text(), re.M
    )
    assert {package.replace("_", "-") for package, *_ in CASES} <= set(pins)
    assert "trl==1.16.0" in (ROOT / "requirements-extras.txt").read_text()
