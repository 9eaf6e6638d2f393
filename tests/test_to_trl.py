"""Handing a run over to TRL, and to transformers.

Oracles: TRL's SDFTTrainer (skipped where it is not installed: pip install trl==1.16.0) against
sdft_step on the same completions; AutoModelForCausalLM.from_pretrained against the model trained.
"""

import copy
import dataclasses
import importlib.util
import json
import random
import runpy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

import sdft
from config import Config, total_steps
from data import load_task
from eval import encode_pairs
from models import load_model, stop_tokens
from optim import AdamW
from sampling import Rollout

sys.path.insert(0, str(ROOT / "extras"))
import to_trl  # noqa: E402

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is absent")

# bytes are the tokens; the rate is large, so that 1e-5 is small beside what two steps change
TINY = {
    "dtype": "float32",
    "learning_rate": 1e-2,
    "steps": 2,
    "batch_size": 4,
    "micro_batch_size": 2,
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
    optimizer = AdamW(student, weight_decay=config.weight_decay)
    teacher = student if config.teacher == "student" else copy.deepcopy(student)
    pairs, kl = encode_pairs(tokenizer, load_task(config.task, "train"), config), []
    for step in range(config.steps):
        batch = sdft.make_batch(pairs, step, config, stop_tokens(student, tokenizer))
        rows = [torch.tensor(completion_of(pair.student_prompt)) for pair in batch.pairs]
        mask_BT = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], True)
        rollout = Rollout(pad_sequence(rows, True), mask_BT, torch.ones(len(rows)))
        metrics, _ = sdft.sdft_step(student, teacher, optimizer, batch, config, rollout)
        kl.append(metrics["kl"])
    return student, teacher, kl


def trl_run(folder):
    """The same by train.py -> student, teacher, loss of each step."""
    trainer = runpy.run_path(str(folder / "train.py"))["build_trainer"](folder)
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


@needs_trl
@pytest.mark.parametrize(
    "more",
    [
        {"divergence": "reverse"},
        {"divergence": "forward", "temperature": 0.5, "teacher_instruction": "plain"},
        {"divergence": "jsd", "skip_first_tokens": 0, "rollouts_per_prompt": 2},
        {"estimator": "token", "micro_batch_size": 4, "ema_rate": 0.3},
        {"teacher": "base", "warmup": 0, "seed": 3},
        {"teacher": "student", "teacher_context": "none", "estimator": "token"},
        {"task": "knowledge", "teacher_context": "text+demonstration"},
    ],
    ids=lambda more: " ".join(map(str, more.values())),
)
def test_two_steps_equal_ours_in_loss_and_weights(more, tiny_folder, tmp_path):
    config, _ = write(tiny_folder, tmp_path / "trl", **more)
    student, teacher, kl = our_run(config)
    trl_student, trl_teacher, losses = trl_run(tmp_path / "trl")
    assert largest_difference(trl_student, student) < 1e-5
    assert largest_difference(trl_teacher, teacher) < 1e-5
    start, _ = load_model(config.model)
    print(largest_difference(trl_student, student), largest_difference(trl_teacher, teacher), kl, losses, largest_difference(student, start))
    if config.estimator == "analytic":  # a surrogate's value means nothing
        assert losses == pytest.approx(kl, abs=1e-5)
