"""The baselines: what each method trains on, which loss, which teacher, and what is refused.

Oracles: cross entropy of torch on unpadded sequences; -p log p differentiated by hand; the prompts that data.py makes.
"""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

import sdft
from config import METHODS, Config, parse_config
from conftest import gradients, tiny_llama
from data import Example, Pair, encode_prompt, load_task, text_blocks, with_demonstrations
from eval import drift_from_base, sample_base_answers
from kl_estimators import completion_logprobs, dynamic_loss, likelihood_loss
from models import load_model
from scoring import score
from sdft import likelihood_step, make_batch, sdft_step
from test_sdft import STOP, KeepGradients

CONFIG = Config(batch_size=3, micro_batch_size=2, max_new_tokens=8, steps=4, learning_rate=1e-3, warmup=0, max_grad_norm=1e9)
PAIRS = [Pair("a", [5, 6], [9, 5, 6], [7, 8, 1]), Pair("b", [5], [9, 5], [10, 1]), Pair("c", [6, 6, 6], [9, 6], [11, 12, 13, 14])]


def by_hand(student, method):
    """Mean over a completion's tokens, then over completions, of -log p (or -stopgrad(p) log p), one unpadded row at a time."""
    loss = 0
    for pair in PAIRS:
        logits_TV = student(torch.tensor([pair.student_prompt + pair.completion])).logits[0, len(pair.student_prompt) - 1:-1]
        nll_T = F.cross_entropy(logits_TV, torch.tensor(pair.completion), reduction="none")
        loss = loss + (nll_T * (torch.exp(-nll_T).detach() if method == "dft" else 1)).mean() / len(PAIRS)
    return loss


@pytest.mark.parametrize("method", ["sft", "dft"])
def test_likelihood_step_is_cross_entropy(method):
    student = tiny_llama(dtype=torch.float64)
    config = dataclasses.replace(CONFIG, method=method, teacher="student")
    metrics, rollout = likelihood_step(student, student, KeepGradients(), make_batch(PAIRS, 0, config, STOP), config)
    found = gradients(student)
    student.zero_grad()
    by_hand(student, method).backward()
    expected = gradients(student)
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    assert metrics["nll"] == pytest.approx(by_hand(student, "sft").item(), rel=1e-6)
    assert metrics["completion_tokens"] == 3.0 and metrics["finished"] == pytest.approx(2 / 3)


def test_losses_on_numbers():
    """p = 1/2 and 1/4: -log p is 0.693 and 1.386; DFT weighs them by p: 0.347 and 0.347. Its gradient by log p is -p."""
    logprobs_BT = torch.tensor([[0.5, 0.25]]).log().requires_grad_()
    assert torch.allclose(likelihood_loss(logprobs_BT), torch.tensor([[0.6931472, 1.3862944]]))
    assert torch.allclose(dynamic_loss(logprobs_BT), torch.tensor([[0.3465736, 0.3465736]]))
    dynamic_loss(logprobs_BT).sum().backward()
    assert torch.allclose(logprobs_BT.grad, torch.tensor([[-0.5, -0.25]]))


def test_completion_logprobs_do_not_depend_on_the_chunk():
    torch.manual_seed(0)
    hidden_BTD, head, ids_BT = torch.randn(2, 5, 8, dtype=torch.float64), torch.nn.Linear(8, 11, bias=False).double(), torch.randint(11, (2, 5))
    dense_BT = head(hidden_BTD).log_softmax(-1).gather(2, ids_BT[:, :, None])[:, :, 0]
    for chunk_size in (3, 100):
        assert torch.allclose(completion_logprobs(hidden_BTD, head, ids_BT, chunk_size), dense_BT, atol=1e-12)


def test_teacher_kd_is_sdft_on_given_tokens():
    """Dense forward KL on the given completions, without the first token."""
    student, teacher = tiny_llama(dtype=torch.float64), tiny_llama(dtype=torch.float64, seed=1)
    config = dataclasses.replace(CONFIG, method="teacher-kd", teacher="base", divergence="forward", skip_first_tokens=1)
    metrics, _ = sdft_step(student, teacher, KeepGradients(), make_batch(PAIRS, 0, config, STOP), config)
    found = gradients(student)
    student.zero_grad()
    loss = 0
    for pair in PAIRS:
        s, t = (model(torch.tensor([prompt + pair.completion])).logits[0, len(prompt) - 1:-1].log_softmax(-1)
                for model, prompt in ((student, pair.student_prompt), (teacher, pair.teacher_prompt)))
        loss = loss + F.kl_div(s, t.detach(), log_target=True, reduction="none").sum(-1)[1:].mean() / len(PAIRS)
    loss.backward()
    expected = gradients(student)
    assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_what_each_method_trains_on(tokenizer):
    """sft: demonstration and EOS. cpt: the articles, each once, in blocks that lose no token. teacher-*: samples in context, drawn once."""
    examples = [Example(str(n), "knowledge", [{"role": "user", "content": f"q{n}"}], demonstration=f"answer {n}.", text=text)
                for n, text in enumerate(["First article.", "First article.", "Second one."])]
    pairs = [Pair(example.id, [3], [4, 3]) for example in examples]
    eos = tokenizer.eos_token_id
    written = with_demonstrations(tokenizer, pairs, examples, eos)
    assert [tokenizer.decode(pair.completion[:-1]) for pair in written] == ["answer 0.", "answer 1.", "answer 2."]
    assert all(pair.completion[-1] == eos for pair in written)

    blocks = text_blocks(tokenizer, examples, 7, eos)
    ids = [token for block in blocks for token in block.student_prompt + block.completion]
    assert tokenizer.decode([token for token in ids if token != eos]) == "First article.Second one."
    assert ids.count(eos) == 2 and max(len(block.student_prompt + block.completion) for block in blocks) == 7

    model, config = tiny_llama(), dataclasses.replace(CONFIG, method="teacher-sft", task="knowledge", teacher="base")
    drawn = [sdft.with_teacher_completions(pairs, model, tokenizer, config) for _ in range(2)]
    assert [pair.completion for pair in drawn[0]] == [pair.completion for pair in drawn[1]]
    assert all(1 <= len(pair.completion) <= 8 for pair in drawn[0]) and pairs[0].completion is None
    assert sdft.with_given_completions(pairs, examples, model, tokenizer, CONFIG) == pairs
    cpt = dataclasses.replace(CONFIG, method="cpt", task="knowledge", max_prompt_tokens=7)
    assert sdft.with_given_completions(pairs, examples, model, tokenizer, cpt) == blocks


