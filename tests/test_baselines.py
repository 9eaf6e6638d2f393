"""The baselines: what each trains on, which loss, which teacher, and what is refused.

Oracles: cross entropy of torch on unpadded sequences; -p log p differentiated by hand; the prompts
that data.py makes.
"""

import copy
import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import gradients, tiny_llama, tiny_model
from test_sdft import (
    STOP,
    KeepGradients,
    flags,
    interrupted,
    press_ctrl_c_in_step_3,
    read_lines,
    same_weights,
)
from transformers import GPT2Config

import baselines
import support.preflight
import support.run
from baselines import METHODS, dynamic_loss, dynamic_step, likelihood_loss, likelihood_step
from config import Config
from data import Example, Pair, Splits, load_task
from eval import drift_from_base, sample_base_answers
from kl_estimators import completion_logprobs
from scoring import score
from sdft import make_batch, rollout_metrics
from support.chat import encode_prompt
from support.checkpoint import list_checkpoints, read_state
from support.models import load_model
from support.preflight import estimate

CONFIG = Config(
    batch_size=3,
    micro_batch_tokens=10,  # two of the three rows together
    max_new_tokens=8,
    steps=4,
    learning_rate=1e-3,
    warmup=0,
    max_grad_norm=1e9,
    teacher="none",
    skip_first_tokens=0,
)
PAIRS = [
    Pair("a", [5, 6], [], [7, 8, 1]),
    Pair("b", [5], [], [10, 1]),
    Pair("c", [6, 6, 6], [], [11, 12, 13, 14]),
]


def by_hand(student, weighted):
    """Mean over tokens, then completions, of -log p (or -stopgrad(p) log p), a row at a time."""
    loss = 0
    for pair in PAIRS:
        ids_1L = torch.tensor([pair.student_prompt + pair.completion])
        logits_TV = student(ids_1L).logits[0, len(pair.student_prompt) - 1 : -1]
        nll_T = F.cross_entropy(logits_TV, torch.tensor(pair.completion), reduction="none")
        weight_T = torch.exp(-nll_T).detach() if weighted else 1
        loss = loss + (nll_T * weight_T).mean() / len(PAIRS)
    return loss


@pytest.mark.parametrize("step, weighted", [(likelihood_step, False), (dynamic_step, True)])
def test_likelihood_step_is_cross_entropy(step, weighted):
    student = tiny_llama(dtype=torch.float64)
    batch = make_batch(PAIRS, 0, CONFIG, STOP)
    metrics, rollout = step(student, None, KeepGradients(), batch, CONFIG)
    found = gradients(student)
    student.zero_grad()
    by_hand(student, weighted).backward()
    expected = gradients(student)
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    assert metrics["nll"] == pytest.approx(by_hand(student, False).item(), rel=1e-6)
    assert "kl" not in metrics
    metrics = rollout_metrics(batch, rollout, CONFIG, 1.0)
    assert metrics["completion_tokens"] == 3.0
    assert metrics["finished"] == pytest.approx(2 / 3) and rollout.finished_B.sum() == 2
    assert metrics["without_loss"] == 0  # no token is skipped, so none can lack a loss


def test_a_likelihood_step_clips_takes_its_rate_and_stops_at_infinity():
    """Step 1 of 4 without warm-up: 1e-3 (1 + cos(pi / 4)) / 2."""
    rates = []
    optimizer = SimpleNamespace(step=rates.append)
    config = dataclasses.replace(CONFIG, max_grad_norm=0.01)
    student, batch = tiny_llama(), make_batch(PAIRS, 1, config, STOP)
    metrics, _ = likelihood_step(student, None, optimizer, batch, config)
    assert rates == pytest.approx([0.5e-3 * (1 + math.cos(math.pi / 4))])
    assert gradients(student).norm().item() == pytest.approx(0.01, rel=1e-4)
    assert metrics["grad_norm"] > 0.01
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight[0, 0] = math.inf
    with pytest.raises(FloatingPointError, match="step 2: loss or gradient is not finite"):
        likelihood_step(student, None, optimizer, batch, config)
    assert len(rates) == 1


