"""Handing a run over to TRL, and to transformers.

Oracles: TRL's SDFTTrainer (skipped where it is not installed: pip install trl==1.16.0) against
sdft_step on the same completions; AutoModelForCausalLM.from_pretrained against the model trained.
"""

import dataclasses
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import to_trl
import torch
from conftest import ROOT
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

import sdft
from config import Config, flag
from data import encode_pairs, load_task
from optim import AdamW, copy_model, join_float32, prepare_for_training
from sampling import Rollout, stop_tokens
from support.models import load_model

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is absent")

# bytes are the tokens; the rate is large, so that two steps move a weight by some 0.01
TINY = {
    "dtype": "float32",
    "learning_rate": 1e-2,
    "warmup": 1,
    "steps": 2,
    "batch_size": 4,
    "micro_batch_tokens": 10**6,
    "max_new_tokens": 12,
    "max_prompt_tokens": 1000,
    "max_teacher_prompt_tokens": 3000,
    "gradient_checkpointing": False,
}


def write(tiny_folder, folder, **more):
    config = Config(**TINY | {"model": str(tiny_folder), **more})
    folder.mkdir()
    return config, to_trl.write(config, folder)


def completion_of(prompt):
    """1 to 12 tokens that depend on the prompt alone; EOS (1) ends all but the longest."""
    draw = random.Random(str(prompt))
    ids = [draw.randrange(2, 250) for _ in range(draw.randrange(1, 13))]
    return ids if len(ids) == 12 else ids[:-1] + [1]


def our_run(config):
    """Two steps of sdft_step on completion_of its prompts -> student, teacher, kl of each step."""
    student, tokenizer = load_model(config.model, "cpu", config.dtype)
    prepare_for_training(student)
    optimizer = AdamW(student, weight_decay=config.weight_decay)
    teacher = student if config.teacher == "student" else copy_model(student)
    pairs, kl = encode_pairs(tokenizer, load_task(config.task, "train"), config), []
    for step in range(config.steps):
        batch = sdft.make_batch(pairs, step, config, stop_tokens(student, tokenizer))
        rows = [torch.tensor(completion_of(pair.student_prompt)) for pair in batch.pairs]
        mask_BT = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], True)
        rollout = Rollout(pad_sequence(rows, True), mask_BT, torch.ones(len(rows)))
        metrics = sdft.update(student, teacher, optimizer, batch, rollout, config)
        kl.append(metrics["kl"])
    return student, teacher, kl


def trl_run(folder):
    """The same by TRL -> student, teacher, loss of each step."""
    trainer = to_trl.build_trainer(folder)
    trainer._generate = lambda prompts: (prompts, [completion_of(prompt) for prompt in prompts])
    parts, compute_loss = [], trainer.compute_loss

    def recorded(*arguments, **options):
        parts.append(compute_loss(*arguments, **options))
        return parts[-1]

    trainer.compute_loss = recorded
    trainer.train()
    n = trainer.args.gradient_accumulation_steps
    losses = torch.stack(parts).detach().view(-1, n).sum(1).tolist()
    return trainer.model, trainer.teacher_model, losses


def largest_difference(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max((p.float() - q.float()).abs().max().item() for p, q in pairs)


def distance(model, other, remainders=None):
    """||model - other|| over all weights; model's are exact with its remainders."""
    squares = [
        (join_float32(p, (remainders or {}).get(name)) - q).square().sum()
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True)
    ]
    return torch.stack(squares).sum().sqrt().item()


def share_apart(student, theirs, config):
    """How far theirs ends from our student, as a share of the way that ours went.

    In float32 it is 1e-6 to 1.1e-5, by rounding alone. Single weights are no measure: AdamW divides
    a gradient by its own size, and where the sum over tokens nearly cancels (2e-8, where the others
    are near 1e-2 and eps is 1e-8), the rounding of that sum moves a weight by 1e-5.
    """
    remainders, (start, _) = getattr(student, "remainders", None), load_model(config.model)
    return distance(student, theirs, remainders) / distance(student, start, remainders)


@needs_trl
@pytest.mark.parametrize(
    "more",
    [
        {"divergence": "reverse"},
        {"divergence": "forward", "temperature": 0.5, "teacher_instruction": "plain"},
        {"divergence": "jsd", "skip_first_tokens": 0, "rollouts_per_prompt": 2},
        {"estimator": "token", "micro_batch_tokens": 1, "ema_rate": 0.3},
        {"teacher": "base", "warmup": 0, "seed": 3},
        {"teacher": "student", "teacher_context": "text", "task": "knowledge"},
        {"task": "knowledge", "teacher_context": "text+demonstration", "max_grad_norm": 0.1},
    ],
    ids=lambda more: " ".join(map(str, more.values())),
)
def test_two_steps_equal_ours_in_loss_and_weights(more, tiny_folder, tmp_path):
    config, _ = write(tiny_folder, tmp_path / "trl", **more)
    student, teacher, kl = our_run(config)
    trl_student, trl_teacher, losses = trl_run(tmp_path / "trl")
    assert share_apart(student, trl_student, config) < 5e-5
    assert largest_difference(trl_teacher, teacher) < 1e-5
    if config.estimator == "analytic":  # a surrogate's value means nothing
        assert losses == pytest.approx(kl, abs=1e-5)


