"""The memory plan. Oracles: the parameter count of the published models; bytes counted from the tensors of a real tiny run."""

import copy
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, tiny_llama
from optim import AdamW, update_ema

CONFIGS = ROOT / "benchmarks" / "configs"


def plan(config, *flags):
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_memory.py"), "--plan", str(CONFIGS / config), *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_paper_s_run_fits_one_h200_and_14b_does_not():
    """7.62 B parameters at 18 bytes are 137 GB, of 150.75; 14.8 B are 266."""
    fits = plan("qwen2.5-7b.json")
    assert fits.returncode == 0 and "7.62 B parameters, bfloat16, 18 bytes each" in fits.stdout and "fits:" in fits.stdout, fits.stderr
    refused = plan("qwen2.5-14b.json")
    assert refused.returncode == 1 and "does not fit" in refused.stdout and "a model of at most" in refused.stdout


@pytest.mark.parametrize("dtype, bytes_each", [(torch.bfloat16, 18), (torch.float32, 20)])
def test_bytes_a_parameter_counted_from_tensors(dtype, bytes_each):
    student = tiny_llama(dtype=dtype)
    optimizer = AdamW(student)
    teacher = copy.deepcopy(student)
    student(input_ids=torch.tensor([[3, 4, 5]])).logits.float().sum().backward()
    held = [*student.parameters(), *(p.grad for p in student.parameters()), *student.remainders.values(),
            *teacher.parameters(), *teacher.remainders.values(), *optimizer.state_tensors().values()]
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == bytes_each * sum(p.numel() for p in student.parameters())
    optimizer.step(1e-3)
    update_ema(teacher, student, 0.01)      # and nothing else is needed for a step
