"""The plan of a run: bytes on the card, the host and the disk.

Oracles: parameter counts of the published models; bytes counted from tensors of tiny models, and
from the files of a checkpoint.
"""

import ast
import json
import re
import resource
import shutil
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import data
import kl_estimators
import optim
import sampling
import sdft
import support.plan
import support.run
from config import Config
from data import Pair
from optim import AdamW, copy_model, prepare_for_training, update_ema
from support.checkpoint import save_checkpoint
from support.plan import (
    check_plan,
    count_parameters,
    fits,
    free_host_bytes,
    keeps_scores,
    layer_bytes,
    layer_shape,
    peak_bytes,
    plan_run,
    score_bytes,
    what_would_fit,
    with_lengths_of,
)

CONFIGS = ROOT / "benchmarks" / "configs"
H200, H100 = 143_771 * 2**20, 81_559 * 2**20
SMALL = Config(
    dtype="float32",
    gradient_checkpointing=False,
    batch_size=3,
    max_new_tokens=8,
    max_prompt_tokens=12,
    max_teacher_prompt_tokens=12,
    general_tokens=0,
)


def shape_of(name):
    """The configuration of a published Qwen2.5."""
    return AutoConfig.for_model(**json.loads((CONFIGS / f"qwen2.5-{name}.json").read_text()))


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
    assert count_parameters(shape_of(name))[0] == published


def test_7b_takes_one_80_gb_card_with_offload_and_one_h200_without():
    config = shape_of("7b")
    counts = count_parameters(config)
    on_card = plan_run(config, Config(), counts=counts)
    offloaded = plan_run(config, Config(offload_optimizer=True), counts=counts)
    assert fits(on_card, {"card": H200}) and not fits(on_card, {"card": H100})
    assert fits(offloaded, {"card": H100})
    assert what_would_fit(config, Config(), "cuda", {"card": H100}) == "--offload-optimizer"
    moved = on_card["needs"]["card"] - offloaded["needs"]["card"]
    staging = offloaded["training"]["slices of the state"]
    assert moved + staging == 10 * counts[0] and staging < 0.3e9


