"""The benchmarks run. Oracles: committed results files; sums of parts; a run without offload."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import bench_memory
import pytest
import torch
from conftest import ROOT

from support.plan import plan_run

CONFIGS = ROOT / "benchmarks" / "configs"


def plan(config, *flags):
    script = str(ROOT / "benchmarks" / "bench_memory.py")
    command = [sys.executable, script, "--plan", str(CONFIGS / config), *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_plan_of_14b_on_an_h200_exits_with_1_and_says_what_would_fit():
    """14.77 B parameters take 266 GB at 18 bytes and 118 GB at 8, of 150.75."""
    refused = plan("qwen2.5-14b.json")
    assert refused.returncode == 1 and "does not fit" in refused.stdout, refused.stderr
    assert "what would fit: --offload-optimizer" in refused.stdout


def test_the_committed_peaks_are_within_a_tenth_of_the_plan_as_it_is_now():
    rows = json.loads((ROOT / "results" / "memory-plan.json").read_text())["step_mib"]
    assert len(rows) == 9 and {row["model"] for row in rows} == bench_memory.SHAPES.keys()
    for row in rows:
        run = replace(bench_memory.STEP, dtype=row["dtype"], offload_optimizer=row["offload"])
        run.gradient_checkpointing = row["checkpointing"]
        host = plan_run(bench_memory.llama_config(*bench_memory.SHAPES[row["model"]]), run, "cpu")
        planned = (host["needs"]["host"] - host["host"]["libraries"]) / 2**20
        assert row["planned"] == pytest.approx(planned) and 0.9 < planned / row["peak"] < 1.1


def test_the_gpu_benchmark_runs_on_a_cpu_and_says_in_one_line_that_it_needs_cuda(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py")]
    if not torch.cuda.is_available():
        refused = subprocess.run(script, capture_output=True, text=True)
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1
        assert refused.stderr.startswith("error: needs a CUDA GPU")
    flags = "--device cpu --dtype bfloat16 --hidden 32 --layers 2 --batch-size 2 --max-new-tokens 4"
    flags += f" --max-prompt-tokens 8 --max-teacher-prompt-tokens 16 --json {tmp_path}/gpu.json"
    subprocess.run(script + flags.split(), capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    for place in ("on the card", "in host memory"):
        seconds = found[place]["seconds"]
        whole = seconds.pop("step")
        assert sum(seconds.values()) == pytest.approx(whole) and min(seconds.values()) > 0
    assert found["decoding"]["ours"] > 0 < found["decoding"]["generate"]


def test_the_parts_of_a_step_add_up_to_it(tiny_folder, tmp_path):
    script = str(ROOT / "benchmarks" / "profile_step.py")
    flags = "--steps 1 --batch-size 2 --micro-batch-size 1 --max-new-tokens 8"
    files = ["--model", str(tiny_folder), "--json", str(tmp_path / "profile.json")]
    command = [sys.executable, script, *flags.split(), *files]
    subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = json.loads((tmp_path / "profile.json").read_text())["seconds"]
    whole = seconds.pop("whole step")
    assert sum(seconds.values()) == pytest.approx(whole)
    assert len(seconds) == 8 and min(seconds.values()) > 0


def test_an_offloaded_step_ends_in_the_same_bits_and_both_are_timed(monkeypatch):
    monkeypatch.setitem(bench_memory.SHAPES, "40M", (64, 32, 2, 4, 2, 64))
    monkeypatch.setattr(bench_memory, "STEP", replace(bench_memory.STEP, max_new_tokens=4))
    rows = bench_memory.bench_offload(SimpleNamespace(repeats=2))
    assert [(row["dtype"], row["part"]) for row in rows] == [
        (dtype, part)
        for dtype in ("float32", "bfloat16")
        for part in ("a step", "its AdamW and EMA")
    ]
    for whole, update in (rows[:2], rows[2:]):
        assert whole["beside"] > update["beside"] > 0 < update["offloaded"] < whole["offloaded"]
        assert whole["distance"] == 0


@pytest.mark.parametrize("steps, batch", [(2, 16), (5, 16), (2, 32)])
def test_every_step_of_the_benchmark_is_a_whole_batch(steps, batch):
    """science has 56 examples for training."""
    import bench_step

    args = SimpleNamespace(steps=steps, batch_size=batch)
    assert len(bench_step.training_examples(args)) == batch * (1 + steps)
