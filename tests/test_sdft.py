"""The step, the loop and a run's life, on tiny models.

Oracles: a dense loss computed sequence by sequence without padding, cache, chunks or micro-batches;
the unbroken run, for resumes; Algorithm 1's arithmetic by hand, for schedule and order.
"""

import copy
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, gradients, tiny_llama, tiny_model
from safetensors.torch import load_file
from transformers import Olmo3Config, Qwen2Config

import sdft
import support.preflight
import support.run
from config import Config
from data import Pair, load_task
from eval import drift_from_base, sample_base_answers
from optim import AdamW, copy_model, prepare_for_training
from sampling import Rollout, sample_completions
from sdft import Batch, learning_rate_at, make_batch, micro_batches, sdft_step
from support.checkpoint import list_checkpoints
from support.models import load_model

PAIRS = [Pair(f"p{i}", [3 + i] * (2 + i), [5] * 4 + [3 + i] * (2 + i)) for i in range(6)]
# several, so that completions differ in length
STOP = {"eos_token_ids": [1, 4, 9, 20, 30], "pad_token_id": 1}
TINY = Config(
    batch_size=6,
    max_new_tokens=12,
    steps=10,
    learning_rate=1e-3,
    warmup=0,
    skip_first_tokens=2,
)


class KeepGradients:
    """In the optimiser's place: leaves the gradients to look at."""

    def step(self, learning_rate):
        pass


def step_gradient(config, dtype=torch.float32, pairs=PAIRS):
    student, teacher = tiny_llama(dtype=dtype), tiny_llama(dtype=dtype, seed=1)
    config = dataclasses.replace(config, max_grad_norm=1e9, teacher="base")
    batch = make_batch(pairs, 0, config, STOP)
    metrics, rollout = sdft_step(student, teacher, KeepGradients(), batch, config)
    return gradients(student), metrics, rollout, student, teacher


def micro_batch_count(rollout, config):
    return len(list(micro_batches(make_batch(PAIRS, 0, config, STOP), rollout, config)))


def dense_gradient(rollout, student, teacher, config):
    """The loss of the same rollout, one unpadded sequence and one formula at a time."""
    student.zero_grad()
    loss = 0
    for b, pair in enumerate(make_batch(PAIRS, 0, config, STOP).pairs):
        ids = rollout.completion_ids_BT[b][rollout.completion_mask_BT[b]]
        s, t = (
            model(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1]
            for model, prompt in ((student, pair.student_prompt), (teacher, pair.teacher_prompt))
        )
        s, t = s.log_softmax(-1), t.log_softmax(-1).detach()
        token_s, token_t = (logprobs[torch.arange(len(ids)), ids] for logprobs in (s, t))
        reverse, forward = (s.exp() * (s - t)).sum(-1), (t.exp() * (t - s)).sum(-1)
        kl = reverse if config.divergence == "reverse" else forward
        earlier = torch.stack([token_s[:i].sum() for i in range(len(ids))])
        value = {
            "analytic": kl,
            "token": (token_s - token_t).detach() * token_s,
            "rb": kl + kl.detach() * earlier,
        }[config.estimator]
        kept = value[config.skip_first_tokens :]
        if len(kept):
            reduced = kept.mean() if config.reduction == "mean" else kept.sum()
            loss = loss + reduced / len(rollout.finished_B)
    loss.backward()
    return gradients(student)