def test_a_demonstration_after_an_opened_thought_is_an_answer(tokenizer):
    """Oracle: the scorer, which looks behind </think>. A demonstration that closes its own thought stays as it is."""
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    turn = [{"role": "user", "content": "Which organ?"}]
    examples = [Example(str(n), "medical", turn, demonstration=text, key_facts=[["liver"]]) for n, text in enumerate(["The liver.", "Bile …</think>The liver."])]
    prompt = encode_prompt(tokenizer, turn)
    given = [pair.completion for pair in with_demonstrations(tokenizer, [Pair("0", prompt, prompt), Pair("1", prompt, prompt)], examples, tokenizer.eos_token_id)]
    texts = [tokenizer.decode(prompt + ids[:-1]).rpartition("assistant\n")[2] for ids in given]
    assert texts == ["<think>\n</think>\n\nThe liver.", "<think>Bile …</think>The liver."]
    assert all(score(text, example)["correct"] for text, example in zip(texts, examples))


@pytest.mark.parametrize("flags, message", [
    ("--method sft --teacher ema", "--teacher is ema; --method sft fixes it to student"),
    ("--method teacher-kd --divergence reverse", "--method teacher-kd fixes it to forward"),
    ("--method reinvoke", "--teacher-model"),
    ("--teacher-model smollm2", "belong together"),
    ("--method sft --rollouts-per-prompt 4", "--method sft samples none"),
    ("--method cpt --task science", "only --task knowledge has them"),
])
def test_combinations_that_cannot_be_meant_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_config(flags.split() + ["--preset", "laptop"], "")


def test_each_row_of_methods_parses():
    for method in METHODS:
        more = ["--teacher-model", "smollm2"] if method == "reinvoke" else []
        config, _, _ = parse_config(["--method", method, "--task", "knowledge", "--preset", "laptop", *more], "")
        assert config.method == method and sdft.STEPS[METHODS[method]["loss"]] in (sdft_step, likelihood_step)


REINVOKE = ["--method", "reinvoke", "--task", "science", "--preset", "laptop", "--steps", "1", "--batch-size", "2", "--max-new-tokens", "4",
            "--max-prompt-tokens", "1000", "--eval-examples", "2", "--general-tokens", "4", "--eval-every", "0"]


@pytest.mark.parametrize("dtype, layers", [("float32", 2), ("bfloat16", 2), ("float32", 3)])
def test_reinvoke_measures_drift_from_the_model_it_returns_to(dtype, layers, tiny_folder, tokenizer, tmp_path, capsys):
    """Oracle: drift of the start's weights, from the answers of --teacher-model, computed beside the run. The teacher may have other shapes."""
    start = tiny_llama(vocab_size=len(tokenizer), seed=1, layers=layers)
    start.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    sdft.main([*REINVOKE, "--model", str(tmp_path / "start"), "--teacher-model", str(tiny_folder), "--output", str(tmp_path / "run"), "--dtype", dtype])
    before = json.loads((tmp_path / "run" / "results.json").read_text())["before"]["test"]["drift_from_base"]
    start, teacher = (load_model(str(folder), "cpu", dtype)[0] for folder in (tmp_path / "start", tiny_folder))
    base_answers = sample_base_answers(teacher, tokenizer, load_task("general", "test"), 4)
    assert before == pytest.approx(drift_from_base(base_answers, start), rel=1e-4) and before > 0.1
    assert "no-go" not in capsys.readouterr().out


def test_a_teacher_of_another_vocabulary_is_refused(tiny_folder, tokenizer, tmp_path):
    tokenizer.add_tokens(["<one more>"])
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match=r"different vocabularies \(259 and 258 tokens\)"):
        sdft.main([*REINVOKE, "--model", str(tiny_folder), "--teacher-model", str(tmp_path / "other"), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
