"""Greedy and sampled answers, accuracy and drift.

Oracles: Hugging Face's generate; draws token by token from full passes; a KL computed dense,
without padding or chunks.
"""

import copy
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_preflight_sampling import draw_by_hand

import eval as evaluation
import scoring
from data import Example
from eval import drift_from_base, evaluate, sample_answers, sample_base_answers
from scoring import score
from support.chat import encode_prompt


def questions(n=5):
    turns = [[{"role": "user", "content": "?" * (i + 1)}] for i in range(n)]
    fields = {"demonstration": "The correct answer is A.", "answer": "A"}
    return [Example(f"q{i}", "science", turn, **fields) for i, turn in enumerate(turns)]


def test_evaluate_counts(model, tokenizer, monkeypatch):
    """Of 4, two are right and three well formed; the error of 1/2 at n = 4 is sqrt(1/16) = 1/4."""
    names, outcomes = ("correct", "well_formed"), iter([(1, 1), (1, 1), (0, 1), (0, 0)])
    monkeypatch.setattr(scoring, "score", lambda *_: dict(zip(names, next(outcomes), strict=True)))
    texts = iter(["In the example, A.", "A.", "According to the text, A.", "In the text: A."])
    monkeypatch.setattr(
        tokenizer,
        "decode",
        lambda ids, skip_special_tokens=False: next(texts) if skip_special_tokens else "",
    )
    summary, answers = evaluate(model, tokenizer, questions(4), max_new_tokens=3)
    assert (summary["n"], summary["correct"], summary["well_formed"]) == (4, 0.5, 0.75)
    assert summary["standard_error"] == 0.25 and summary["artefacts"] == 0.75
    assert summary["completion_tokens"] == sum(len(answer.ids) for answer in answers) / 4
    assert summary["finished"] == sum(answer.finished for answer in answers) / 4


def test_answers_come_back_in_order(model, tokenizer):
    asked, how = questions()[::-1], {"max_new_tokens": 6}
    together = evaluate(model, tokenizer, asked, batch_size=2, **how)[1]
    alone = [evaluate(model, tokenizer, [question], **how)[1][0] for question in asked]
    assert together == alone


def test_answers_are_those_of_generate(model, tokenizer):
    _, answers = evaluate(model, tokenizer, questions(), max_new_tokens=6, batch_size=2)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    for question, answer in zip(questions(), answers, strict=True):
        prompt = torch.tensor([encode_prompt(tokenizer, question.messages)])
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert answer.ids == expected[0, prompt.shape[1] :].tolist()
        assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True)


def test_each_answer_is_drawn_with_its_own_numbers(model, tokenizer):
    prompts = [[5] * length for length in (9, 3, 6, 1, 4)]
    uniforms = np.random.default_rng(0).random((5, 6))
    how = {"temperature": 1.0, "uniforms_BT": torch.from_numpy(uniforms), "batch_size": 2}
    answers = sample_answers(model, tokenizer, prompts, **how)
    for prompt, own, answer in zip(prompts, uniforms, answers, strict=True):
        assert answer.ids == draw_by_hand(model, prompt, own, 1.0)


def test_drift_is_measured_on_answers_sampled_at_1_with_fixed_numbers(model, tokenizer):
    found = sample_base_answers(model, tokenizer, questions(), 6)
    uniforms = np.random.default_rng(0).random((5, 6))
    for row, example in enumerate(questions()):
        ids = found.completion_ids_BT[row][found.completion_mask_BT[row]].tolist()
        prompt = encode_prompt(tokenizer, example.messages)
        assert ids == draw_by_hand(model, prompt, uniforms[row], 1.0)


@pytest.mark.parametrize("opener", ["<think>\n", "<think>\n\n</think>\n\n", ""])
def test_templates_that_open_a_thought(model, tokenizer, opener):
    """Thoughts that the length limit cut off are no answer, whatever stands in them."""
    tokenizer.chat_template += (
        "{% if add_generation_prompt %}{{ " + json.dumps(opener) + " }}{% endif %}"
    )
    prompt = encode_prompt(tokenizer, questions(1)[0].messages)
    expected = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n" + opener
    assert tokenizer.decode(prompt) == expected
    [answer] = evaluate(model, tokenizer, questions(1), max_new_tokens=6)[1]
    opened = opener == "<think>\n"
    assert answer.text.startswith("<think>") == opened
    right = score(answer.text + "The correct answer is A.", questions(1)[0])["correct"]
    assert right != opened


@pytest.mark.parametrize("rows", [8, 2])
def test_drift_equals_a_dense_computation(model, tokenizer, rows, monkeypatch):
    """A mean over the tokens of answers of different lengths, in one part and in three."""
    monkeypatch.setattr(evaluation, "DRIFT_ROWS", rows)
    stop = {"eos_token_ids": list(range(1, 80)), "pad_token_id": 1}
    monkeypatch.setattr(evaluation, "stop_tokens", lambda *_: stop)
    examples = questions()
    base_answers = sample_base_answers(model, tokenizer, examples, 12)
    assert len(set(base_answers.completion_mask_BT.sum(1).tolist())) > 1
    assert drift_from_base(base_answers, model) == pytest.approx(0, abs=1e-6)
    base, total, tokens = copy.deepcopy(model), 0.0, 0
    with torch.no_grad():
        for parameter in model.parameters():  # the head too: the answers keep a copy of the base's
            parameter.mul_(1.1)
    for b, example in enumerate(examples):
        prompt = encode_prompt(tokenizer, example.messages)
        ids = base_answers.completion_ids_BT[b][base_answers.completion_mask_BT[b]].tolist()
        ids_1L = torch.tensor([prompt + ids])
        p, q = (
            torch.distributions.Categorical(logits=m(ids_1L).logits[0, len(prompt) - 1 : -1])
            for m in (base, model)
        )
        total += torch.distributions.kl_divergence(p, q).sum().item()
        tokens += len(ids)
    found = drift_from_base(base_answers, model)
    assert found == pytest.approx(total / tokens, rel=1e-4)


