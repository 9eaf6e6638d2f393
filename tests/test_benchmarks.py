"""The memory plan. Oracles: parameter counts of the published models; bytes counted from tensors of
tiny models, and from the files of a checkpoint."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_tokenizer
from models import save_checkpoint

from optim import AdamW, update_ema

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_memory  # noqa: E402
from bench_memory import read_config  # noqa: E402

from config import Config  # noqa: E402
from optim import count_parameters, fits, layer_bytes, plan_run, what_would_fit  # noqa: E402

CONFIGS = ROOT / "benchmarks" / "configs"
H200, H100 = 143_771 * 2**20, 81_559 * 2**20
SMALL = Config(
    dtype="float32",
    gradient_checkpointing=False,
    batch_size=3,
    micro_batch_size=3,
    max_new_tokens=8,
    max_prompt_tokens=12,
    max_teacher_prompt_tokens=12,
    general_tokens=0,
)


def plan(config, *flags):
    script = str(ROOT / "benchmarks" / "bench_memory.py")
    command = [sys.executable, script, "--plan", str(CONFIGS / config), *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_plan_of_14b_on_an_h200_exits_with_1_and_says_what_would_fit():
    """14.77 B parameters take 266 GB at 18 bytes and 118 GB at 8, of 150.75."""
    refused = plan("qwen2.5-14b.json")
    assert refused.returncode == 1 and "does not fit" in refused.stdout, refused.stderr
    assert "what would fit: --offload-optimizer" in refused.stdout


@pytest.mark.parametrize(
    "name, published",
    [
        ("0.5b", 494_032_768),
        ("1.5b", 1_543_714_304),
        ("3b", 3_085_938_688),
        ("7b", 7_615_616_512),
        ("14b", 14_770_033_664),
    ],
)
def test_the_configurations_have_the_published_numbers_of_parameters(name, published):
    assert count_parameters(read_config(str(CONFIGS / f"qwen2.5-{name}.json")))[0] == published


def test_7b_takes_one_80_gb_card_with_offload_and_one_h200_without():
    config = read_config(str(CONFIGS / "qwen2.5-7b.json"))
    counts = count_parameters(config)
    on_card = plan_run(config, Config(), counts=counts)
    offloaded = plan_run(config, Config(offload_optimizer=True), counts=counts)
    assert fits(on_card, {"card": H200}) and not fits(on_card, {"card": H100})
    assert fits(offloaded, {"card": H100})
    assert what_would_fit(config, Config(), "cuda", {"card": H100}) == "--offload-optimizer"
    moved = on_card["needs"]["card"] - offloaded["needs"]["card"]
    staging = offloaded["training"]["slices of the state"]
    assert moved + staging == 10 * counts[0] and staging < 0.3e9


def test_the_committed_peaks_are_within_a_tenth_of_the_plan_as_it_is_now():
    rows = json.loads((ROOT / "results" / "memory-plan.json").read_text())["step_mib"]
    assert len(rows) == 9 and {row["model"] for row in rows} == bench_memory.SHAPES.keys()
    for row in rows:
        run = replace(bench_memory.STEP, dtype=row["dtype"], offload_optimizer=row["offload"])
        run.gradient_checkpointing = row["checkpointing"]
        host = plan_run(bench_memory.llama_config(*bench_memory.SHAPES[row["model"]]), run, "cpu")
        planned = (host["needs"]["host"] - host["host"]["libraries"]) / 2**20
        assert row["planned"] == pytest.approx(planned) and 0.9 < planned / row["peak"] < 1.1


@pytest.mark.parametrize("teacher", ["ema", "base", "student", "model", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_and_checkpoint_are_the_bytes_of_real_tensors_and_files(dtype, teacher, tmp_path):
    student = tiny_llama(dtype=getattr(torch, dtype))
    optimizer = AdamW(student)
    other = tiny_llama(dtype=getattr(torch, dtype))  # --teacher-model: no remainders
    teachers = {"ema": copy.deepcopy(student), "base": copy.deepcopy(student), "model": other}
    held_teacher = teachers.get(teacher, student)
    student(input_ids=torch.tensor([[3, 4, 5]])).logits.float().sum().backward()
    models = {id(m): m for m in (student, held_teacher)}.values()
    held = [t for m in models for t in (*m.parameters(), *getattr(m, "remainders", {}).values())]
    held += [*(p.grad for p in student.parameters()), *optimizer.state_tensors().values()]
    planned = plan_run(student.config, replace(SMALL, dtype=dtype, teacher=teacher))
    parts = ["weights", "teacher", "remainders", "first moment", "second moment", "gradients"]
    assert sum(t.nbytes for t in held) == sum(planned["training"].get(part, 0) for part in parts)

    if teacher == "ema":
        update_ema(held_teacher, student, 0.01)  # and nothing else is needed for a step
    saved = held_teacher if teacher != "model" else student  # another model is on the disk already
    folder = save_checkpoint(tmp_path, 1, student, tiny_tokenizer(), saved, optimizer, {}, 1)
    files = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    headers = 5 * 4096
    assert planned["disk"]["checkpoints"] < files < planned["disk"]["checkpoints"] + headers


def test_every_rollout_of_a_step_is_planned_on_a_cpu_and_8_on_a_card():
    """300 prompts, where sampling needs more than training; a card decodes as many as fit."""
    config, cache = tiny_llama().config, "keys and values"
    once = replace(SMALL, batch_size=300, micro_batch_size=1)
    four = replace(once, rollouts_per_prompt=4)
    row = plan_run(config, once, "cpu")["host"][cache] // 300
    assert plan_run(config, four, "cpu")["host"][cache] == 4 * 300 * row
    assert plan_run(config, four)["sampling"][cache] == 8 * row
    columns = once.max_prompt_tokens + once.max_new_tokens
    longer = replace(once, eval_new_tokens=once.max_new_tokens + columns)
    assert plan_run(config, longer)["sampling"][cache] == 2 * 8 * row

    one = plan_run(config, replace(SMALL, micro_batch_size=12))["training"]["activations"]
    more = replace(SMALL, micro_batch_size=12, rollouts_per_prompt=4)
    assert plan_run(config, more)["training"]["activations"] == 4 * one


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_cache_and_layer_are_the_bytes_of_real_tensors(dtype, size):
    model = tiny_llama(layers=2, dtype=getattr(torch, dtype))
    ids = torch.zeros(3, 20, dtype=torch.long)
    layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    held = sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))
    assert (
        plan_run(model.config, replace(SMALL, dtype=dtype))["sampling"]["keys and values"] == held
    )

    L, kept = 64, {}
    hidden_BLD = torch.randn(1, L, 16, requires_grad=True, dtype=getattr(torch, dtype))
    rotary = model.model.rotary_emb(hidden_BLD, torch.arange(L)[None])
    shared = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *rotary)}

    def pack(tensor):  # keeps the tensor, so that no address is used twice
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.layers[0](hidden_BLD, position_embeddings=rotary, attention_mask=None)
    saved = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in shared)
    assert saved == L * layer_bytes(model.config, 16, 8, 32, size)  # Q, K, M


def test_the_advice_fits_and_the_cheaper_advice_would_not():
    config = tiny_llama(layers=8).config
    run = replace(SMALL, batch_size=64, micro_batch_size=64, max_new_tokens=64)
    for _offload, checkpointing, advice in [
        (False, False, "--gradient-checkpointing"),
        (False, True, "--micro-batch-tokens 1024"),
    ]:
        run = replace(run, gradient_checkpointing=checkpointing)
        fitting = {
            "--gradient-checkpointing": replace(run, gradient_checkpointing=True),
            "--micro-batch-tokens 1024": replace(run, micro_batch_tokens=1024),
        }[advice]
        free = {"card": plan_run(config, fitting)["needs"]["card"]}
        assert not fits(plan_run(config, run), free)
        assert what_would_fit(config, run, "cuda", free) == advice
    needs = plan_run(config, run)["needs"]
    assert what_would_fit(config, run, "cuda", {"disk": needs["disk"] - 1}) == "--keep-last 0"
    nothing = what_would_fit(config, run, "cuda", {"card": needs["card"] // 2})
    assert nothing.startswith("a model of about 0.0 B parameters")


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
