"""The step, the loop and the command line, on tiny models.

Oracles: a dense loss computed sequence by sequence without padding, cache, chunks or micro-batches; the unbroken run, for
resumes; Algorithm 1's arithmetic by hand, for schedule and order.
"""

import ast
import copy
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import Olmo3Config, Qwen2Config

import sdft
from conftest import ROOT, gradients, tiny_llama, tiny_model
from data import Pair
from optim import AdamW
from safetensors.torch import load_file
from config import PRESETS, REPORTS, Config, check_config, choose_preset, preset_values, resumed_config
from models import list_checkpoints, load_model
from sdft import learning_rate_at, make_batch, sdft_step

PAIRS = [Pair(f"p{i}", [3 + i] * (2 + i), [5] * 4 + [3 + i] * (2 + i)) for i in range(6)]
STOP = {"eos_token_ids": [1, 4, 9, 20, 30], "pad_token_id": 1}     # several, so that completions differ in length
TINY = Config(batch_size=6, micro_batch_size=6, max_new_tokens=12, steps=10, learning_rate=1e-3, warmup=0, skip_first_tokens=2)


class KeepGradients:
    """In the optimiser's place: leaves the gradients to look at."""

    def step(self, learning_rate):
        pass


def step_gradient(config, dtype=torch.float32, pairs=PAIRS):
    student, teacher = tiny_llama(dtype=dtype), tiny_llama(dtype=dtype, seed=1)
    config = dataclasses.replace(config, max_grad_norm=1e9, teacher="base")
    metrics, rollout = sdft_step(student, teacher, KeepGradients(), make_batch(pairs, 0, config, STOP), config)
    return gradients(student), metrics, rollout, student, teacher


def dense_gradient(rollout, student, teacher, config):
    """The loss of the same rollout, one unpadded sequence and one formula at a time."""
    batch = make_batch(PAIRS, 0, config, STOP)
    student.zero_grad()
    loss = 0
    for b, (prompt, teacher_prompt) in enumerate(zip(batch.student_prompts, batch.teacher_prompts)):
        ids = rollout.completion_ids_BT[b][rollout.completion_mask_BT[b]]
        s, t = (model(torch.tensor([context + ids.tolist()])).logits[0, len(context) - 1:-1].log_softmax(-1)
                for model, context in ((student, prompt), (teacher, teacher_prompt)))
        t = t.detach()
        token_s, token_t = (logprobs[torch.arange(len(ids)), ids] for logprobs in (s, t))
        kl = {"reverse": (s.exp() * (s - t)).sum(-1), "forward": (t.exp() * (t - s)).sum(-1)}.get(config.divergence)
        value = {"analytic": kl, "token": (token_s - token_t).detach() * token_s,
                 "rb": kl + kl.detach() * torch.stack([token_s[:i].sum() for i in range(len(ids))])}[config.estimator]
        kept = value[config.skip_first_tokens:]
        if len(kept):
            loss = loss + (kept.mean() if config.reduction == "mean" else kept.sum()) / len(PAIRS)
    loss.backward()
    return gradients(student)


@pytest.mark.parametrize("divergence, estimator, reduction", [
    ("reverse", "analytic", "mean"), ("forward", "analytic", "mean"), ("reverse", "analytic", "sum"),
    ("reverse", "token", "mean"), ("reverse", "rb", "sum")])
def test_gradient_equals_a_dense_computation(divergence, estimator, reduction):
    config = dataclasses.replace(TINY, divergence=divergence, estimator=estimator, reduction=reduction, micro_batch_size=4)
    found, metrics, rollout, student, teacher = step_gradient(config, torch.float64)
    lengths = rollout.completion_mask_BT.sum(1)
    assert lengths.min() < lengths.max() and metrics["grad_norm"] > 0
    expected = dense_gradient(rollout, student, teacher, config)
    assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_several_rollouts_of_a_prompt_are_rows_of_their_own():
    config = dataclasses.replace(TINY, batch_size=3, rollouts_per_prompt=2, max_grad_norm=1e9, teacher="base")
    found, _, rollout, student, teacher = step_gradient(config)
    assert torch.allclose(found, dense_gradient(rollout, student, teacher, config), atol=1e-6)
    ids = make_batch(PAIRS, 0, config, STOP).ids
    assert ids[0::2] == ids[1::2] == make_batch(PAIRS, 0, dataclasses.replace(config, rollouts_per_prompt=1), STOP).ids
    rows = [ids_T[mask_T].tolist() for ids_T, mask_T in zip(rollout.completion_ids_BT, rollout.completion_mask_BT)]
    assert all(one != other for one, other in zip(rows[0::2], rows[1::2]))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_micro_batch_size_changes_no_gradient(dtype, tolerance):
    whole, *_ = step_gradient(TINY, dtype)
    for size in (1, 2):
        parts, *_ = step_gradient(dataclasses.replace(TINY, micro_batch_size=size), dtype)
        assert (parts - whole).norm() <= tolerance * whole.norm()


