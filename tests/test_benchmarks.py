"""The memory plan. Oracles: the parameter count of the published models; bytes counted from the tensors of real tiny models."""

import copy
import json
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, tiny_llama
from optim import AdamW, update_ema

sys.path.insert(0, str(ROOT / "benchmarks"))
from bench_memory import layer_bytes_a_token, make_plan, what_would_fit  # noqa: E402

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


def test_cache_and_layer_counted_from_tensors():
    """The cache is exact; what a layer keeps for backward is planned at most a quarter too large, and never too small."""
    model = tiny_llama(layers=2)
    cache = model(input_ids=torch.zeros(3, 20, dtype=torch.long), use_cache=True).past_key_values
    held = sum(tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert make_plan(model.config, "float32", 0, batch=3, new_tokens=8, prompt_tokens=12)["sampling"]["key-value cache"] == held

    L, kept = 64, {}
    hidden_BLD = torch.randn(1, L, 16, requires_grad=True)
    rotary = model.model.rotary_emb(hidden_BLD, torch.arange(L)[None])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor):       # keeps the tensor, so that no address is used twice
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.layers[0](hidden_BLD, position_embeddings=rotary, attention_mask=None)
    saved = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)
    assert saved <= L * layer_bytes_a_token(model.config, 4, 4) <= 1.25 * saved


def test_every_advice_would_do():
    """A card too small by the cache alone: fewer rows fit, and so does a card of the size that is named."""
    config = tiny_llama().config
    arguments = {"new_tokens": 64, "prompt_tokens": 8}
    plan = make_plan(config, "float32", 0, batch=4096, **arguments)
    plan["card"] = plan["peak"] - 1
    advice = what_would_fit(config, plan, "float32", 4096, 64, 8, 1)
    rows = next(int(line.split()[1]) for line in advice if line.startswith("--batch"))
    assert rows == 2048 and make_plan(config, "float32", plan["card"], batch=rows, **arguments)["fits"]
    assert not make_plan(config, "float32", plan["card"], batch=4096, **arguments)["fits"]
    named = int(advice[-1].split()[-2].replace(",", ""))
    assert (named - 1) * 2 ** 20 < plan["peak"] <= named * 2 ** 20


def test_the_parts_of_a_step_add_up_to_it(tiny_folder, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "profile_step.py"), "--model", str(tiny_folder), "--steps", "1", "--batch-size", "2",
               "--micro-batch-size", "1", "--max-new-tokens", "8", "--json", str(tmp_path / "profile.json")]
    subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = json.loads((tmp_path / "profile.json").read_text())["seconds"]
    whole = seconds.pop("whole step")
    assert sum(seconds.values()) == pytest.approx(whole) and len(seconds) == 9 and min(seconds.values()) > 0
