"""The house: how many files there are, how long they are, and what each may import.

Oracle: the table below; the abstract syntax trees of the files, and Python itself.
"""

import ast
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# file -> (its longest length in lines, the files of ours that it may import); each stands above
# those that it imports, so that arrows point downwards only
METHOD = ["sampling", "kl_estimators", "optim", "data", "scoring", "models"]
HOUSE = {
    "baselines": (220, ["sdft", "config", "eval", *METHOD]),
    "sdft": (300, ["config", "eval", *METHOD]),
    "config": (400, ["data", "kl_estimators", "models", "optim", "scoring"]),
    "eval": (400, ["data", "sampling", "models", "kl_estimators", "scoring"]),
    "models": (400, ["data", "sampling"]),
    "scoring": (400, []),
    "data": (400, []),
    "optim": (400, []),
    "sampling": (220, []),
    "kl_estimators": (190, []),
}


def lines(path):
    return (ROOT / path).read_text(encoding="utf-8").splitlines()


def imported(name):
    """The files of ours that a file imports anywhere in it, the first by number."""
    tree, found = ast.parse("\n".join(lines(f"{name}.py"))), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found & HOUSE.keys()


def test_ten_files_stand_at_the_top():
    assert {file.stem for file in ROOT.glob("*.py")} == HOUSE.keys() and len(HOUSE) == 10


@pytest.mark.parametrize("name", HOUSE)
def test_files_stay_short(name):
    longest, _ = HOUSE[name]
    assert len(lines(f"{name}.py")) <= longest
    assert [line for line in lines(f"{name}.py") if len(line) > 100] == []


def test_the_readme_is_read_in_one_go():
    assert len(lines("README.md")) <= 150


def test_algorithm_1_is_on_one_screen():
    [step] = [
        node
        for node in ast.parse("\n".join(lines("sdft.py"))).body
        if isinstance(node, ast.FunctionDef) and node.name == "sdft_step"
    ]
    assert step.end_lineno - step.lineno + 1 <= 50


@pytest.mark.parametrize("name", HOUSE)
def test_imports_point_downwards(name):
    _, allowed = HOUSE[name]
    assert imported(name) <= set(allowed)
    order = list(HOUSE)
    assert all(order.index(other) > order.index(name) for other in allowed)


def test_files_to_copy_need_none_of_the_others(tmp_path):
    """Each is run alone in an empty folder, isolated from this one; nothing runs at import."""
    copyable = [name for name, (_, allowed) in HOUSE.items() if not allowed]
    assert copyable == ["scoring", "data", "optim", "sampling", "kl_estimators"]
    for name in copyable:
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / f"{name}.py", tmp_path / name)
    code = "import runpy, sys; [runpy.run_path(f'{name}/{name}.py', run_name=name)"
    code += " for name in sys.argv[1:]]"
    command = [sys.executable, "-I", "-c", code, *copyable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout + done.stderr == "", done.stderr