@pytest.mark.parametrize(
    "divergence, estimator, reduction",
    [
        ("reverse", "analytic", "mean"),
        ("forward", "analytic", "mean"),
        ("reverse", "analytic", "sum"),
        ("reverse", "token", "mean"),
        ("reverse", "rb", "sum"),
    ],
)
def test_gradient_equals_a_dense_computation(divergence, estimator, reduction):
    method = {"divergence": divergence, "estimator": estimator, "reduction": reduction}
    config = dataclasses.replace(TINY, micro_batch_tokens=60, **method)
    found, metrics, rollout, student, teacher = step_gradient(config, torch.float64)
    assert 1 < micro_batch_count(rollout, config) < len(PAIRS)
    lengths = rollout.completion_mask_BT.sum(1)
    assert lengths.min() < lengths.max() and metrics["grad_norm"] > 0
    expected = dense_gradient(rollout, student, teacher, config)
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    assert metrics["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-5)


def test_several_rollouts_of_a_prompt_are_rows_of_their_own():
    config = dataclasses.replace(TINY, batch_size=3, rollouts_per_prompt=2)
    found, _, rollout, student, teacher = step_gradient(config)
    assert torch.allclose(found, dense_gradient(rollout, student, teacher, config), atol=1e-6)
    pairs = make_batch(PAIRS, 0, config, STOP).pairs
    once = make_batch(PAIRS, 0, dataclasses.replace(config, rollouts_per_prompt=1), STOP).pairs
    assert pairs[0::2] == pairs[1::2] == once
    rows = [
        ids_T[mask_T].tolist()
        for ids_T, mask_T in zip(rollout.completion_ids_BT, rollout.completion_mask_BT, strict=True)
    ]
    assert all(one != other for one, other in zip(rows[0::2], rows[1::2], strict=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_micro_batch_tokens_change_no_gradient(dtype, tolerance):
    """All rows together, each alone, and something between the two."""
    whole, _, rollout, *_ = step_gradient(TINY, dtype)
    assert micro_batch_count(rollout, TINY) == 1
    for tokens in (1, 45):
        config = dataclasses.replace(TINY, micro_batch_tokens=tokens)
        parts, _, rollout, *_ = step_gradient(config, dtype)
        count = micro_batch_count(rollout, config)
        assert count == 6 if tokens == 1 else 2 < count < 6
        assert (parts - whole).norm() <= tolerance * whole.norm()


def test_completions_without_loss_tokens_count_zero_and_stay_in_the_mean():
    config = dataclasses.replace(TINY, skip_first_tokens=6)
    found, metrics, rollout, student, teacher = step_gradient(config)
    lengths = rollout.completion_mask_BT.sum(1)
    assert torch.allclose(found, dense_gradient(rollout, student, teacher, config), atol=1e-6)
    metrics |= sdft.rollout_metrics(make_batch(PAIRS, 0, config, STOP), rollout, config, 1.0)
    assert metrics["without_loss"] == pytest.approx((lengths <= 6).float().mean().item())
    assert 0 < metrics["without_loss"] < 1 and math.isfinite(metrics["kl"])


def test_temperature_is_of_the_rollouts_alone():
    """The completions are those that temperature 0.5 draws; the loss on them stays at 1."""
    config = dataclasses.replace(TINY, temperature=0.5)
    found, _, rollout, student, teacher = step_gradient(config)
    batch = make_batch(PAIRS, 0, config, STOP)
    prompts = [pair.student_prompt for pair in batch.pairs]
    options = {"max_new_tokens": 12, "uniforms_BT": batch.uniforms_BT, "temperature": 0.5, **STOP}
    expected = sample_completions(student, prompts, **options)
    assert torch.equal(rollout.completion_ids_BT, expected.completion_ids_BT)
    assert torch.allclose(found, dense_gradient(rollout, student, teacher, config), atol=1e-6)


@pytest.mark.parametrize("teacher_weights", ["ema", "base", "student"])
def test_teacher_weights(teacher_weights):
    student = tiny_llama()
    prepare_for_training(student)
    teacher = student if teacher_weights == "student" else copy_model(student)
    config = dataclasses.replace(TINY, teacher=teacher_weights, ema_rate=0.25)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    sdft_step(student, teacher, AdamW(student), make_batch(PAIRS, 0, config, STOP), config)
    for old, s, t in zip(before, student.parameters(), teacher.parameters(), strict=True):
        expected = {"ema": old + 0.25 * (s - old), "base": old, "student": s}[teacher_weights]
        torch.testing.assert_close(t, expected)
    assert not torch.equal(before[1], list(student.parameters())[1])


def test_freed_memory_is_given_back_before_each_loss(tiny, monkeypatch):
    order = []

    def recorded(name):
        function = getattr(sdft, name)

        def call(*arguments):
            order.append(name)
            return function(*arguments)

        return call

    for name in ("give_back_freed_memory", "compare_completions"):
        monkeypatch.setattr(sdft, name, recorded(name))
    prepare_for_training(tiny)
    config = dataclasses.replace(TINY, micro_batch_tokens=1)
    batch = make_batch(PAIRS, 0, config, STOP)
    sdft_step(tiny, copy_model(tiny), AdamW(tiny), batch, config)
    assert order == ["give_back_freed_memory", "compare_completions"] * len(batch.pairs)


def test_non_finite_gradients_stop_before_the_update():
    student = tiny_llama()
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight[0, 0] = math.inf
    prepare_for_training(student)
    before, teacher = copy.deepcopy(student.state_dict()), copy_model(student)
    with pytest.raises(FloatingPointError, match="step 1: loss or gradient is not finite.*p0"):
        sdft_step(student, teacher, AdamW(student), make_batch(PAIRS, 0, TINY, STOP), TINY)
    for name, tensor in student.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_a_step_clips_and_takes_the_scheduled_rate():
    """Warm-up of 3 at 1e-3: 1/4, 2/4, then the peak at step 3."""
    config = dataclasses.replace(TINY, warmup=3, max_grad_norm=0.01, teacher="base")
    student, teacher, rates = tiny_llama(), tiny_llama(seed=1), []
    optimizer = SimpleNamespace(step=rates.append)
    for step in (0, 1, 3):
        student.zero_grad()
        batch = make_batch(PAIRS, step, config, STOP)
        metrics, _ = sdft_step(student, teacher, optimizer, batch, config)
        assert gradients(student).norm().item() == pytest.approx(0.01, rel=1e-4)
        assert metrics["grad_norm"] > 0.01  # the norm before
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 1e-3])


@pytest.mark.parametrize("more", [{"reduction": "sum"}, {"estimator": "token"}])
def test_the_logged_kl_is_a_mean_over_tokens_whatever_the_loss(more):
    config, kl_B = dataclasses.replace(TINY, **more), []
    _, metrics, rollout, student, teacher = step_gradient(config, torch.float64)
    for b, pair in enumerate(make_batch(PAIRS, 0, config, STOP).pairs):
        ids = rollout.completion_ids_BT[b][rollout.completion_mask_BT[b]].tolist()
        s, t = (
            torch.distributions.Categorical(
                logits=model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            )
            for model, prompt in ((student, pair.student_prompt), (teacher, pair.teacher_prompt))
        )
        kept_T = torch.distributions.kl_divergence(s, t)[config.skip_first_tokens :]
        kl_B.append(kept_T.mean().item() if len(kept_T) else 0.0)
    assert metrics["kl"] == pytest.approx(sum(kl_B) / len(kl_B), rel=1e-5)


def test_the_teachers_pass_keeps_nothing_for_backward(monkeypatch):
    seen, plain = [], sdft.compare_completions

    def noted(student_BTD, student_head, teacher_BTD, *more):
        seen.append((student_BTD.requires_grad, teacher_BTD.requires_grad))
        return plain(student_BTD, student_head, teacher_BTD, *more)

    monkeypatch.setattr(sdft, "compare_completions", noted)
    step_gradient(TINY)
    assert seen == [(True, False)]


def test_the_seed_decides_the_order_and_every_stream_has_numbers_of_its_own():
    orders = set()
    for seed in range(4):
        batch = make_batch(PAIRS, 0, dataclasses.replace(TINY, seed=seed), STOP)
        orders.add(tuple(pair.id for pair in batch.pairs))
    assert len(orders) > 1
    streams = [sdft.ORDER, sdft.ROLLOUTS, sdft.TEACHER_ANSWERS, sdft.PREFLIGHT]
    drawn = {
        tuple(sdft.random_stream(0, stream, index).random(3))
        for stream in streams
        for index in (0, 1)
    }
    assert len(drawn) == 2 * len(streams)


def test_every_epoch_shows_every_example_once():
    """And the draws are a function of (seed, step), a row's of its place."""
    config = dataclasses.replace(TINY, batch_size=4)
    batches = [make_batch(PAIRS, step, config, STOP) for step in range(6)]
    ids = [pair.id for batch in batches for pair in batch.pairs]
    for epoch in range(4):
        assert sorted(ids[6 * epoch : 6 * epoch + 6]) == [f"p{i}" for i in range(6)]
    assert ids[:6] != ids[6:12]
    a, b, c = (make_batch(PAIRS, step, config, STOP).uniforms_BT for step in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    smaller = make_batch(PAIRS, 3, dataclasses.replace(config, batch_size=2), STOP)
    assert torch.equal(a[:2], smaller.uniforms_BT)
    other_seed = make_batch(PAIRS, 3, dataclasses.replace(config, seed=1), STOP)
    assert not torch.equal(a, other_seed.uniforms_BT)


def test_schedule_by_hand():
    """Warm-up 3 of 10 steps at rate 1: 1/4, 2/4, 3/4, then a cosine over the other 7."""
    config = dataclasses.replace(TINY, learning_rate=1.0, warmup=3)
    rates = [learning_rate_at(step, 10, config) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_at(6.5, 10, config) == pytest.approx(0.5) and 0 < rates[9] < 0.06
    share = dataclasses.replace(config, warmup=0.1)
    assert learning_rate_at(0, 100, share) == pytest.approx(1 / 11)


def test_micro_batches_keep_the_limit_and_lose_no_row():
    """Prompts of 9, 3, 2, 4 tokens with completions of 3: totals 12, 6, 5, 7.

    In rows x longest at most 12: 5 and 6 together, then 7, then 12.
    """
    ids_BT, mask_BT = torch.tensor([[2, 3, 1]] * 4), torch.ones(4, 3, dtype=torch.bool)
    rollout = Rollout(ids_BT, mask_BT, torch.ones(4, dtype=torch.bool))

    def rows(teacher_lengths, tokens):
        lengths = zip("abcd", (9, 3, 2, 4), teacher_lengths, strict=True)
        pairs = [Pair(name, [5] * student, [5] * teacher) for name, student, teacher in lengths]
        batch = Batch(0, pairs, None, 1e-3, [], 0)
        config = dataclasses.replace(TINY, micro_batch_tokens=tokens)
        return [micro.rows for micro in micro_batches(batch, rollout, config)]

    short = [1] * 4
    assert rows(short, 12) == [[2, 1], [3], [0]]
    assert rows(short, 48) == [[2, 1, 3, 0]]
    assert rows(short, 1) == [[2], [1], [3], [0]]  # one longer than the limit goes alone
    # the teacher's prompts count where they are longer: totals 12, 12, 5, 7
    assert rows([2, 9, 2, 4], 14) == [[2, 3], [0], [1]]


# ---- whole runs ----


def flags(model, output, **more):
    values = {
        "task": "science",
        "preset": "laptop",
        "model": model,
        "output": output,
        "steps": 6,
        "batch_size": 2,
        "max_new_tokens": 6,
        "eval_new_tokens": 9,
        "max_prompt_tokens": 1000,
        "max_teacher_prompt_tokens": 1500,
        "eval_examples": 2,
        "general_tokens": 4,
        "eval_every": 3,
        "save_every": 2,
        "learning_rate": 1e-3,
    }
    given = {name: value for name, value in (values | more).items() if value is not None}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items()]
    return ["--force", *(text for pair in pairs for text in pair)]


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    sdft.main(flags(tiny_folder, folder))
    return folder


def test_a_run_leaves_its_files(unbroken):
    files = {"before.json", "results.json", "metrics.jsonl", "rollouts.jsonl", "answers.jsonl"}
    folders = {"best", "last", "checkpoint-000006"}
    assert {path.name for path in unbroken.iterdir()} == files | folders
    metrics = read_lines(unbroken / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert ["validation" in line for line in metrics] == [False, False, True] * 2
    expected = {"kl", "grad_norm", "completion_tokens", "finished", "without_loss", "tokens_per_s"}
    assert all(expected <= line.keys() for line in metrics)
    # a pass over both models: with validations only
    assert ["teacher_gap" in line for line in metrics] == [False, False, True] * 2
    assert 0 < metrics[2]["teacher_gap"] < metrics[5]["teacher_gap"]
    results = json.loads((unbroken / "results.json").read_text())
    before = json.loads((unbroken / "before.json").read_text())
    assert before["config"] == results["config"] and before["command"] == results["command"]
    assert results["config"]["steps"] == 6 and "python sdft.py --force" in results["command"]
    assert results["before"]["test"]["drift_from_base"] == pytest.approx(0, abs=1e-5)
    assert results["last"]["test"]["drift_from_base"] > 0
    assert max(line["completion_tokens"] for line in metrics) <= 6
    evaluated = [before["preflight"]["student"], before["before"]["test"], results["last"]["test"]]
    evaluated += [line["validation"] for line in metrics if "validation" in line]
    assert all(6 < summary["completion_tokens"] <= 9 for summary in evaluated)


def test_answers_of_every_evaluation_are_kept(unbroken):
    """2 of each set: the best weights are reported if they are not the last."""
    seen = [(line["when"], line["set"]) for line in read_lines(unbroken / "answers.jsonl")]
    rows = ["test", "new stems"]
    expected = [("before", row) for row in rows]
    expected += [("step 3", "validation"), ("step 6", "validation")]
    best = json.loads((unbroken / "results.json").read_text())["best_step"]
    expected += [(when, row) for when in ["last"] + ["best"] * (best < 6) for row in rows]
    assert seen == [name for name in expected for _ in range(2)]


@pytest.mark.parametrize("sample_every, steps", [(2, [2, 4]), (0, [])])
def test_completions_are_shown(sample_every, steps, tiny_folder, tmp_path, capsys):
    more = {"sample_every": sample_every, "steps": 4, "eval_every": 0}
    sdft.main(flags(tiny_folder, tmp_path / "run", **more))
    lines, printed = read_lines(tmp_path / "run" / "rollouts.jsonl"), capsys.readouterr().out
    assert [line["step"] for line in lines] == steps
    _, tokenizer = load_model(str(tiny_folder))
    for line in lines:
        assert line["completion"] == tokenizer.decode(line["completion_ids"])
        assert f"{line['id']}: {line['completion']!r}" in printed


OLMO = {"num_hidden_layers": 4, "sliding_window": 16}
ANSWER_ONLY = {"task": "medical", "data": ROOT / "samples/medical-answer-only"}


@pytest.mark.parametrize(
    "config_class, more, task",
    [
        (Qwen2Config, {"num_hidden_layers": 3}, {"task": "science"}),
        (Olmo3Config, OLMO, ANSWER_ONLY),
    ],
    ids=["model size: qwen2", "Table 2: olmo3"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_papers_other_models_at_toy_size(config_class, more, task, dtype, tokenizer, tmp_path):
    """They run from start to end, and what is written loads with the weights that were trained."""
    tiny_model(config_class, vocab_size=len(tokenizer), **more).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run = flags(tmp_path / "model", tmp_path / "run", steps=2, dtype=dtype, **task)
    sdft.main([*run, "--gradient-checkpointing"])
    trained, start = (
        load_model(str(folder), dtype=dtype)[0]
        for folder in (tmp_path / "run" / "last", tmp_path / "model")
    )
    assert type(trained) is type(start)
    assert trained.config.num_hidden_layers == more["num_hidden_layers"]
    pairs = zip(trained.parameters(), start.parameters(), strict=True)
    moved = [not torch.equal(a, b) for a, b in pairs]
    # a small step may leave a bfloat16 weight where it was; its remainder moves
    assert any(moved) if dtype == "bfloat16" else all(moved)


def same_weights(run_a, run_b, more=()):
    files = ["student/model.safetensors", "teacher/model.safetensors", "optimizer.safetensors"]
    for name in [*files, *more]:
        a, b = (load_file(run / "checkpoint-000006" / name) for run in (run_a, run_b))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name


def press_ctrl_c_in_step_3(monkeypatch):
    """While the third batch of this process is made; a later run goes on from there."""
    plain, steps = sdft.make_batch, []

    def interrupted_batch(*arguments):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr(sdft, "make_batch", interrupted_batch)


@pytest.fixture
def ctrl_c_in_step_3(monkeypatch):
    press_ctrl_c_in_step_3(monkeypatch)


def interrupted(main, given):
    """A run that Ctrl-C stops after its step ends with the exit status of one."""
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 130


def test_a_finished_run_that_is_resumed_keeps_each_answer_once(unbroken, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    sdft.main(["--resume", str(run)])
    assert (run / "answers.jsonl").read_text() == (unbroken / "answers.jsonl").read_text()


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_processes(unbroken, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    file = run / "checkpoint-000006" / "state.json"
    state = json.loads(file.read_text())
    whole = json.loads((run / "results.json").read_text())["seconds"]
    steps = sum(line["seconds"] for line in read_lines(run / "metrics.jsonl"))
    assert steps < state["seconds"] < whole
    file.write_text(json.dumps(state | {"seconds": 10**6}))
    sdft.main(["--resume", str(run)])
    assert 10**6 < json.loads((run / "results.json").read_text())["seconds"] < 10**6 + 100


def test_ctrl_c_saves_and_says_how_to_resume(
    ctrl_c_in_step_3, unbroken, tiny_folder, tmp_path, capsys
):
    interrupted(sdft.main, flags(tiny_folder, tmp_path / "run"))
    [checkpoint] = list_checkpoints(tmp_path / "run")
    assert checkpoint.name == "checkpoint-000003"
    printed = capsys.readouterr().out
    assert "stopping: this step is finished and saved first\n" in printed
    assert f"python sdft.py --resume {tmp_path / 'run'}" in printed
    assert not (tmp_path / "run" / "results.json").exists()
    sdft.main(["--resume", str(tmp_path / "run")])
    same_weights(tmp_path / "run", unbroken)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["last"]


def test_a_run_without_checkpoints_leaves_its_weights(
    ctrl_c_in_step_3, tiny_folder, tmp_path, capsys
):
    """And says, when it is stopped, that there is nothing to resume."""
    interrupted(sdft.main, flags(tiny_folder, tmp_path / "run", keep_last=0))
    printed = capsys.readouterr().out
    assert "stopping: this step is finished first; with --keep-last 0 it is not saved\n" in printed
    assert (
        "stopped after step 3. With --keep-last 0 there is no checkpoint to go on from" in printed
    )
    assert "--resume" not in printed and list_checkpoints(tmp_path / "run") == []
    sdft.main(flags(tiny_folder, tmp_path / "whole", keep_last=0))
    assert list_checkpoints(tmp_path / "whole") == [] and (tmp_path / "whole" / "last").exists()


def test_what_does_not_change_the_result_may_change_on_resume(
    ctrl_c_in_step_3, unbroken, tiny_folder, tmp_path, capsys
):
    """Every step saved, two kept, no completion shown: the bits of the unbroken run."""
    interrupted(sdft.main, flags(tiny_folder, tmp_path / "run"))
    capsys.readouterr()
    resume = ["--resume", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="--save-every is 0; it must be at least 1"):
        sdft.main([*resume, "--save-every", "0"])
    more = "--save-every 1 --keep-last 2 --sample-every 0 --seed 0"
    sdft.main([*resume, *more.split()])
    printed = capsys.readouterr().out
    changes = (
        f"resumed from {tmp_path / 'run' / 'checkpoint-000003'}; --save-every is 1, was 2; "
        "--keep-last is 2, was 1; --sample-every is 0, was 10"
    )
    assert changes in printed and "--seed" not in printed
    assert "step    3  kl" not in printed and "step    4  kl" in printed
    names = [checkpoint.name for checkpoint in list_checkpoints(tmp_path / "run")]
    assert names == ["checkpoint-000005", "checkpoint-000006"]
    same_weights(tmp_path / "run", unbroken)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["save_every"] == 1


def test_best_weights_and_their_step_agree_after_a_kill(tiny_folder, tmp_path, monkeypatch):
    """Killed between best/ and the checkpoint of step 3, which validates worse the second time.

    So it may with a judge, or on a GPU.
    """
    ranks = iter([[0.1], [0.2], [0.9], [0.15], [0.1]])  # of steps 1, 2, 3, and again 3, then 4
    monkeypatch.setattr(sdft, "validation_rank", lambda summary: next(ranks))

    def kill(folder, step, validation):
        if step == 3:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="stopped at once"):
        patch.setattr(sdft, "find_collapse", kill)
        sizes = {"steps": 4, "eval_every": 1, "save_every": 1, "keep_last": 9}
        sdft.main(flags(tiny_folder, run, **sizes))
    assert list_checkpoints(run)[-1].name == "checkpoint-000002"
    sdft.main(["--resume", str(run)])
    assert json.loads((run / "results.json").read_text())["best_step"] == 3
    best, third = (
        load_file(run / name / "model.safetensors")
        for name in ("best", "checkpoint-000003/student")
    )
    assert all(torch.equal(best[name], third[name]) for name in third)


def test_the_last_step_validates_and_of_equal_validations_the_later_is_best(
    tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(sdft, "validation_rank", lambda summary: [0.5, 1.0])
    run = tmp_path / "run"
    sdft.main(flags(tiny_folder, run, steps=3, eval_every=2))
    validated = [line["step"] for line in read_lines(run / "metrics.jsonl") if "validation" in line]
    assert validated == [2, 3]
    assert json.loads((run / "results.json").read_text())["best_step"] == 3


def test_the_best_row_is_measured_on_the_best_weights(tiny_folder, tmp_path, monkeypatch):
    """Oracle: the drift of the folders that the run leaves."""
    ranks = iter([[0.9], [0.1]])
    monkeypatch.setattr(sdft, "validation_rank", lambda summary: next(ranks))
    run, more = tmp_path / "run", {"dtype": "float32", "learning_rate": 0.01}
    sdft.main(flags(tiny_folder, run, steps=2, eval_every=1, **more))
    results = json.loads((run / "results.json").read_text())
    base, tokenizer = load_model(str(tiny_folder))
    answers = sample_base_answers(base, tokenizer, load_task("general", "test"), 4)
    for name in ("best", "last"):
        expected = drift_from_base(answers, load_model(str(run / name))[0])
        assert results[name]["test"]["drift_from_base"] == pytest.approx(expected, rel=1e-4)
    assert results["best"] != results["last"]


@pytest.mark.parametrize("given", [True, False])
def test_the_optimisers_flags_reach_it(given, tiny_folder, tmp_path, monkeypatch):
    made = []

    class Noted(AdamW):
        def __init__(self, model, **how):
            super().__init__(model, **how)
            made.append(self)

    monkeypatch.setattr(sdft, "AdamW", Noted)
    run = flags(tiny_folder, tmp_path / "run", steps=1, eval_every=0, keep_last=0)
    if given:
        run += ["--weight-decay", "0.1", "--offload-optimizer", "--gradient-checkpointing"]
    sdft.main(run)
    [optimizer] = made
    recomputes = "forward" in vars(optimizer.model.model.layers[0])
    assert (optimizer.weight_decay > 0, optimizer.offload, recomputes) == (given, given, given)


def test_a_bfloat16_run_stopped_and_resumed_ends_in_the_same_bits(
    ctrl_c_in_step_3, tiny_folder, tmp_path
):
    """Also if its optimiser's state stands in host memory, where the whole run's does not."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    interrupted(sdft.main, [*flags(tiny_folder, run, dtype="bfloat16"), "--offload-optimizer"])
    sdft.main(["--resume", str(run)])
    sdft.main(flags(tiny_folder, whole, dtype="bfloat16"))
    same_weights(run, whole, ["remainders.safetensors"])
    remainders = load_file(whole / "checkpoint-000006" / "remainders.safetensors")
    assert {name.split(".")[0] for name in remainders} == {"student", "teacher"}
    assert all(tensor.any() for tensor in remainders.values())
    weights = load_file(whole / "last" / "model.safetensors").values()
    assert {tensor.dtype for tensor in weights} == {torch.bfloat16}


def test_a_teacher_no_better_than_the_student_is_a_no_go(tiny_folder, tmp_path, capsys):
    """A random model is right by no question, with the demonstration or without."""
    with pytest.raises(SystemExit, match="nothing was trained; --force trains all the same"):
        sdft.main(flags(tiny_folder, tmp_path / "run")[1:])
    assert "no-go: the teacher is no better than the student" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_without_a_context_the_verdict_is_a_no_go_that_force_overrides(
    tiny_folder, tmp_path, capsys
):
    """The teacher sees what the student sees, so there are no figures of a teacher."""
    run = flags(tiny_folder, tmp_path / "run", steps=2, teacher_context="none")
    with pytest.raises(SystemExit, match="nothing was trained; --force trains all the same"):
        sdft.main(run[1:])
    assert "no-go: with --teacher-context none the teacher sees" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    sdft.main(run)
    printed = capsys.readouterr().out
    assert "no-go: with --teacher-context none" in printed and "validation, teacher" not in printed
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 2
    assert (tmp_path / "run" / "results.json").exists()


def test_ctrl_c_before_the_first_step_leaves_no_folder(tiny_folder, tmp_path, monkeypatch):
    """The same command runs again, under the same name."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(support.preflight, "preflight", interrupt)
    with pytest.raises(SystemExit, match="stopped at once"):
        sdft.main(flags(tiny_folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named_without_a_traceback(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-000006" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = "optimizer.safetensors cannot be read.*the checkpoint is damaged"
    with pytest.raises(SystemExit, match=message):
        sdft.main(["--resume", str(tmp_path / "run")])


def too_large_for_a_gpu(*_):
    message = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation."
    raise torch.OutOfMemoryError(message)


def too_large_for_a_cpu(*_):
    """torch's own error, for more bytes than an address has."""
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "fail, first_line",
    [
        (too_large_for_a_gpu, "CUDA out of memory. Tried to allocate 2.00 GiB."),
        (too_large_for_a_cpu, ".*can't allocate memory: you tried to allocate 1152921504606846976"),
    ],
)
@pytest.mark.parametrize("where", ["preflight", "step"])
def test_out_of_memory_names_the_flags_that_help(
    fail, first_line, where, tiny_folder, tmp_path, monkeypatch
):
    place = (support.preflight, "preflight") if where == "preflight" else (sdft, "make_batch")
    monkeypatch.setattr(*place, fail)
    small = {"eval_examples": 1, "max_new_tokens": 4}
    message = rf"^error: {first_line}[^\n]*\nA new run takes less memory with [^\n]*$"
    with pytest.raises(SystemExit, match=message) as error:
        sdft.main(flags(tiny_folder, tmp_path / "run", **small))
    named = {name.replace("-", "_") for name in re.findall("--([a-z-]+)", str(error.value))}
    expected = {"micro_batch_tokens", "max_new_tokens", "gradient_checkpointing", "dtype"}
    expected |= {"lora_rank"}
    assert named == expected <= Config.__dataclass_fields__.keys()
    assert "No checkpoint was saved" in str(error.value)
    # no empty folder is in the way of the next try
    assert (tmp_path / "run").exists() == (where == "step")


def test_a_disk_that_is_full_at_the_end_loses_nothing(unbroken, tiny_folder, tmp_path, monkeypatch):
    """The last checkpoint stands, and --resume writes what is missing."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "last"))

    with monkeypatch.context() as patch:
        patch.setattr(sdft, "finish", full)
        with pytest.raises(SystemExit, match="error: .*No space left on device.*last"):
            sdft.main(flags(tiny_folder, tmp_path / "run"))
    sdft.main(["--resume", str(tmp_path / "run")])
    ended, expected = (
        load_file(run / "last" / "model.safetensors") for run in (tmp_path / "run", unbroken)
    )
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


def test_other_errors_of_torch_keep_their_traceback(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(support.preflight, "preflight", lambda *_: torch.ones(2) @ torch.ones(3))
    small = {"eval_examples": 1, "max_new_tokens": 4}
    with pytest.raises(RuntimeError, match="size"):
        sdft.main(flags(tiny_folder, tmp_path / "run", **small))


def test_wrong_data_stop_before_the_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(support.run, "load_model", lambda *_: pytest.fail("the model was loaded"))
    for more, message in [
        ({"data": "nowhere"}, "nowhere is not a folder"),
        ({"teacher_context": "text"}, 'field "text" is missing'),
    ]:
        with pytest.raises(SystemExit, match=message):
            sdft.main(flags("smollm2", tmp_path / "run", **more))
        assert not (tmp_path / "run").exists()
