"""The house: which file may import which, and what can be copied out of it.

Oracle: the tables below; the abstract syntax trees of the files, and Python itself. Each check is
also run on a copy of the house with one violation planted, which it must name.
"""

import ast
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# file -> the files of ours that it may import. Each stands above those that it imports, so that
# arrows point downwards only.
HOUSE = {
    "baselines": """sdft support.run support.preflight config eval support.models
        support.checkpoint data optim sampling kl_estimators scoring support.chat
        support.console""",
    "sdft": """support.run support.preflight config support.models support.checkpoint data optim
        sampling kl_estimators scoring support.console support.watch lora""",
    "support.run": """config eval support.plan support.judge support.checkpoint support.models data
        sampling support.chat support.tables support.watch lora""",
    "support.preflight": "eval data sampling scoring support.chat support.watch",
    "support.watch": "data sampling kl_estimators support.chat",
    "config": """support.checkpoint support.judge support.models support.plan data
        kl_estimators support.chat""",
    "eval": """support.judge support.models data sampling kl_estimators scoring support.chat
        support.tables support.console lora""",
    "support.plan": "support.checkpoint data optim sampling kl_estimators lora",
    "support.judge": "support.server scoring",
    "support.checkpoint": "support.models support.adapters lora",
    "support.models": "sampling support.chat support.smollm2 support.adapters",
    "support.adapters": "lora",
    "data": "support.chat",
    "support.server": "",
    "support.smollm2": "",
    "support.chat": "",
    "support.tables": "",
    "support.console": "",
    "support": "",
    "scoring": "",
    "optim": "",
    "lora": "",
    "sampling": "",
    "kl_estimators": "",
}


def name_of(file):
    """support/run.py -> support.run; support/__init__.py -> support."""
    parts = file.with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def house_files(root):
    files = [*root.glob("*.py"), *(root / "support").glob("*.py")]
    return sorted(file.relative_to(root) for file in files)


def outbuildings(root):
    return sorted(
        file.relative_to(root)
        for part in ("extras", "benchmarks")
        for file in root.glob(f"{part}/*.py")
    )


def imports_of(node):
    """The modules that an import statement may name; of `from support import run` both forms."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = ".".join(filter(None, ["support" * (node.level > 0), node.module]))
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return []


def loads_by_hand(tree):
    """What changes the path, or loads a file, past the import statement: [(name, line)]."""
    forbidden = {"runpy", "import_module", "__import__", "spec_from_file_location", "exec_module"}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            of_sys = isinstance(node.value, ast.Name) and node.value.id == "sys"
            names = ["sys.path" if of_sys and node.attr == "path" else node.attr]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [part for name in imports_of(node) for part in (name, name.split(".")[-1])]
        found += [(name, node.lineno) for name in names if name in forbidden | {"sys.path"}]
    return sorted(set(found), key=lambda pair: pair[1])


def violations(root):
    """Every line that breaks a rule of the house, as "file: what"."""
    ours = {name_of(file) for file in house_files(root)}
    above = {file.stem for file in outbuildings(root)} | {"extras", "benchmarks"}
    found = []
    for file in house_files(root):
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        if name_of(file) not in HOUSE:
            found.append(f"{file}: has no row in the table of the house")
            continue
        allowed = {*HOUSE[name_of(file)].split()}
        for node in ast.walk(tree):
            named = set(imports_of(node))
            modules = (named & ours) - {"support"} if len(named) > 1 else named & ours
            if not_allowed := modules - allowed:
                found.append(f"{file}: may not import {', '.join(sorted(not_allowed))}")
            if modules and node not in tree.body:
                found.append(f"{file}: imports late: {', '.join(sorted(modules))}")
            if outside := {name.split(".")[0] for name in named if name not in ours} & above:
                found.append(
                    f"{file}: extras and benchmarks stand above it: {', '.join(sorted(outside))}"
                )
        found += [f"{file}: loads files by hand: {name}" for name, _ in loads_by_hand(tree)]
    for file in outbuildings(root):
        text = (root / file).read_text(encoding="utf-8")
        found += [f"{file}: {what}" for what in by_hand_beside_the_root(ast.parse(text))]
    return sorted(found)


HERE = "Path(__file__).resolve().parent.parent"


def by_hand_beside_the_root(tree):
    """A script of extras/ or benchmarks/ may put the repository's root on the path, once."""
    written = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    lines = [f"sys.path.insert(0, str({HERE}))"]
    if f"ROOT = {HERE}" in written:
        lines.append("sys.path.insert(0, str(ROOT))")
    right = sum(written.count(line) for line in lines)
    by_hand = [name for name, _ in loads_by_hand(tree)]
    found = [f"loads files by hand: {name}" for name in by_hand if name != "sys.path"]
    if by_hand.count("sys.path") > min(right, 1):
        found.append("only the one line that adds the repository's root may change sys.path")
    return found


def test_arrows_point_downwards_and_nothing_is_loaded_by_hand():
    assert violations(ROOT) == []
    order = list(HOUSE)
    for name, allowed in HOUSE.items():
        assert all(order.index(other) > order.index(name) for other in allowed.split()), name