@needs_trl
@pytest.mark.parametrize(
    "more, least, most",
    [
        ({"dtype": "bfloat16"}, 0.05, 0.2),
        ({"weight_decay": 0.1}, 0.005, 0.03),
        ({"reduction": "sum"}, 0.1, 0.4),
    ],
)
def test_what_differs_does_so_by_the_figure_on_the_page(more, least, most, tiny_folder, tmp_path):
    config, _ = write(tiny_folder, tmp_path / "trl", **more)
    student, _, _ = our_run(config)
    trl_student, _, _ = trl_run(tmp_path / "trl")
    share = share_apart(student, trl_student, config)
    print(f"{more}: {share:.3f}")
    assert least < share < most


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ON_TWO_CPUS = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
WORKER = """
import json, os, sys
from pathlib import Path

sys.path[:0] = {paths!r}
from test_to_trl import completion_of, to_trl

folder = Path(sys.argv[1])
trainer = to_trl.build_trainer(folder)
drawn = folder / f"drawn-{{os.environ['RANK']}}.json"
drawn.write_text(json.dumps(trainer._generate([[5, 6, 7]])[1]))
trainer._generate = lambda prompts: (prompts, [completion_of(prompt) for prompt in prompts])
trainer.train()
trainer.save_model(str(folder / "last"))
"""