def test_extra_padding_changes_nothing():
    """A longer limit makes wider tensors; with the same draws and ends, the gradient is the same."""
    student = tiny_llama(dtype=torch.float64)
    batch = make_batch(PAIRS, 0, TINY, STOP)
    rollout = sdft.sample_completions(student, batch.student_prompts, max_new_tokens=12, uniforms_BT=batch.uniforms_BT, **STOP)
    hidden = [sdft.completion_hidden(student, batch.student_prompts, torch.nn.functional.pad(rollout.completion_ids_BT, (0, more), value=1),
                                     torch.nn.functional.pad(rollout.completion_mask_BT, (0, more))) for more in (0, 9)]
    mask = rollout.completion_mask_BT
    torch.testing.assert_close(hidden[0][mask], hidden[1][:, :mask.shape[1]][mask], rtol=0, atol=1e-12)


def test_completions_without_loss_tokens_count_zero_and_stay_in_the_mean():
    config = dataclasses.replace(TINY, skip_first_tokens=6)
    _, metrics, rollout, *_ = step_gradient(config)
    lengths = rollout.completion_mask_BT.sum(1)
    assert metrics["no_loss_tokens"] == pytest.approx((lengths <= 6).float().mean().item())
    assert 0 < metrics["no_loss_tokens"] < 1 and math.isfinite(metrics["kl"])


@pytest.mark.parametrize("teacher_weights", ["ema", "base", "student"])
def test_teacher_weights(teacher_weights):
    student = tiny_llama()
    teacher = student if teacher_weights == "student" else copy.deepcopy(student)
    config = dataclasses.replace(TINY, teacher=teacher_weights, ema_rate=0.25)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    sdft_step(student, teacher, AdamW(student), make_batch(PAIRS, 0, config, STOP), config)
    for old, s, t in zip(before, student.parameters(), teacher.parameters()):
        expected = {"ema": old + 0.25 * (s - old), "base": old, "student": s}[teacher_weights]
        torch.testing.assert_close(t, expected)
    assert not torch.equal(before[1], list(student.parameters())[1])


