"""A run killed at random moments ends in the bits of the run that was never stopped.

Oracle: the unbroken run. This file is also the script that the test starts: one thread, as the same
bits need the same number of them, and a fork for each run, which is killed with SIGKILL.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import sdft
from support.checkpoint import list_checkpoints

KILLS = int(os.environ.get("KILLS", 3))  # of each kind of run
STEPS = 10
FLAGS = (
    f"--force --task science --preset laptop --steps {STEPS} --batch-size 2 --max-new-tokens 6 "
    "--max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500 "
    "--eval-examples 2 --general-tokens 4 --eval-every 5 --save-every 2 --learning-rate 1e-3"
).split()


ADAPTERS = "--lora-rank 4 --gradient-checkpointing --dtype bfloat16"
FILES = {
    "": {"student/model.safetensors", "teacher/model.safetensors"},
    ADAPTERS: {"student/adapter_model.safetensors", "teacher/adapter_model.safetensors"},
}


@pytest.mark.parametrize("more_flags", FILES)
def test_killed_runs_end_in_the_same_bits(more_flags, tiny_folder, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["MORE_FLAGS"] = more_flags
    command = [sys.executable, __file__, str(tiny_folder), str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    killed_runs = sorted(tmp_path.glob("killed-*"))
    whole = tmp_path / "whole" / f"checkpoint-{STEPS:06d}"
    names = {str(file.relative_to(whole)) for file in whole.rglob("*.safetensors")}
    assert killed_runs and names >= FILES[more_flags]
    for folder in killed_runs:
        for name in names:  # optimiser, and in bfloat16 remainders, too
            expected, found = (load_file(run / name) for run in (whole, folder / whole.name))
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected), name
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
        assert "last" in json.loads((folder / "results.json").read_text())


def main(model, scratch):
    """The unbroken run, then killed ones, until there were KILLS kills, one after a checkpoint."""
    torch.set_num_threads(1)
    more = os.environ["MORE_FLAGS"].split()
    flags, rng = [*FLAGS, *more, "--model", model, "--output"], random.Random(0)
    kills, number = [], 0
    run([*flags, str(scratch / "warm-up")])
    started = time.perf_counter()
    run([*flags, str(scratch / "whole")])
    whole = time.perf_counter() - started
    while True:
        folder = scratch / f"killed-{number}"
        if list_checkpoints(folder):
            arguments = ["--resume", str(folder)]
        else:
            if folder.exists():  # killed before its first checkpoint: it begins anew
                folder.rename(scratch / f"begun-{len(kills)}")
            arguments = [*flags, str(folder)]
        enough = len(kills) >= KILLS and any(kills)
        if not run(arguments, None if enough else rng.random() * whole):
            kills.append(len(list_checkpoints(folder)))
        elif enough:
            break
        else:
            number += 1  # it ended before its kill


def run(arguments, kill_after=None):
    """sdft.main in a fork; False if SIGKILL came before its end."""
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            sdft.main(arguments)
        except BaseException:
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # an ended child waits as a zombie, so the id is its own
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, f"the run failed: {' '.join(arguments)}"
    return True


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