def test_losses_on_numbers():
    """p = 1/2 and 1/4: -log p is 0.693 and 1.386; DFT weighs them by p. Its gradient is -p."""
    logprobs_BT = torch.tensor([[0.5, 0.25]]).log().requires_grad_()
    assert torch.allclose(likelihood_loss(logprobs_BT), torch.tensor([[0.6931472, 1.3862944]]))
    assert torch.allclose(dynamic_loss(logprobs_BT), torch.tensor([[0.3465736, 0.3465736]]))
    dynamic_loss(logprobs_BT).sum().backward()
    assert torch.allclose(logprobs_BT.grad, torch.tensor([[-0.5, -0.25]]))


def test_completion_logprobs_do_not_depend_on_the_chunk():
    torch.manual_seed(0)
    hidden_BTD, ids_BT = torch.randn(2, 5, 8, dtype=torch.float64), torch.randint(11, (2, 5))
    head = torch.nn.Linear(8, 11, bias=False).double()
    dense_BT = head(hidden_BTD).log_softmax(-1).gather(2, ids_BT[:, :, None])[:, :, 0]
    for chunk_size in (3, 100):
        found_BT = completion_logprobs(hidden_BTD, head, ids_BT, chunk_size)
        assert torch.allclose(found_BT, dense_BT, atol=1e-12)


def test_teacher_kd_is_sdft_on_given_tokens():
    """Dense forward KL on the given completions, without the first token."""
    student, teacher = tiny_llama(dtype=torch.float64), tiny_llama(dtype=torch.float64, seed=1)
    _, step, fixed = METHODS["teacher-kd"]
    config = dataclasses.replace(CONFIG, skip_first_tokens=1, **fixed)
    pairs = [dataclasses.replace(pair, teacher_prompt=[9, *pair.student_prompt]) for pair in PAIRS]
    batch = make_batch(pairs, 0, config, STOP)
    metrics, rollout = step(student, teacher, KeepGradients(), batch, config)
    found = gradients(student)
    student.zero_grad()
    loss = 0
    for pair in pairs:
        s, t = (
            model(torch.tensor([prompt + pair.completion])).logits[0, len(prompt) - 1 : -1]
            for model, prompt in ((student, pair.student_prompt), (teacher, pair.teacher_prompt))
        )
        s, t = s.log_softmax(-1), t.log_softmax(-1).detach()
        kl_T = F.kl_div(s, t, log_target=True, reduction="none").sum(-1)
        loss = loss + kl_T[1:].mean() / len(pairs)
    loss.backward()
    expected = gradients(student)
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    assert metrics["kl"] == pytest.approx(loss.item(), rel=1e-6)
    assert rollout_metrics(batch, rollout, config, 1.0)["without_loss"] == 0
    skips_two = dataclasses.replace(config, skip_first_tokens=2)  # "b" has two tokens
    assert rollout_metrics(batch, rollout, skips_two, 1.0)["without_loss"] == pytest.approx(1 / 3)


# ---- what each method trains on ----

TEXTS = ["First article.", "First article.", "Second one."]


def run_of(tokenizer, config=CONFIG, folder=None):
    """What a method is handed: three questions about two articles."""
    examples = [
        Example(str(n), "knowledge", [{"role": "user", "content": f"q{n}"}], f"answer {n}.", text)
        for n, text in enumerate(TEXTS)
    ]
    pairs = [Pair(example.id, [3], [4, 3]) for example in examples]
    splits = Splits(examples, [], {}, [])
    student = tiny_llama(vocab_size=len(tokenizer))
    parts = {"student": student, "tokenizer": tokenizer, "splits": splits, "pairs": pairs}
    return SimpleNamespace(config=config, folder=folder, checkpoint=None, **parts)


def test_sft_reads_demonstrations(tokenizer):
    written, eos = baselines.demonstrations(run_of(tokenizer)), tokenizer.eos_token_id
    texts = [tokenizer.decode(pair.completion[:-1]) for pair in written]
    assert texts == ["answer 0.", "answer 1.", "answer 2."]
    assert all(pair.completion[-1] == eos and pair.teacher_prompt == [] for pair in written)


def test_cpt_reads_each_article_once_in_blocks_that_lose_no_token(tokenizer):
    run = run_of(tokenizer, dataclasses.replace(CONFIG, max_prompt_tokens=7))
    blocks, eos = baselines.article_blocks(run), tokenizer.eos_token_id
    ids = [token for block in blocks for token in block.student_prompt + block.completion]
    text = tokenizer.decode([token for token in ids if token != eos])
    assert text == "First article.Second one." and ids.count(eos) == 2
    assert max(len(block.student_prompt + block.completion) for block in blocks) == 7
    assert all(len(block.student_prompt) == 1 and not block.teacher_prompt for block in blocks)