def test_non_finite_gradients_stop_before_the_update():
    student = tiny_llama()
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight[0, 0] = math.inf
    before = copy.deepcopy(student.state_dict())
    with pytest.raises((FloatingPointError, RuntimeError)) as error:
        sdft_step(student, copy.deepcopy(student), AdamW(student), make_batch(PAIRS, 0, TINY, STOP), TINY)
    assert "p0" in str(error.value) and all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_every_epoch_shows_every_example_once_and_draws_are_a_function_of_the_step():
    config = dataclasses.replace(TINY, batch_size=4)
    ids = [id for step in range(6) for id in make_batch(PAIRS, step, config, STOP).ids]
    for epoch in range(4):
        assert sorted(ids[6 * epoch:6 * epoch + 6]) == [f"p{i}" for i in range(6)]
    assert ids[:6] != ids[6:12]
    a, b, c = (make_batch(PAIRS, step, config, STOP).uniforms_BT for step in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(a[:2], make_batch(PAIRS, 3, dataclasses.replace(config, batch_size=2), STOP).uniforms_BT)


def test_schedule_by_hand():
    """Warm-up 3 of 10 steps at rate 1: 1/4, 2/4, 3/4, then cosine from 1; half of it at the middle of the remaining 7; near 0 last."""
    config = dataclasses.replace(TINY, learning_rate=1.0, warmup=3)
    rates = [learning_rate_at(step, 10, config) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_at(6.5, 10, config) == pytest.approx(0.5) and 0 < rates[9] < 0.06
    assert learning_rate_at(0, 100, dataclasses.replace(config, warmup=0.1)) == pytest.approx(1 / 11)


# ---- whole runs ----

def flags(model, output, **more):
    values = {"task": "science", "preset": "laptop", "model": model, "output": output, "steps": 6, "batch_size": 2, "max_new_tokens": 6,
              "max_prompt_tokens": 1000, "max_teacher_prompt_tokens": 1500, "train_examples": 8, "eval_examples": 2, "general_tokens": 4,
              "eval_every": 3, "save_every": 2, "learning_rate": 1e-3} | more
    return ["--force"] + [text for name, value in values.items() if value is not None for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def unbroken(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    sdft.main(flags(tiny_folder, folder))
    return folder


def test_a_run_leaves_what_the_readme_says(unbroken):
    assert {path.name for path in unbroken.iterdir()} == {"before.json", "results.json", "metrics.jsonl", "rollouts.jsonl", "best", "last", "checkpoint-000006"}
    metrics = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    results = json.loads((unbroken / "results.json").read_text())
    before = json.loads((unbroken / "before.json").read_text())
    assert before["config"] == results["config"] and before["command"] == results["command"]
    assert results["before"]["test"]["drift_from_base"] == pytest.approx(0, abs=1e-5) and results["last"]["test"]["drift_from_base"] > 0
    assert results["config"]["steps"] == 6 and "--steps 6" in results["command"]


@pytest.mark.parametrize("config_class, more, task", [
    (Qwen2Config, {"num_hidden_layers": 3}, {"task": "science"}),
    (Olmo3Config, {"num_hidden_layers": 4, "sliding_window": 16}, {"task": "medical", "data": ROOT / "samples/medical-answer-only"}),
], ids=["model size: qwen2", "Table 2: olmo3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_papers_other_models_at_toy_size(config_class, more, task, dtype, tokenizer, tmp_path):
    """Their architectures run from start to end, and what is written loads again with the weights that were trained."""
    tiny_model(config_class, vocab_size=len(tokenizer), **more).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    sdft.main(flags(tmp_path / "model", tmp_path / "run", steps=2, dtype=dtype, **task) + ["--gradient-checkpointing"])
    trained, start = (load_model(str(folder), dtype=dtype)[0] for folder in (tmp_path / "run" / "last", tmp_path / "model"))
    assert type(trained) is type(start) and trained.config.num_hidden_layers == more["num_hidden_layers"]
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters())]
    assert any(moved) if dtype == "bfloat16" else all(moved)     # a small step may leave a bfloat16 weight where it was; its remainder moves


def same_weights(run_a, run_b, more=()):
    for name in ("student/model.safetensors", "teacher/model.safetensors", "optimizer.safetensors", *more):
        a, b = (load_file(run / "checkpoint-000006" / name) for run in (run_a, run_b))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name


@pytest.mark.parametrize("kill_after_step", [3, 4, 5])
def test_a_killed_run_resumes_to_the_same_bits(kill_after_step, unbroken, tiny_folder, tmp_path):
    command = [sys.executable, str(ROOT / "sdft.py")]
    process = subprocess.Popen(command + flags(tiny_folder, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= kill_after_step):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert list_checkpoints(tmp_path / "run")
    sdft.main(["--resume", str(tmp_path / "run")])
    same_weights(tmp_path / "run", unbroken)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def press_ctrl_c_in_step_3(monkeypatch):
    steps = []

    def interrupted_step(*arguments):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return sdft_step(*arguments)
    monkeypatch.setitem(sdft.STEPS, "kl", interrupted_step)


def test_ctrl_c_saves_and_says_how_to_resume(unbroken, tiny_folder, tmp_path, capsys, monkeypatch):
    press_ctrl_c_in_step_3(monkeypatch)
    sdft.main(flags(tiny_folder, tmp_path / "run"))
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path / "run")] == ["checkpoint-000003"]
    assert f"python sdft.py --resume {tmp_path / 'run'}" in capsys.readouterr().out
    sdft.main(["--resume", str(tmp_path / "run")])
    same_weights(tmp_path / "run", unbroken)


def test_what_does_not_change_the_result_may_change_on_resume(unbroken, tiny_folder, tmp_path, capsys, monkeypatch):
    """Every step saved, two kept, one log line in two: the same bits as the unbroken run, which saved every other step and kept one."""
    press_ctrl_c_in_step_3(monkeypatch)
    sdft.main(flags(tiny_folder, tmp_path / "run"))
    capsys.readouterr()
    resume = ["--resume", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="--save-every is 0; it must be at least 1"):
        sdft.main(resume + ["--save-every", "0"])
    sdft.main(resume + "--save-every 1 --keep-last 2 --log-every 2 --sample-every 0 --seed 0".split())
    printed = capsys.readouterr().out
    assert ("resumed from " + str(tmp_path / "run" / "checkpoint-000003") + "; --save-every is 1, was 2; --keep-last is 2, was 1; --log-every is 2, was 1; "
            "--sample-every is 0, was 10") in printed and "--seed" not in printed
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path / "run")] == ["checkpoint-000005", "checkpoint-000006"]
    same_weights(tmp_path / "run", unbroken)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["config"]["save_every"] == 1


def test_a_bfloat16_run_stopped_and_resumed_ends_in_the_same_bits(tiny_folder, tmp_path, monkeypatch):
    sdft.main(flags(tiny_folder, tmp_path / "whole", dtype="bfloat16"))
    press_ctrl_c_in_step_3(monkeypatch)
    sdft.main(flags(tiny_folder, tmp_path / "run", dtype="bfloat16"))
    sdft.main(["--resume", str(tmp_path / "run")])
    same_weights(tmp_path / "run", tmp_path / "whole", ["remainders.safetensors"])
    remainders = load_file(tmp_path / "whole" / "checkpoint-000006" / "remainders.safetensors")
    assert {name.split(".")[0] for name in remainders} == {"student", "teacher"} and all(tensor.any() for tensor in remainders.values())
    assert {tensor.dtype for tensor in load_file(tmp_path / "whole" / "last" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("gigabytes, preset", [(150.75, "paper"), (85, "laptop")])
def test_preset_follows_the_memory_of_the_gpu(gigabytes, preset, monkeypatch):
    """One H200 has 143,771 MiB = 150.75 GB; an H100 85 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"total_memory": gigabytes * 1e9}))
    assert choose_preset(None)[0] == preset and choose_preset("authors") == ("authors", "as named")


@pytest.mark.parametrize("dtype, teacher, gigabytes", [("bfloat16", "ema", 18), ("bfloat16", "student", 14), ("float32", "ema", 20), ("float32", "student", 16)])
def test_estimated_memory_of_a_billion_parameters(dtype, teacher, gigabytes):
    figures = {"student": {"completion_tokens": 10}, "sampling_tokens_per_s": 100, "scoring_tokens_per_s": 1000}
    model = torch.nn.Linear(10_000, 100_000, bias=False, device="meta")
    assert f" {gigabytes}.0 GB" in sdft.estimate(figures, model, PAIRS, dataclasses.replace(TINY, dtype=dtype, teacher=teacher))


# ---- what is refused, before the model loads ----

@pytest.mark.parametrize("more, message", [
    ({"estimator": "rb", "divergence": "reverse"}, "--estimator rb needs --reduction sum"),
    ({"estimator": "token"}, "--estimator token estimates the gradient of the reverse KL"),
    ({"estimator": "rb", "reduction": "sum", "divergence": "jsd"}, "with --divergence jsd"),
    ({"steps": 0}, "--steps is 0; it must be at least 1"),
    ({"learning_rate": "nan"}, "--learning-rate is nan"),
    ({"ema_rate": 2}, "--ema-rate is 2.0"),
    ({"skip_first_tokens": 6}, "leaves no token"),
    ({"data": "nowhere"}, "nowhere is not a folder"),
    ({"teacher_context": "text"}, 'field "text" is missing'),
])
def test_refusals(more, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sdft, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=message):
        sdft.main(flags("smollm2", tmp_path / "run", **more))


@pytest.mark.parametrize("argument, choices", [("--task=chess", "science"), ("--divergence=kl", "reverse"), ("--dtype=float16", "float32"), ("--preset=x", "laptop")])
def test_unknown_values_list_the_choices(argument, choices, capsys):
    with pytest.raises(SystemExit):
        sdft.main([argument])
    assert choices in capsys.readouterr().err


def test_prompts_that_do_not_fit_are_counted_or_stop_the_run(tiny_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"0 of 8 fit; longest student prompt \d+ tokens \(limit 10\)"):
        sdft.main(flags(tiny_folder, tmp_path / "run", max_prompt_tokens=10))
    with pytest.raises(SystemExit, match="(?s)left out: .* --too-long drop"):
        sdft.main(flags(tiny_folder, tmp_path / "run", max_prompt_tokens=220, too_long="stop"))


def test_a_teacher_no_better_than_the_student_is_a_no_go(tiny_folder, tmp_path, capsys):
    """A random model is right by no question, with the demonstration or without."""
    with pytest.raises(SystemExit, match="nothing was trained. --force trains all the same"):
        sdft.main(flags(tiny_folder, tmp_path / "run")[1:])
    assert "no-go: the teacher is no better than the student" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_ctrl_c_before_the_first_step_leaves_no_folder(tiny_folder, tmp_path, monkeypatch):
    """The same command runs again, under the same name."""
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(sdft, "preflight", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sdft.main(flags(tiny_folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_validation_about_the_kept_articles_is_said_before_the_model_loads(tmp_path):
    line = {"prompt": "Who?", "demonstration": "Ada.", "key_facts": [["Ada"]]}
    for split, article in (("train", "one"), ("validation", "two"), ("test", "one"), ("ood", "one")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(line | {"text": article}) + "\n")
    with pytest.raises(SystemExit, match="error: validation: no example is about the articles of the first 48 training examples"):
        sdft.main(["--task", "knowledge", "--preset", "laptop", "--data", str(tmp_path), "--model", "nowhere", "--output", str(tmp_path / "run")])


def test_help_names_defaults(capsys):
    with pytest.raises(SystemExit):
        sdft.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "peak; cosine to 0 (default: 1e-05; laptop: 0.0001)" in shown and "longest completion, in training and evaluation (default: 2048; laptop: 48)" in shown


def test_a_damaged_checkpoint_is_named_without_a_traceback(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-000006" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="optimizer.safetensors cannot be read.*the checkpoint is damaged"):
        sdft.main(["--resume", str(tmp_path / "run")])


def too_large_for_a_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")


@pytest.mark.parametrize("fail, first_line", [
    (too_large_for_a_gpu, "error: CUDA out of memory. Tried to allocate 2.00 GiB."),
    (lambda *_: torch.empty(2**60, dtype=torch.uint8), "error: .*can't allocate memory: you tried to allocate 1152921504606846976 bytes.*"),
])
@pytest.mark.parametrize("where", ["preflight", "step"])
def test_out_of_memory_names_the_flags_that_help(fail, first_line, where, tiny_folder, tmp_path, monkeypatch):
    """In the preflight and in a step; the flags exist. The CPU's error is torch's own, for more bytes than an address has."""
    if where == "preflight":
        monkeypatch.setattr(sdft, "preflight", fail)
    else:
        monkeypatch.setitem(sdft.STEPS, "kl", fail)
    with pytest.raises(SystemExit, match=rf"^{first_line}\nA new run takes less memory with [^\n]*$") as error:
        sdft.main(flags(tiny_folder, tmp_path / "run", eval_examples=1, train_examples=2, max_new_tokens=4))
    named = {flag.replace("-", "_") for flag in re.findall("--([a-z-]+)", str(error.value))}
    assert named == {"micro_batch_tokens", "max_new_tokens", "gradient_checkpointing", "dtype", "resume"}
    assert named - {"resume"} <= Config.__dataclass_fields__.keys()
    assert (tmp_path / "run").exists() == (where == "step")     # no empty folder is in the way of the next try


def test_a_disk_that_is_full_at_the_end_loses_nothing(unbroken, tiny_folder, tmp_path, monkeypatch):
    """The last checkpoint stands, and --resume writes what is missing: the same bits as the run that never stopped."""
    def full(folder, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(sdft, "finish", lambda *_: full(tmp_path / "run" / "last"))
        with pytest.raises(SystemExit, match="error: .*No space left on device.*last"):
            sdft.main(flags(tiny_folder, tmp_path / "run"))
    sdft.main(["--resume", str(tmp_path / "run")])
    ended, expected = (load_file(run / "last" / "model.safetensors") for run in (tmp_path / "run", unbroken))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


def test_other_errors_of_torch_keep_their_traceback(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sdft, "preflight", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        sdft.main(flags(tiny_folder, tmp_path / "run", eval_examples=1, train_examples=2, max_new_tokens=4))


def test_existing_folders_and_changed_flags_are_refused(unbroken, tiny_folder, tmp_path):
    with pytest.raises(SystemExit, match="exists already"):
        sdft.main(flags(tiny_folder, unbroken))
    with pytest.raises(SystemExit, match="--learning-rate is 0.5, was 0.001"):
        sdft.main(["--resume", str(unbroken), "--learning-rate", "0.5"])
    for name in Config.__dataclass_fields__.keys() - {"log_every", "sample_every", "save_every", "keep_last"}:
        with pytest.raises(ValueError, match=f"^a resumed run keeps its configuration; --{name.replace('_', '-')} is other, was [^;]*. Leave these"):
            resumed_config(unbroken, {name: "other", "keep_last": 5})
    with pytest.raises(SystemExit, match="has no checkpoint to resume from"):
        sdft.main(["--resume", str(tmp_path)])


# ---- the house ----

FILES = {  # file -> the files of ours that it may import (all that must stand beside it when it is copied)
    "kl_estimators": [], "data": [], "optim": [], "sampling": [], "models": [],
    "scoring": [],
    "config": ["data", "kl_estimators", "models"],
    "eval": ["data", "sampling", "models", "kl_estimators", "scoring"],
    "sdft": ["config", "data", "eval", "kl_estimators", "models", "optim", "sampling", "scoring"],
}


def test_every_file_imports_beside_the_files_named_for_it(tmp_path):
    running = []
    for name, beside in FILES.items():
        (tmp_path / name).mkdir()
        for copied in [name] + beside:
            shutil.copy(ROOT / f"{copied}.py", tmp_path / name)
        running.append((name, subprocess.Popen([sys.executable, "-c", f"import {name}"], cwd=tmp_path / name, stderr=subprocess.PIPE, text=True)))
    for name, process in running:
        assert process.wait() == 0, (name, process.stderr.read())


def test_files_stay_short_and_algorithm_1_on_one_screen():
    for name in FILES:
        assert len((ROOT / f"{name}.py").read_text().splitlines()) <= 450, name
    tree = ast.parse((ROOT / "sdft.py").read_text())
    step = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "sdft_step")
    assert step.end_lineno - step.lineno + 1 <= 45


def test_presets_are_configurations():
    for preset in PRESETS:
        for task in REPORTS:
            check_config(Config(preset=preset, task=task, **preset_values(preset, task)))


def test_micro_batches_keep_both_limits_and_lose_no_row():
    """Prompts of 2, 3, 4, 9 tokens with completions of 3: totals 5, 6, 7, 12. In rows x longest at most 12: 5+6 together, then 7, 12."""
    rollout = sdft.given_rollout([[2, 3, 1]] * 4, eos_token_ids=[1], pad_token_id=1)
    prompts = [[5] * 9, [5] * 3, [5] * 2, [5] * 4]
    batch = sdft.Batch(0, list("abcd"), prompts, [[5]] * 4, None, 1e-3, {})

    def rows(batch=batch, **limits):
        return [micro.rows for micro in sdft.micro_batches(batch, rollout, dataclasses.replace(TINY, **limits))]
    assert rows(micro_batch_tokens=12, micro_batch_size=4) == [[2, 1], [3], [0]]
    assert rows(micro_batch_tokens=48, micro_batch_size=4) == [[2, 1, 3, 0]]
    assert rows(micro_batch_tokens=48, micro_batch_size=3) == [[2, 1, 3], [0]]
    assert rows(micro_batch_tokens=1, micro_batch_size=4) == [[2], [1], [3], [0]]       # one longer than the limit goes alone
    # a teacher's prompts of 2, 9, 2, 4 tokens: totals of the longer one 12, 12, 5, 7; a baseline without a teacher does not read them
    teacher_reads = dataclasses.replace(batch, teacher_prompts=[[5] * 2, [5] * 9, [5] * 2, [5] * 4])
    assert rows(teacher_reads, micro_batch_tokens=14, micro_batch_size=4) == [[2, 3], [0], [1]]
    assert rows(teacher_reads, micro_batch_tokens=12, micro_batch_size=4, method="sft") == [[2, 1], [3], [0]]