PLANTED = [  # file, a line at its end, what is said of it
    ("sampling.py", "import scoring", "may not import scoring"),
    ("optim.py", "from support.plan import fits", "may not import support.plan"),
    ("support/chat.py", "from support import models", "may not import support.models"),
    ("support/chat.py", "from .models import load_model", "may not import support.models"),
    ("support/tables.py", "import support.run as run", "may not import support.run"),
    ("data.py", "import torch, eval", "may not import eval"),
    ("support/plan.py", "def f():\n    import optim", "imports late: optim"),
    ("sdft.py", "if sys:\n    from config import Config", "imports late: config"),
    (
        "config.py",
        "def f():\n    from support import checkpoint",
        "imports late: support.checkpoint",
    ),
    ("eval.py", "from analysis import pass_at_k", "extras and benchmarks stand above it: analysis"),
    ("eval.py", "import extras.plot", "extras and benchmarks stand above it: extras"),
    ("eval.py", "import common", "extras and benchmarks stand above it: common"),
    ("sdft.py", "sys.path.append('.')", "loads files by hand: sys.path"),
    ("sdft.py", "from sys import path", "loads files by hand: sys.path"),
    ("support/run.py", "import runpy", "loads files by hand: runpy"),
    ("support/run.py", "from runpy import run_path", "loads files by hand: runpy"),
    ("scoring.py", "import importlib\nimportlib.import_module('x')", "by hand: import_module"),
    ("scoring.py", "from importlib import import_module", "by hand: import_module"),
    ("support/models.py", "__import__('torch')", "loads files by hand: __import__"),
    ("support/new.py", "", "has no row in the table of the house"),
    ("extras/plot.py", "sys.path.insert(0, str(ROOT / 'tests'))", "only the one line"),
    ("extras/plot.py", f"sys.path.insert(0, str({HERE}))", "only the one line"),
    ("extras/new.py", "import sys\nsys.path.insert(0, str(ROOT))", "only the one line"),
    ("benchmarks/common.py", "import runpy", "loads files by hand: runpy"),
]


@pytest.mark.parametrize("file, line, message", PLANTED)
def test_a_planted_violation_is_found(file, line, message, tmp_path):
    for part in ("support", "extras", "benchmarks"):
        (tmp_path / part).mkdir()
    for own in [*house_files(ROOT), *outbuildings(ROOT)]:
        shutil.copy(ROOT / own, tmp_path / own)
    before = violations(tmp_path)
    with open(tmp_path / file, "a", encoding="utf-8") as opened:
        opened.write(f"\n{line}\n")
    [new] = [found for found in violations(tmp_path) if found not in before]
    assert new.startswith(f"{file}: ") and message in new


@pytest.mark.parametrize(
    "file, line",
    [
        ("support/plan.py", "def f():\n    import trl"),  # outside packages may come late
        ("extras/new.py", f"import sys\nsys.path.insert(0, str({HERE}))\nimport sdft, plot"),
        ("benchmarks/new.py", f"import sys\nROOT = {HERE}\nsys.path.insert(0, str(ROOT))"),
        ("extras/new.py", "import importlib.util\nimportlib.util.find_spec('trl')"),
        ("sdft.py", "import os.path\nprint(run.path)"),
    ],
)
def test_what_is_allowed_is_not_found(file, line, tmp_path):
    for part in ("support", "extras", "benchmarks"):
        (tmp_path / part).mkdir()
    (tmp_path / "sdft.py").touch()
    (tmp_path / file).write_text(line, encoding="utf-8")
    assert violations(tmp_path) == []


# ---- files to copy ----

COPIES = {  # the files that work alone in an empty folder -> what they need: S is the library alone
    "scoring.py": "-IS",
    "data.py support/__init__.py support/chat.py": "-IS",
    "optim.py": "-I",
    "lora.py": "-I",
    "sampling.py": "-I",
    "kl_estimators.py": "-I",
}


def import_alone(files, options, folder, more=""):
    """Import the first of the files from a folder that holds them and nothing else."""
    for file in files.split():
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    first = files.split()[0]
    with open(folder / first, "a", encoding="utf-8") as opened:
        opened.write(f"\n{more}\n")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import {first.removesuffix('.py')}"
    command = [sys.executable, options, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("files", COPIES)
def test_files_to_copy_need_none_of_the_others(files, tmp_path):
    """Isolated from this repository; nothing is printed at import."""
    done = import_alone(files, COPIES[files], tmp_path)
    assert done.returncode == 0 and done.stdout + done.stderr == "", done.stderr


@pytest.mark.parametrize(
    "files, more, message",
    [
        ("scoring.py", "import data", "No module named 'data'"),
        ("scoring.py", "import torch", "No module named 'torch'"),
        ("data.py", "", "No module named 'support'"),
        ("data.py support/__init__.py support/chat.py", "import support.run", "'support.run'"),
    ],
)
def test_a_copy_that_needs_more_is_found(files, more, message, tmp_path):
    done = import_alone(files, "-IS", tmp_path, more)
    assert done.returncode != 0 and message in done.stderr


# ---- what a reader sees at once ----


def screen_lines(source):
    """Lines of Algorithm 1: sdft_step, and the two functions that it calls."""
    functions = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    return sum(functions[name] for name in ("sdft_step", "sample_batch", "update"))


def test_algorithm_1_is_on_one_screen():
    source = (ROOT / "sdft.py").read_text(encoding="utf-8")
    assert screen_lines(source) <= 60
    longer = source.replace("    grad_norm = clip", "\n" * 60 + "    grad_norm = clip")
    assert screen_lines(longer) == screen_lines(source) + 60


def wide_lines(text):
    return [line for line in text.splitlines() if len(line) > 100]


def test_lines_have_at_most_100_columns():
    files = [*house_files(ROOT), *outbuildings(ROOT)]
    files += [*ROOT.glob("tests/*.py"), *ROOT.glob("samples/make/*.py")]
    for file in files:
        assert wide_lines((ROOT / file).read_text(encoding="utf-8")) == [], file
    assert wide_lines("x" * 100 + "\n" + "y" * 101) == ["y" * 101]