def test_cpt_cuts_its_blocks_at_the_positions_of_the_model(tokenizer, capsys):
    """A GPT-2 of 8 positions knows no ninth."""
    run = run_of(tokenizer, dataclasses.replace(CONFIG, max_prompt_tokens=20))
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 8}
    run.student = tiny_model(GPT2Config, **sizes)
    run.pairs = baselines.article_blocks(run)
    assert max(len(block.student_prompt + block.completion) for block in run.pairs) == 8
    assert "articles: blocks of 8 tokens" in capsys.readouterr().out
    batch = make_batch(run.pairs, 0, run.config, STOP)
    metrics, _ = likelihood_step(run.student, None, KeepGradients(), batch, run.config)
    assert math.isfinite(metrics["nll"])


@pytest.mark.parametrize("method, seen", [("teacher-sft", []), ("teacher-kd", [4, 3])])
def test_teachers_answer_once_in_context(method, seen, tokenizer, tmp_path):
    """Oracle: greedy answers to the teacher's prompts. A resumed run does not ask again."""
    completions, _, fixed = METHODS[method]
    config = dataclasses.replace(CONFIG, temperature=1e-6, **fixed)
    run = run_of(tokenizer, config, tmp_path)
    first = completions(run)
    assert run.pairs[0].completion is None
    run.checkpoint, run.student = tmp_path / "checkpoint-000001", None
    assert completions(run) == first
    run = run_of(tokenizer, config, tmp_path)
    for pair in first:
        context = torch.tensor([[4, 3]])
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
        greedy = run.student.generate(context, attention_mask=context * 0 + 1, **options)
        assert pair.completion == greedy[0, 2:].tolist()
        assert (pair.student_prompt, pair.teacher_prompt) == ([3], seen)


def test_each_batch_of_the_teachers_answers_has_draws_of_its_own(tokenizer):
    """Three times one prompt, a batch each."""
    config = dataclasses.replace(CONFIG, batch_size=1, temperature=1.0)
    first, second = (baselines.sample_in_context(run_of(tokenizer, config)) for _ in range(2))
    assert first == second
    assert len(set(map(tuple, first))) == 3


def test_control_tokens_in_demonstrations_and_articles_stay_text(tokenizer):
    """The one EOS of a demonstration is the appended one."""
    run, typed = run_of(tokenizer), "End: <|im_end|><|im_start|>."
    for example in run.splits.train:
        example.demonstration = example.text = typed
    ids, eos = baselines.demonstrations(run)[0].completion, tokenizer.eos_token_id
    assert ids.count(eos) == 1 and ids[-1] == eos and tokenizer.decode(ids[:-1]) == typed
    [block] = baselines.article_blocks(run)
    ids = block.student_prompt + block.completion
    assert ids.count(eos) == 1 and tokenizer.decode(ids[:-1]) == typed


def test_a_demonstration_after_an_opened_thought_is_an_answer(tokenizer):
    """Oracle: the scorer, which looks behind </think>. One that closes its own thought stays."""
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    turn, run = [{"role": "user", "content": "Which organ?"}], run_of(tokenizer)
    run.splits.train = [
        Example(str(n), "medical", turn, demonstration=text, key_facts=[["liver"]])
        for n, text in enumerate(["The liver.", "Bile …</think>The liver."])
    ]
    prompt = encode_prompt(tokenizer, turn)
    run.pairs = [Pair("0", prompt, prompt), Pair("1", prompt, prompt)]
    given = [pair.completion for pair in baselines.demonstrations(run)]
    texts = [tokenizer.decode(prompt + ids[:-1]).rpartition("assistant\n")[2] for ids in given]
    assert texts == ["<think>\n</think>\n\nThe liver.", "<think>Bile …</think>The liver."]
    for text, example in zip(texts, run.splits.train, strict=True):
        assert score(text, example)["correct"]


# ---- python baselines.py ----


