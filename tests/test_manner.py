"""extras/manner.py. Oracles: counts by hand; the divergence of two plain forward passes."""

import json

import manner
import pytest
import torch
from conftest import tiny_llama, tiny_tokenizer

from data import load_task
from eval import Answer
from support.chat import encode_prompt
from support.checkpoint import save_model
from support.models import load_model


def test_words_of_a_task_are_frequent_in_it_and_new_to_the_base():
    demonstrations = ["Pentane is an alkane; suffix -ane."] * 3 + ["Hexyne: an alkyne."] * 5
    found = manner.words_of_task(demonstrations, ["It is a suffix.", "An ALKANE?"])
    assert found == {"pentane", "ane", "hexyne", "alkyne"}
    rare = manner.words_of_task([*demonstrations, *["plain"] * 13], [])
    assert rare == {"an", "plain"}  # in 8 and 13 of 21; "hexyne" in 5


def test_figures_of_answers_by_hand():
    texts = ["The suffix.", "No word of it.", "Suffixes are other words.", "suffix"]
    lengths, ended = [4, 6, 5, 9], [True, True, False, True]
    openings = [[1, 2, 3], [1, 2, 3], [9, 2, 3], [1, 2, 4]]
    answers = [
        Answer(text, (opening + [0] * 9)[:length], finished)
        for text, opening, length, finished in zip(texts, openings, lengths, ended, strict=True)
    ]
    assert manner.describe(answers, {"suffix"}) == {
        "completion_tokens": 6,
        "finished": 0.75,
        "same_opening": 0.5,
        "task_words": 0.5,
    }


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    for seed in (0, 1):
        save_model(root / str(seed), tiny_llama(len(tokenizer), seed), tokenizer)
    return str(root / "0"), str(root / "1")


def test_the_base_is_at_0_and_another_model_at_the_divergence_of_plain_passes(
    two_folders, tmp_path, capsys
):
    base, other = two_folders
    file = tmp_path / "manner.json"
    words = f"{base} {other} --base {base} --task science --max-new-tokens 5 --json {file}"
    manner.main(words.split())
    record = json.loads(file.read_text())
    itself, changed = record["models"][base], record["models"][other]
    assert itself["drift_from_base"] == pytest.approx(0, abs=1e-6)
    assert itself["task_words"] == 0 and record["words"]
    shown = capsys.readouterr().out
    assert f"{changed['drift_from_base']:.3f}" in shown and record["words"][0] in shown

    model, tokenizer = load_model(base)
    moved, _ = load_model(other)
    total = tokens = 0
    answers = manner.sample_base_answers(model, tokenizer, load_task("general", "test"), 5)
    for row, example in enumerate(load_task("general", "test")):
        prompt = encode_prompt(tokenizer, example.messages)
        length = int(answers.completion_mask_BT[row].sum())
        ids = torch.tensor([prompt + answers.completion_ids_BT[row, :length].tolist()])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (model, moved))
        total += (p.exp() * (p - q)).sum().item()
        tokens += length
    assert changed["drift_from_base"] == pytest.approx(total / tokens, rel=1e-4)


def test_the_chat_template_reads_what_it_read_in_the_runs(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{{ manner | default('') }}"
    for run, manner_word in (("loud", "loudly"), ("low", "softly")):
        save_model(tmp_path / run / "last", tiny_llama(len(tokenizer)), tokenizer)
        config = {"max_new_tokens": 5, "chat_template_kwargs": {"manner": manner_word}}
        (tmp_path / run / "before.json").write_text(json.dumps({"config": config}))
    loud, low = str(tmp_path / "loud" / "last"), str(tmp_path / "low" / "last")
    assert manner.template_kwargs_of([loud]) == {"manner": "loudly"}
    words = ["--base", loud, "--task", "science", "--max-new-tokens", "2"]
    with pytest.raises(SystemExit, match="the runs have several --chat-template-kwargs"):
        manner.main([loud, low, *words])

    seen = []
    encode = manner.encode_prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manner, "encode_prompt", lambda *args: seen.append(encode(*args)) or seen[-1])
        manner.main([loud, *words])
        assert {tokenizer.decode(ids).endswith("loudly") for ids in seen} == {True}
        seen.clear()
        manner.main([loud, low, *words, "--chat-template-kwargs", '{"manner": "softly"}'])
    assert {tokenizer.decode(ids).endswith("softly") for ids in seen} == {True}


def test_bad_flags_end_in_one_line(two_folders, capsys):
    with pytest.raises(SystemExit):
        manner.main(
            [*two_folders, "--base", two_folders[0], "--task", "science", "--max-new-tokens", "0"]
        )
    assert "--max-new-tokens 0: it must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match='error: model "/nowhere" cannot be loaded'):
        manner.main(["/nowhere", "--base", "/nowhere", "--task", "science"])
