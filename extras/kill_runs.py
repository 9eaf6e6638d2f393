"""Fifty runs killed at random moments and resumed: do they end in the bits of the run that was never stopped?

    python extras/kill_runs.py --kills 50 --json results/kills.json

A tiny random model, ten steps, a checkpoint every two. A run is killed with SIGKILL after a random share of an unbroken run's time,
resumed (and killed again, up to three times), and its student, teacher and optimiser are compared with the unbroken run's, bit by bit.
Each run is a fork of a process that has imported everything, so fifty take a minute or two.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"     # the same bits need the same number of threads, and a fork allows only one

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import sdft  # noqa: E402
from conftest import tiny_llama, tiny_tokenizer  # noqa: E402
from models import describe_machine, list_checkpoints  # noqa: E402

FLAGS = ("--force --task science --preset laptop --steps 10 --batch-size 2 --max-new-tokens 6 --max-prompt-tokens 1000 "
         "--max-teacher-prompt-tokens 1500 --train-examples 8 --eval-examples 2 --general-tokens 4 --eval-every 5 --save-every 2 --learning-rate 1e-3")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        tokenizer = tiny_tokenizer()
        tiny_llama(vocab_size=len(tokenizer)).save_pretrained(scratch / "model")
        tokenizer.save_pretrained(scratch / "model")
        flags = [*FLAGS.split(), "--model", str(scratch / "model")]
        for name in ("warm-up", "unbroken"):
            started = time.perf_counter()
            assert run([*flags, "--output", str(scratch / name)]) == "ended"
            whole = time.perf_counter() - started
        moments, outcomes, kills = Counter(), Counter(), 0
        while kills < args.kills:
            folder = scratch / f"run-{kills}"
            for attempt in range(4):
                arguments = ["--resume", str(folder)] if list_checkpoints(folder) else [*flags, "--output", str(folder)]
                if not list_checkpoints(folder) and folder.exists():
                    folder.rename(scratch / f"left-{kills}-{attempt}")       # killed before its first checkpoint: begun anew
                ended = run(arguments, kill_after=rng.random() * whole if attempt < 3 and kills < args.kills else None)
                if ended == "ended":
                    break
                kills += 1
                moments[len(list_checkpoints(folder)) and list_checkpoints(folder)[-1].name] += 1
            outcomes[compare(scratch / "unbroken", folder)] += 1
            print(f"{kills:>3} kills, {sum(outcomes.values())} runs: {dict(outcomes)}", flush=True)
    record = {"command": f"python extras/kill_runs.py --kills {args.kills}", "kills": kills, "runs": dict(outcomes),
              "last checkpoint at the kill": {str(name or "none yet"): n for name, n in sorted(moments.items(), key=str)}, "machine": describe_machine()}
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(outcomes.keys() != {"same bits"})


def run(arguments, kill_after=None):
    """sdft.main in a fork -> "ended", or "killed" where SIGKILL came first."""
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
        deadline = time.perf_counter() + kill_after
        while time.perf_counter() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return "ended"
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    assert os.WEXITSTATUS(status) == 0, f"the run failed: {' '.join(arguments)}"
    return "ended"


def compare(unbroken, folder):
    """Student, teacher and optimiser of the last checkpoint; metrics.jsonl without a missing or double step."""
    for name in ("student/model.safetensors", "teacher/model.safetensors", "optimizer.safetensors"):
        a, b = (load_file(run / "checkpoint-000010" / name) for run in (unbroken, folder))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return f"{name} differs"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return "same bits" if steps == list(range(1, 11)) else f"metrics.jsonl has steps {steps}"


if __name__ == "__main__":
    main()