@pytest.mark.parametrize(
    "given, message",
    [
        ("--method sft --teacher ema", "--teacher is ema; --method sft fixes it to none"),
        ("--method dft --skip-first-tokens 3", "--method dft fixes it to 0"),
        ("--method teacher-kd --divergence reverse", "--method teacher-kd fixes it to forward"),
        ("--method sft --divergence reverse", "--method sft never reads --divergence; leave it"),
        ("--method dft --temperature 0.5", "--method dft never reads --temperature"),
        ("--method cpt --task knowledge --estimator rb", "--method cpt never reads --estimator"),
        ("--method teacher-sft --divergence jsd", "--method teacher-sft never reads --divergence"),
        (
            "--method reinvoke --teacher-model smollm2 --teacher-instruction plain",
            "--method reinvoke never reads --teacher-instruction",
        ),
        ("--method sft --ema-rate 0.5", "--ema-rate needs --teacher ema, not none"),
        ("--method teacher-kd --ema-rate 0.5", "--ema-rate needs --teacher ema, not base"),
        ("--method reinvoke", "--teacher-model and .* need each other"),
        ("--method sft --teacher-model smollm2", "--teacher-model and .* need each other"),
        ("--method sft --rollouts-per-prompt 4", "--method sft has no rollouts"),
        ("--method cpt --task science", "only --task knowledge has them"),
    ],
)
def test_contradictions_are_refused(given, message, tmp_path):
    output = ["--preset", "laptop", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        baselines.main([*given.split(), *output])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [[], ["--method", "grpo"]])
def test_a_method_is_named(given, capsys):
    with pytest.raises(SystemExit):
        baselines.main(given)
    assert "teacher-kd" in capsys.readouterr().err


@pytest.mark.parametrize("method", [method for method in METHODS if method != "reinvoke"])
def test_each_method_trains_to_the_end_without_a_teacher_it_does_not_ask(
    method, tiny_folder, tmp_path, monkeypatch, capsys
):
    """No copy of a model is made or saved; no-go is not for those who need no such teacher. Those
    who learn from the base in context need one, and are stopped without --force.
    """
    copied, plain = [], copy.deepcopy

    def noted_copy(value, *more):
        if isinstance(value, torch.nn.Module) and hasattr(value, "generation_config"):
            copied.append(value)
        return plain(value, *more)

    monkeypatch.setattr(copy, "deepcopy", noted_copy)
    sizes = {"steps": 2, "max_teacher_prompt_tokens": 2000, "eval_every": 1}
    force, *arguments = flags(tiny_folder, tmp_path / "run", task="knowledge", **sizes)
    command = ["--method", method, *arguments]
    needs_a_teacher = method.startswith("teacher")
    if needs_a_teacher:
        with pytest.raises(SystemExit, match="nothing was trained; --force trains all the same"):
            baselines.main(command)
        command.append(force)
    assert ("no-go" in capsys.readouterr().out) == needs_a_teacher
    baselines.main(command)
    [checkpoint] = list_checkpoints(tmp_path / "run")
    asks = method == "teacher-kd"
    assert len(copied) == asks and (checkpoint / "teacher").exists() == asks
    assert read_state(checkpoint)["method"] == method
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(metrics) == 2 and all(("kl" in line) == asks for line in metrics)
    assert all("without_loss" in line for line in metrics)
    assert all(("teacher_gap" in line) == asks for line in metrics)
    assert ("no-go" in capsys.readouterr().out) == needs_a_teacher
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["command"].startswith(f"python baselines.py --method {method}")
    assert results["last"]["indirect (OOD)"]["drift_from_base"] > 0