# ---- python eval.py ----
def test_command_line(tiny_folder, tmp_path, capsys):
    asked = ["--model", str(tiny_folder), "--task", "science"]
    json_file = tmp_path / "out.json"
    more = ["--limit", "3", "--max-new-tokens", "4", "--json", str(json_file)]
    evaluation.main(asked + more)
    record = json.loads(json_file.read_text())
    assert record["summary"]["n"] == 3 and len(record["answers"]) == 3
    assert record["command"] == " ".join(["python", "eval.py", *asked, *more])
    assert "science test" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="cannot be loaded"):
        evaluation.main(["--model", str(tmp_path), "--task", "science"])
    with pytest.raises(SystemExit, match="does not exist; its folder has"):
        evaluation.main([*asked, "--split", "exam"])
    with pytest.raises(SystemExit, match='field "text" is missing'):
        evaluation.main([*asked, "--context", "text"])
    for flag in ("--limit", "--batch-size", "--max-new-tokens"):
        with pytest.raises(SystemExit):
            evaluation.main([*asked, flag, "0"])
        assert f"{flag} 0: it must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluation.main([*asked, "--instruction", "plain"])
    assert "--instruction needs --context demonstration" in capsys.readouterr().err


def test_defaults_are_those_of_the_run_that_left_the_model(
    tiny_folder, tmp_path, capsys, monkeypatch
):
    """Length, arithmetic and the end of the teacher's prompt."""
    last = shutil.copytree(tiny_folder, tmp_path / "run" / "last")
    saved = {"max_new_tokens": 5, "dtype": "bfloat16", "teacher_instruction": "plain"}
    (tmp_path / "run" / "before.json").write_text(json.dumps({"config": saved}))
    longer = shutil.copytree(tiny_folder, tmp_path / "longer" / "last")
    saved = {"max_new_tokens": 5, "eval_new_tokens": 9}
    (tmp_path / "longer" / "before.json").write_text(json.dumps({"config": saved}))
    seen, load = {}, evaluation.load_model

    def noted_load(name, device, dtype):
        seen["dtype"] = dtype
        return load(name, device, dtype)

    def noted_messages(example, context, instruction, own_template):
        seen["instruction"] = instruction
        return example.messages

    monkeypatch.setattr(evaluation, "load_model", noted_load)
    monkeypatch.setattr(evaluation.data, "teacher_messages", noted_messages)
    shown = ["--split", "train", "--context", "demonstration"]
    for folder, more, tokens, dtype, instruction in [
        (last, [], 5, "bfloat16", "plain"),
        (last, ["--dtype", "float32"], 5, "float32", "plain"),
        (last, [*shown, "--instruction", "thinking"], 5, "bfloat16", "thinking"),
        (longer, [], 9, "float32", "thinking"),
        (tiny_folder, [], 64, "float32", "thinking"),
        (tiny_folder, ["--max-new-tokens", "3"], 3, "float32", "thinking"),
    ]:
        evaluation.main(["--model", str(folder), "--task", "science", "--limit", "1", *more])
        assert f"at most {tokens} tokens" in capsys.readouterr().out
        assert seen == {"dtype": dtype, "instruction": instruction}


def test_the_json_file_may_be_in_a_new_folder(tiny_folder, tmp_path, monkeypatch):
    """Checked before the model loads; nothing is left there when the run fails."""
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = ["--model", str(tiny_folder), "--task", "science", "--limit", "1"]
    asked += ["--max-new-tokens", "2", "--json"]
    evaluation.main([*asked, str(tmp_path / "new" / "er" / "a.json")])
    assert json.loads((tmp_path / "new" / "er" / "a.json").read_text())["summary"]["n"] == 1
    evaluation.main([*asked, "~/b.json"])
    evaluation.main([*asked, "~/b.json"])  # again, over the first
    assert json.loads((tmp_path / "b.json").read_text())["summary"]["n"] == 1

    def no_model(*_):
        raise ValueError("the model was loaded")

    monkeypatch.setattr(evaluation, "load_model", no_model)
    for path in (tmp_path, tmp_path / "b.json" / "c.json"):
        with pytest.raises(SystemExit, match=f"{path} cannot be written"):
            evaluation.main([*asked, str(path)])
    with pytest.raises(SystemExit, match="the model was loaded"):
        evaluation.main([*asked, str(tmp_path / "d.json")])
    assert not (tmp_path / "d.json").exists() and (tmp_path / "b.json").read_text()


@pytest.mark.parametrize(
    "error, line",
    [
        (KeyboardInterrupt(), "\nstopped; nothing was written"),
        (PermissionError(13, "denied"), "error: [Errno 13] denied"),
        (torch.OutOfMemoryError("CUDA"), "error: out of memory; lower --batch-size, now 32"),
    ],
)
def test_what_goes_wrong_is_one_line(error, line, tiny_folder, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(evaluation, "evaluate", fail)
    with pytest.raises(SystemExit) as ended:
        evaluation.main(["--model", str(tiny_folder), "--task", "science"])
    assert ended.value.code == line


def test_a_console_without_the_character(tiny_folder, tmp_path):
    """The table has a ±, which ASCII lacks."""
    command = [sys.executable, str(ROOT / "eval.py"), "--model", str(tiny_folder)]
    command += ["--task", "science", "--limit", "1", "--max-new-tokens", "2"]
    command += ["--json", str(tmp_path / "a.json")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "? is one standard error" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["summary"]["n"] == 1