@pytest.mark.parametrize("teacher", ["ema", "base", "student", "model", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_and_checkpoint_are_the_bytes_of_real_tensors_and_files(dtype, teacher, tmp_path):
    student = tiny_llama(dtype=getattr(torch, dtype))
    prepare_for_training(student)
    optimizer = AdamW(student)
    other = tiny_llama(dtype=getattr(torch, dtype))  # --teacher-model: no remainders
    teachers = {"ema": copy_model(student), "base": copy_model(student), "model": other}
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
    once = replace(SMALL, batch_size=300, micro_batch_tokens=1)
    four = replace(once, rollouts_per_prompt=4)
    row = plan_run(config, once, "cpu")["host"][cache] // 300
    assert plan_run(config, four, "cpu")["host"][cache] == 4 * 300 * row
    assert plan_run(config, four)["sampling"][cache] == 8 * row
    columns = once.max_prompt_tokens + once.max_new_tokens
    longer = replace(once, eval_new_tokens=once.max_new_tokens + columns)
    assert plan_run(config, longer)["sampling"][cache] == 2 * 8 * row

    one = plan_run(config, SMALL)["training"]["activations"]
    more = replace(SMALL, rollouts_per_prompt=4)
    assert plan_run(config, more)["training"]["activations"] == 4 * one


def test_gradients_take_the_place_of_activations_if_a_step_has_one_backward_pass():
    """Four rows of 44 tokens: one micro-batch up to 176 tokens, two below."""
    config = tiny_llama(vocab_size=5000).config
    run = replace(SMALL, batch_size=4, max_prompt_tokens=20, max_new_tokens=4)
    run = replace(run, max_teacher_prompt_tokens=40, micro_batch_tokens=4 * 44)
    one = plan_run(config, run)["training"]
    two = plan_run(config, replace(run, micro_batch_tokens=4 * 44 - 1))["training"]
    resident = [name for name in two if name in plan_run(config, run)["sampling"]]
    gradients = one["gradients"]
    passing = sum(one.values()) - sum(one[name] for name in resident)
    others = [n for n in one if n not in resident and n != "gradients" and one[n] > 0]
    assert passing == max(gradients, sum(one[name] for name in others))
    assert gradients == two["gradients"] and all(size > 0 for size in two.values())


def test_the_peak_is_what_the_system_says():
    peak = peak_bytes("cpu")["host"]
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak == pytest.approx(resident, rel=0.02)
    torch.zeros(resident // 2, dtype=torch.uint8).fill_(1)
    assert peak_bytes("cpu")["host"] > 1.2 * peak


def test_a_run_leaves_its_peak_beside_its_plan(tiny_folder, tmp_path, capsys):
    flags = "--task science --preset laptop --steps 1 --batch-size 2 --eval-every 0 --force"
    flags += " --keep-last 0 --eval-examples 1 --max-new-tokens 4 --general-tokens 4"
    lengths = " --max-prompt-tokens 600 --max-teacher-prompt-tokens 900"  # a token is a byte
    run = tmp_path / "run"
    sdft.main([*(flags + lengths).split(), "--model", str(tiny_folder), "--output", str(run)])
    results = json.loads((run / "results.json").read_text())
    memory, longest = results["memory"]["host"], re.search(LONGEST, capsys.readouterr().out)
    met = [int(number) for number in longest.groups()]
    config = replace(Config(**results["config"]), **dict(zip(LIMITS, met, strict=True)))
    planned = plan_run(AutoConfig.from_pretrained(tiny_folder), config, "cpu")
    assert memory["planned"] == planned["needs"]["host"] and memory["peak"] > 1e8


LONGEST = r"longest student prompt (\d+) tokens .*, longest teacher prompt (\d+) "
LIMITS = ["max_prompt_tokens", "max_teacher_prompt_tokens"]


def test_the_limits_of_a_plan_can_be_those_of_the_prompts():
    pairs = [Pair("a", [1] * 7, [1] * 20), Pair("b", [1] * 9, [1] * 11)]
    met = with_lengths_of(pairs, SMALL)
    assert (met.max_prompt_tokens, met.max_teacher_prompt_tokens) == (9, 20)
    expected = replace(SMALL, max_prompt_tokens=9, max_teacher_prompt_tokens=20)
    assert met == expected


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
    assert saved == L * layer_bytes(layer_shape(model.config), size)


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_attention_without_sdpa_keeps_the_scores_of_all_pairs(dtype, size):
    """Gemma 2: what autograd keeps of a layer grows with the square of the length, by no more than
    the plan has for it, and by more than half of that: without a backward's short-lived part.
    """
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=4,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    shape = layer_shape(config)
    assert keeps_scores(config, shape, dtype, "cpu")
    shape.keeps_scores = True

    def kept_by(L):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=torch.zeros(1, L, dtype=torch.long), use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    # the second difference: what is linear in L falls out
    squares = kept_by(256) - 2 * kept_by(128)
    planned = 256 * score_bytes(shape, size, 256) - 2 * 128 * score_bytes(shape, size, 128)
    assert planned / 2 < squares <= planned


def test_only_some_attention_keeps_scores():
    """Fewer keys than queries in float32 on a GPU; never with the kernels of bfloat16."""
    config = shape_of("0.5b")
    shape = layer_shape(config)
    found = {
        (dtype, device): keeps_scores(config, shape, dtype, device)
        for dtype in ("float32", "bfloat16")
        for device in ("cpu", "cuda")
    }
    assert [place for place, keeps in found.items() if keeps] == [("float32", "cuda")]
    # a micro-batch of 4096 tokens: one row of them, or two
    run = replace(SMALL, max_prompt_tokens=4000, max_new_tokens=96, dtype="float32")
    halved = replace(run, max_prompt_tokens=1952, micro_batch_tokens=4096)
    one, two = (plan_run(config, some)["needs"]["card"] for some in (run, halved))
    assert one > 1.1 * two
    one, two = (plan_run(config, some, "cpu")["needs"]["host"] for some in (run, halved))
    assert one < 1.1 * two


def test_the_advice_fits_and_the_cheaper_advice_would_not():
    config = tiny_llama(layers=8).config
    run = replace(SMALL, batch_size=64, max_new_tokens=64)
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


# ---- what cannot end does not start ----


@pytest.mark.parametrize("place", ["card", "host", "disk"])
def test_a_run_that_cannot_fit_is_refused_before_its_weights_load(place, tmp_path, monkeypatch):
    """Qwen2.5-7B by its configuration alone. --force does not override the plan.

    --ignore-plan does, and goes on to the weights, of which there are none.
    """
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(ROOT / "benchmarks/configs/qwen2.5-7b.json", folder / "config.json")
    tiny_tokenizer().save_pretrained(folder)
    free = {"card": 10**15, "host": 10**15, "disk": 10**15} | {place: 50 * 10**9}
    monkeypatch.setattr(support.plan, "free_bytes", lambda *_: free)
    monkeypatch.setattr(support.run, "best_device", lambda: "cuda")
    monkeypatch.setattr(
        support.run, "load_model", lambda *_: pytest.fail("the weights were loaded")
    )
    command = ["--model", str(folder), "--preset", "paper", "--output", str(tmp_path / "run")]
    started = time.perf_counter()
    if place == "host":
        command.append("--offload-optimizer")
    refusal = rf"(?s)does not fit: .*{place} \d+\.\d of 50\.0 GB.* It w.*--ignore-plan tries"
    with pytest.raises(SystemExit, match=refusal):
        sdft.main(command)
    assert time.perf_counter() - started < 20 and not (tmp_path / "run").exists()
    with pytest.raises(SystemExit, match=refusal):
        sdft.main([*command, "--force"])
    monkeypatch.setattr(support.run, "load_model", lambda *_: sys.exit("weights come next"))
    with pytest.raises(SystemExit, match="weights come next"):
        sdft.main([*command, "--ignore-plan"])


def test_what_a_run_saved_is_room_for_what_it_saves_next(tmp_path, monkeypatch):
    """Beside its files a resumed run needs one checkpoint more, or without any the last weights."""
    config = tiny_llama().config
    run = replace(SMALL, keep_last=2)
    disk = plan_run(config, run, "cpu")["disk"]
    checkpoint, best = disk["checkpoints"] // 2, disk["best/"]
    saved = {"checkpoint-000002": checkpoint, "checkpoint-000004": checkpoint, "best": best}
    for name, size in saved.items():
        (tmp_path / name / "student").mkdir(parents=True)
        (tmp_path / name / "student" / "weights").write_bytes(bytes(size))
    (tmp_path / "answers.jsonl").write_bytes(bytes(10**6))  # stays

    def resume(free, **more):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        return check_plan(config, replace(run, **more), "cpu", tmp_path, resumed=True)

    def refused(message):
        return pytest.raises(ValueError, match=rf"GB\. {message}; --ignore-plan tries")

    resume(checkpoint)
    with refused("It would with --keep-last 1"):
        resume(checkpoint - 1)
    resume(checkpoint - 1, keep_last=1)
    resume(checkpoint - 1, ignore_plan=True)
    shutil.rmtree(tmp_path / "checkpoint-000002")
    with refused("It would with --keep-last 0"):
        resume(checkpoint - 1, keep_last=1)
    resume(best, keep_last=0)
    for keep_last in (0, 1):
        with refused("Make room, as a resumed run keeps the flags that decide this"):
            resume(best - 1, keep_last=keep_last)


# ---- the constants of the plan are those of the code that it plans ----


OWNERS = {
    "GENERAL_PROMPTS": data,
    "CHUNK_SIZE": kl_estimators,
    "PREFILL_ROWS": sampling,
    "SLICE": optim,
}


def test_the_plan_imports_the_numbers_that_it_counts_with():
    """It sets none of them anew: a copy could go its own way."""
    for name, owner in OWNERS.items():
        assert getattr(support.plan, name) == getattr(owner, name)
    tree = ast.parse((ROOT / "support" / "plan.py").read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert not {node.id for node in names if isinstance(node.ctx, ast.Store)} & OWNERS.keys()


@pytest.mark.parametrize(
    "name, part, run",
    [
        ("PREFILL_ROWS", "prompts' pass", SMALL),
        ("CHUNK_SIZE", "loss, and gradients of the head", replace(SMALL, batch_size=400)),
        ("GENERAL_PROMPTS", "drift: head and states of the base", replace(SMALL, general_tokens=9)),
    ],
)
def test_the_plan_follows_each_of_them(name, part, run, monkeypatch):
    config = tiny_llama(vocab_size=4000).config

    def planned():
        phases = plan_run(config, run)
        return (phases["training"] | phases["sampling"])[part]

    before = planned()
    monkeypatch.setattr(support.plan, name, 2 * getattr(support.plan, name))
    assert planned() > before


def test_a_cpu_holds_a_packed_copy_of_the_weights_while_it_samples():
    """With adapters there are no gradients of that size, so short rows take most there."""
    model = tiny_llama(vocab_size=4000)
    linear = [m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Linear)]
    run = replace(SMALL, dtype="float32", lora_rank=2, batch_size=1, max_new_tokens=1)
    host = plan_run(model.config, run, "cpu")["host"]
    assert sum(linear) <= host["packed weights"] < 1.01 * sum(linear)
    assert "packed weights" not in plan_run(model.config, run)["sampling"]


def test_the_sampler_and_the_loss_use_what_the_plan_counts(tiny, monkeypatch):
    """Eleven prompts in groups of PREFILL_ROWS; the head in chunks of CHUNK_SIZE positions."""
    groups, plain = [], sampling.next_logits

    def noted(model, ids_RN, mask_RL, cache):
        groups.append(len(ids_RN))
        return plain(model, ids_RN, mask_RL, cache)

    monkeypatch.setattr(sampling, "next_logits", noted)
    sampling.prefill(tiny, [[3, 4]] * 11, 1)
    assert groups == [support.plan.PREFILL_ROWS, 11 - support.plan.PREFILL_ROWS]
    rows, head = [], torch.nn.Linear(4, 7, bias=False)
    head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].numel() // 4))
    T = support.plan.CHUNK_SIZE + 5
    kl_estimators.completion_logprobs(torch.zeros(1, T, 4), head, torch.zeros(1, T).long())
    assert rows == [support.plan.CHUNK_SIZE, 5]


# ---- the host's memory in a container ----


@pytest.mark.parametrize(
    "files, free",
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 2000 kB\n"}, 2_048_000),
        # version 2: 1,000,000 less 600,000 used, of which 100,000 are files
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "1\n",
                "sys/fs/cgroup/a/memory.max": "1000000\n",
                "sys/fs/cgroup/a/memory.current": "600000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 3\ninactive_file 100000\n",
            },
            500_000,
        ),
        # version 1, seen from inside a container, whose own path is not there
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/docker/x\n2:pids:/\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "900000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "300000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 50000\n",
            },
            650_000,
        ),
        # no limit there
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "300000\n",
            },
            2_048_000,
        ),
    ],
    ids=["nothing known", "no group", "version 2", "version 1", "no limit"],
)
def test_a_limit_of_a_control_group_counts(files, free, tmp_path):
    if files:
        files = {"proc/meminfo": "MemAvailable: 2000 kB\n"} | files
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_host_bytes(tmp_path) == free