def test_a_stopped_baseline_says_how_to_resume_and_ends_in_the_same_bits(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    method = ["--method", "teacher-kd"]
    baselines.main([*method, *flags(tiny_folder, whole, eval_every=0)])
    press_ctrl_c_in_step_3(monkeypatch)
    interrupted(baselines.main, [*method, *flags(tiny_folder, run, eval_every=0)])
    assert f"python baselines.py --resume {run}" in capsys.readouterr().out
    baselines.main(["--resume", str(run)])
    same_weights(run, whole)


def test_the_plan_of_sft_has_the_lengths_of_its_demonstrations(tiny_folder, tmp_path, monkeypatch):
    """Not the limit of rollouts, which SFT does not have: a token a byte here."""
    planned = []
    plain = support.run.check_plan

    def noted(model_config, config, *more):
        planned.append(config.max_new_tokens)
        return plain(model_config, config, *more)

    monkeypatch.setattr(support.run, "check_plan", noted)
    run = flags(tiny_folder, tmp_path / "run", steps=1, eval_every=0, keep_last=0)
    baselines.main(["--method", "sft", *run])
    longest = max(len(x.demonstration.encode()) for x in load_task("science", "train"))
    assert longest <= planned[0] <= longest + 20


def test_cpt_has_no_teacher_whose_prompt_could_be_too_long(tiny_folder, tmp_path):
    limits = {"max_teacher_prompt_tokens": 900, "max_prompt_tokens": 600}
    run = flags(tiny_folder, tmp_path / "run", task="knowledge", steps=1, **limits)
    baselines.main(["--method", "cpt", "--too-long", "stop", *run])
    assert (tmp_path / "run" / "results.json").exists()


def test_merging_after_reinvocation_is_compared_with_the_student_itself(
    tiny_folder, tokenizer, tmp_path, capsys
):
    """In float32 merging moves nothing; the head that drift is measured with is another's."""
    start = tiny_llama(vocab_size=len(tokenizer), seed=1)
    start.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    models = ["--model", str(tmp_path / "start"), "--teacher-model", str(tiny_folder)]
    more = ["--lora-rank", "2", "--dtype", "float32", "--output", str(tmp_path / "run")]
    baselines.main([*REINVOKE, *models, *more])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert abs(results["merged_divergence"]) < 1e-6
    assert "from --teacher-model it is" in capsys.readouterr().out


REINVOKE = """--method reinvoke --task science --preset laptop --steps 1 --batch-size 2
    --max-new-tokens 4 --max-prompt-tokens 1000 --eval-examples 2 --general-tokens 4
    --eval-every 0""".split()


@pytest.mark.parametrize("dtype, layers", [("float32", 2), ("bfloat16", 2), ("float32", 3)])
def test_reinvoke_measures_drift_from_the_model_it_returns_to(
    dtype, layers, tiny_folder, tokenizer, tmp_path, capsys
):
    """Oracle: drift of the start's weights from --teacher-model, which may have other shapes."""
    start = tiny_llama(vocab_size=len(tokenizer), seed=1, layers=layers)
    start.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    models = ["--model", str(tmp_path / "start"), "--teacher-model", str(tiny_folder)]
    output = ["--output", str(tmp_path / "run"), "--dtype", dtype]
    baselines.main([*REINVOKE, *models, *output])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    before = results["before"]["test"]["drift_from_base"]
    start, teacher = (
        load_model(str(folder), "cpu", dtype)[0] for folder in (tmp_path / "start", tiny_folder)
    )
    base_answers = sample_base_answers(teacher, tokenizer, load_task("general", "test"), 4)
    assert before == pytest.approx(drift_from_base(base_answers, start), rel=1e-4) and before > 0.1
    # one model is asked once: the teacher is another, and sees no more than the student
    printed = capsys.readouterr().out
    assert "teacher" not in results["preflight"] and "no-go" not in printed
    assert "teacher  " not in printed and "validation, teacher" not in printed


def test_reinvoke_resumes_with_the_teacher_and_drift_of_its_start(
    tiny_folder, tokenizer, tmp_path, monkeypatch
):
    """The checkpoint does not hold it; another one under its name is refused."""
    start, original = tmp_path / "start", tmp_path / "teacher"
    tiny_llama(vocab_size=len(tokenizer), seed=1).save_pretrained(start)
    tokenizer.save_pretrained(start)
    shutil.copytree(tiny_folder, original)
    models = ["--model", str(start), "--teacher-model", str(original)]
    steps, drifts, last = ["--steps", "4"], [], []
    for name in ("whole", "run"):
        command = [*REINVOKE, *models, *steps, "--output", str(tmp_path / name)]
        if name == "whole":
            baselines.main(command)
        else:
            press_ctrl_c_in_step_3(monkeypatch)
            interrupted(baselines.main, command)
            [checkpoint] = list_checkpoints(tmp_path / name)
            assert (checkpoint / "student").exists() and not (checkpoint / "teacher").exists()
            right = (original / "model.safetensors").read_bytes()
            shutil.copy(start / "model.safetensors", original)
            with pytest.raises(SystemExit, match="weights of --teacher-model are not those that"):
                baselines.main(["--resume", str(tmp_path / name)])
            (original / "model.safetensors").write_bytes(right)
            baselines.main(["--resume", str(tmp_path / name)])
        results = json.loads((tmp_path / name / "results.json").read_text())
        drifts.append(results["last"]["test"]["drift_from_base"])
        last.append((tmp_path / name / "last" / "model.safetensors").read_bytes())
    assert drifts[0] == drifts[1] and last[0] == last[1]


def test_a_teacher_of_another_vocabulary_is_refused(tiny_folder, tokenizer, tmp_path):
    tokenizer.add_tokens(["<one more>"])
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    models = ["--model", str(tiny_folder), "--teacher-model", str(tmp_path / "other")]
    with pytest.raises(SystemExit, match=r"different vocabularies \(259 and 258 tokens\)"):
        baselines.main([*REINVOKE, *models, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_methods_fix_what_the_table_says():
    """A row for each method: whether it has a teacher, and which divergence is not free."""
    no_teacher = {"teacher": "none", "skip_first_tokens": 0}
    assert {method: fixed for method, (_, _, fixed) in METHODS.items()} == {
        "sft": no_teacher,
        "dft": no_teacher,
        "cpt": no_teacher | {"teacher_context": "none"},
        "teacher-sft": no_teacher,
        "teacher-kd": {"teacher": "base", "divergence": "forward"},
        "reinvoke": {"teacher": "model", "teacher_context": "none"},
    }
    samples_itself = {method for method, (completions, _, _) in METHODS.items() if not completions}
    assert samples_itself == {"reinvoke"}


# ---- the estimate before the first step ----


@pytest.fixture
def estimated(monkeypatch):
    """What the estimate of a run was made from: pairs, config, sampled_before; nothing trains."""
    seen = []

    def note(figures, pairs, config, sampled_before, drift_tokens):
        assert drift_tokens > 0
        seen[:] = [figures, pairs, config, sampled_before]
        raise KeyboardInterrupt

    monkeypatch.setattr(support.preflight, "estimate", note)

    def run(method, model, output, **more):
        arguments = flags(model, output, task="knowledge", max_teacher_prompt_tokens=2000, **more)
        with pytest.raises(SystemExit, match="stopped at once"):
            baselines.main(["--method", method, *arguments])
        return seen

    return run


def test_the_estimate_of_sft_has_the_lengths_of_its_demonstrations(
    estimated, tiny_folder, tokenizer, tmp_path
):
    _, pairs, _, sampled_before = estimated("sft", tiny_folder, tmp_path / "run")
    lengths = [len(e.demonstration.encode()) + 1 for e in load_task("knowledge", "train")]
    assert sampled_before == 0 and len(set(lengths)) > 5
    assert [len(pair.completion) for pair in pairs] == lengths


def test_the_estimate_of_cpt_counts_its_blocks(estimated, tiny_folder, tmp_path):
    sizes = {"preset": "authors", "steps": None, "epochs": 3}
    sizes |= {"batch_size": 2, "max_prompt_tokens": 500}
    _, pairs, config, sampled_before = estimated("cpt", tiny_folder, tmp_path / "run", **sizes)
    articles = {e.text for e in load_task("knowledge", "train")}
    tokens = sum(len(text.encode()) + 1 for text in articles)
    blocks = math.ceil(tokens / 500)
    assert blocks - 1 <= len(pairs) <= blocks and sampled_before == 0  # a last one of 1 is left out
    assert config.total_steps(len(pairs)) == math.ceil(3 * len(pairs) / 2)


@pytest.mark.parametrize("method", ["teacher-sft", "teacher-kd"])
def test_the_estimate_of_a_teacher_that_answers_once_includes_its_sampling(
    method, estimated, tiny_folder, tmp_path
):
    figures, pairs, config, sampled_before = estimated(method, tiny_folder, tmp_path / "run")
    assert sampled_before == len(pairs) == len(load_task("knowledge", "train"))
    sampled = figures["sampled"]
    sampled["tokens_per_s"] = sampled["teacher"]["rollout_tokens"] / 60
    figures["scoring_tokens_per_s"] = 1e9
    config = dataclasses.replace(config, eval_every=0)
    line = estimate(figures, pairs, config, sampled_before)  # one answer a minute
    assert line.startswith(f"6 steps of about 0 s and {len(pairs)} completions sampled before them")
    assert f"= {len(pairs)} minutes" in line