def launch(script, *arguments):
    """Run a script in two processes, which talk over gloo."""
    command = [*LAUNCH, str(script), *map(str, arguments)]
    options = {"env": os.environ | ON_TWO_CPUS, "capture_output": True, "text": True}
    done = subprocess.run(command, **options, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@needs_trl
def test_two_processes_train_and_transformers_loads_what_they_save(tiny_folder, tmp_path):
    """By a copy of the file, where nothing else of ours can be imported."""
    folder = tmp_path / "trl"
    write(tiny_folder, folder, rollouts_per_prompt=2, skip_first_tokens=0)
    launch(shutil.copy(to_trl.__file__, tmp_path), "--train", folder)
    last = AutoModelForCausalLM.from_pretrained(folder / "last")
    start, _ = load_model(str(tiny_folder))
    assert largest_difference(last, start) > 1e-3
    assert load_model(str(folder / "last"))[1].chat_template is not None  # so eval.py loads it


@needs_trl
def test_two_processes_make_the_same_two_steps(tiny_folder, tmp_path):
    folder, worker = tmp_path / "trl", tmp_path / "worker.py"
    config, _ = write(tiny_folder, folder)
    worker.write_text(WORKER.format(paths=[str(ROOT / part) for part in ("tests", "extras", "")]))
    launch(worker, folder)
    student, _, _ = our_run(config)
    last = AutoModelForCausalLM.from_pretrained(folder / "last")
    assert share_apart(student, last, config) < 5e-5
    drawn = [(folder / f"drawn-{rank}.json").read_text() for rank in (0, 1)]
    assert drawn[0] != drawn[1]  # of one prompt: the processes have different random numbers


# ---- without TRL ----


def test_every_flag_is_carried_over_or_named(tiny_folder, tmp_path):
    """Another value of a flag changes what is written, or a line that is printed."""
    base = {"max_prompt_tokens": 122, "micro_batch_tokens": 1000}
    base["steps"] = None
    other = {
        "task": "knowledge",
        "dtype": "bfloat16",
        "seed": 1,
        "divergence": "forward",
        "estimator": "token",
        "reduction": "sum",
        "skip_first_tokens": 0,
        "temperature": 0.5,
        "teacher": "base",
        "ema_rate": 0.02,
        "teacher_context": "none",
        "teacher_instruction": "plain",
        "teacher_template": "{question}\n{demonstration}",
        "on_collapse": "stop",
        "learning_rate": 1e-3,
        "warmup": 2,
        "epochs": 1,
        "steps": 3,
        "batch_size": 6,
        "rollouts_per_prompt": 2,
        "micro_batch_tokens": 100,
        "gradient_checkpointing": True,
        "offload_optimizer": True,
        "max_grad_norm": 2.0,
        "weight_decay": 0.1,
        "max_new_tokens": 13,
        "max_prompt_tokens": 118,
        "max_teacher_prompt_tokens": 370,
        "save_every": 49,
        "keep_last": 2,
    }
    # preset is a name for values; a folder and a model are what is handed over, not how
    elsewhere = {"preset", "data", "model", "output", "teacher_model", *to_trl.UNUSED}
    refused = {
        "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
        "lora_rank": {"lora_rank": 4},
        "lora_alpha": {"lora_rank": 4, "lora_alpha": 8},
        "lora_targets": {"lora_rank": 4, "lora_targets": "q_proj"},
        "lora_train_a": {"lora_rank": 4, "lora_train_a": False},
    }
    fields = {f.name for f in dataclasses.fields(Config)}
    assert other.keys() | elsewhere | refused.keys() | {"too_long"} == fields

    def outcome(name, **more):
        _, lines = write(tiny_folder, tmp_path / name, **base | more)
        files = [(tmp_path / name / file).read_text() for file in ("data.jsonl", "settings.json")]
        return files, [line for line in lines if "not carried over" in line]

    files, lines = outcome("base")
    assert all(flag(name) in " ".join(lines) for name in to_trl.UNUSED)
    for name, value in other.items():
        assert outcome(name, **{name: value}) != (files, lines), name
    for name, values in refused.items():
        with pytest.raises(ValueError, match="not handed over|adapters"):
            outcome(f"refused-{name}", **values)
    with pytest.raises(ValueError, match="left out"):
        outcome("too_long", too_long="stop")


def test_an_example_that_trl_would_read_otherwise_is_left_out_and_named(
    tiny_folder, tmp_path, capsys
):
    """<|im_end|> typed in a question stays text in sdft.py, and would end the turn in TRL."""
    data = tmp_path / "data"
    data.mkdir()
    records = [
        {"id": name, "prompt": prompt, "demonstration": "Yes.", "answer": "A"}
        for name, prompt in [("plain", "Is {this} one?"), ("typed", "Is <|im_end|> a token?")]
    ]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    write(tiny_folder, tmp_path / "trl", data=str(data))
    assert "control tokens typed in their text: typed" in capsys.readouterr().out
    [row] = map(json.loads, (tmp_path / "trl/data.jsonl").read_text().splitlines())
    assert row["prompt"] == [{"role": "user", "content": "Is {this} one?"}]
    assert row["privileged_context"].startswith("Is {this} one?\n\nThis is an example")


def test_a_step_that_cannot_be_shared_evenly_stops():
    size = to_trl.micro_batch_size
    assert [size(32, 4, 8), size(32, 4, 3), size(12, 2, 5), size(4, 2, 100)] == [8, 2, 3, 2]
    with pytest.raises(ValueError, match="32 completions a step cannot be shared among 3"):
        size(32, 3, 8)


def test_the_command_line_writes_a_folder_and_refuses_one_that_exists(
    tiny_folder, tmp_path, capsys
):
    flags = ["--model", str(tiny_folder), "--output", str(tmp_path / "trl"), "--steps", "3"]
    to_trl.main([*flags, "--reduction", "sum"])
    printed = capsys.readouterr().out
    assert "not carried over: --reduction sum: TRL takes the mean" in printed
    command = f"accelerate launch --num_processes N extras/to_trl.py --train {tmp_path}/trl"
    assert printed.splitlines()[-1] == command
    with pytest.raises(SystemExit, match="trl exists; name another --output"):
        to_trl.main(flags)


def test_training_takes_a_folder_alone_and_says_what_it_lacks(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        to_trl.main(["--train", "runs/trl", "--steps", "3"])
    assert "every setting of the run; leave out --steps 3" in capsys.readouterr().err
    monkeypatch.setattr(to_trl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="training needs TRL: pip install trl==1.16.0"):
        to_trl.main(["--train", "runs/trl"])


# ---- what sdft.py itself saves ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_last_loads_in_transformers_with_the_logits_of_the_trained_model(
    dtype, tiny_folder, tmp_path, monkeypatch
):
    runs, finish = [], sdft.finish
    monkeypatch.setattr(sdft, "finish", lambda run: (runs.append(run), finish(run)))
    flags = ["--model", str(tiny_folder), "--output", str(tmp_path / "run"), "--dtype", dtype]
    flags += "--steps 2 --batch-size 2 --eval-examples 2 --general-tokens 4 --force".split()
    flags += "--max-new-tokens 6 --skip-first-tokens 0 --max-teacher-prompt-tokens 1500".split()
    sdft.main([*flags, "--learning-rate", "0.01"])
    [run] = runs
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "last")
    assert last.dtype == getattr(torch, dtype) and largest_difference(last, run.student) == 0
    assert largest_difference(last, load_model(str(tiny_folder))[0]) > 1e-3
    ids = torch.arange(20)[None]
    with torch.no_grad():
        tolerance = {"float32": 1e-5, "bfloat16": 0.05}[dtype]
        assert torch.allclose(last(ids).logits, run.student(ids).logits, rtol=0, atol=tolerance)
