"""The teacher's bench. Oracles: prompts and figures written out here, and plain HTML."""

import json
import sys

import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_tokenizer

sys.path.insert(0, str(ROOT / "extras"))

import teacher as bench

from config import Config
from data import Example
from scoring import score_by_rule
from support.chat import encode_prompt

OWN = "{demonstration}\n{question}"


def row(name, correct, share=0.5, finished=1.0, tokens=16.0, artefacts=0.0, error=0.02):
    return {
        "name": name,
        "context": "demonstration",
        "temperature": 0.5,
        "correct": correct,
        "standard_error": 0.04,
        "finished": finished,
        "completion_tokens": tokens,
        "artefacts": artefacts,
        "copied": 0.0,
        "kl": 0.4,
        "content": 0.4 * share,
        "content_share": share,
        "content_share_error": error,
        "picture": {
            "question": "Is <b> it?",
            "tokens": ["It", " is\n", "<b>"],
            "kl": [1.0, 2.0, 3.5],
            "content": [0.25, 3.0, 0.5],
        },
    }


ROWS = [
    row("thinking", 0.48, 0.3, finished=0.67, tokens=27, artefacts=0.2),
    row("own-words", 0.92, 0.5),
    row("plain", 0.75, 0.5),
    row("mine", 0.92, 0.6),
]


def test_the_most_right_is_first_and_content_decides_among_equals():
    assert [r["name"] for r in bench.rank(ROWS)] == ["mine", "own-words", "plain", "thinking"]


def test_the_table_says_why_the_last_is_last():
    text = bench.format_rows(bench.rank(ROWS))
    lines = text.splitlines()
    assert lines[1].split()[:5] == ["1", "mine", "demonstration", "0.5", "92.0%"]
    assert "92.0% ± 4.0%" in lines[1] and "60% ± 2%" in lines[1]
    assert lines[-1] == (
        "4 thinking: right in 48% of its samples, not 92%; 33% of its answers do not end; "
        "27 tokens, not 16; 20% open with words about what only it sees; "
        "30% of its KL is content, not 60%"
    )
    assert lines[5] == "2 own-words: 50% of its KL is content, not 60%"


def test_nothing_is_said_of_an_equal():
    assert bench.why_behind(ROWS[1], ROWS[1]) == ""


def test_the_picture_colours_each_token_by_style_and_by_content():
    """0.25 of 1 nat is content: 0.75 / 3 orange, 0.25 / 3 blue; negative style has no colour."""
    page = bench.page(ROWS[:1])
    style, content = page.split("<p class=tokens>")[1:]
    assert [part.split('"')[0] for part in style.split("background: ")[1:]] == [
        "rgba(230, 120, 0, 0.25)",
        "rgba(230, 120, 0, 0.00)",
        "rgba(230, 120, 0, 1.00)",
    ]
    assert [part.split('"')[0] for part in content.split("background: ")[1:]] == [
        "rgba(0, 90, 200, 0.08)",
        "rgba(0, 90, 200, 1.00)",
        "rgba(0, 90, 200, 0.17)",
    ]
    assert 'title="KL 1.00 = content 0.25 + style 0.75"' in page
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_every_combination_is_tried(tmp_path):
    (tmp_path / "own.txt").write_text("{text} " + OWN)
    found = bench.candidates(
        ["plain", str(tmp_path / "own.txt")], ["demonstration", "text+demonstration"], [0.5, 1.0]
    )
    assert [(c.name, c.context, c.temperature) for c in found] == [
        ("plain", "demonstration", 0.5),
        ("plain", "demonstration", 1.0),
        ("plain", "text+demonstration", 0.5),
        ("plain", "text+demonstration", 1.0),
        ("own.txt", "text+demonstration", 0.5),
        ("own.txt", "text+demonstration", 1.0),
    ]
    with pytest.raises(ValueError, match='"missing.txt" is no file; choose one, or from thinking'):
        bench.candidates(["missing.txt"], ["demonstration"], [1.0])


def questions():
    return [
        Example(
            str(i),
            "science",
            [{"role": "user", "content": f"{i}?"}],
            demonstration=f"The correct answer is {letter}.",
            answer=letter,
        )
        for i, letter in enumerate("ABC")
    ]


def test_a_candidate_is_asked_with_its_prompt_at_its_temperature(monkeypatch):
    tokenizer = tiny_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer))
    config = Config(max_new_tokens=5, skip_first_tokens=0)
    asked, plain = [], bench.sample_answers

    def sample_answers(model, tokenizer, prompts, **how):
        asked.append((prompts, how["temperature"], how["uniforms_BT"].shape))
        return plain(model, tokenizer, prompts, **how)

    monkeypatch.setattr(bench, "sample_answers", sample_answers)
    place = bench.Bench(model, tokenizer, questions(), config, 2, score_by_rule)
    candidate = bench.Candidate("own.txt", "demonstration", 0.7, own_template=OWN)
    figures = place.measure(candidate)
    expected = []
    for example in questions():
        content = f"{example.demonstration}\n{example.messages[0]['content']}"
        expected += [encode_prompt(tokenizer, [{"role": "user", "content": content}])] * 2
    assert asked == [(expected, 0.7, torch.Size([6, 5]))]
    assert figures["n"] == 6 and figures["kl"] > 0 and 0 < figures["content"]
    picture = figures["picture"]
    assert len(picture["tokens"]) == len(picture["kl"]) == len(picture["content"])
    assert place.measure(candidate) == figures, "the same numbers each time"


def test_the_command_writes_table_figures_and_picture(tiny_folder, tmp_path, capsys):
    (tmp_path / "own.txt").write_text(OWN)
    words = ["--task", "science", "--templates", "plain", str(tmp_path / "own.txt")]
    words += ["--model", str(tiny_folder), "--preset", "laptop", "--questions", "3"]
    words += [
        "--samples",
        "1",
        "--json",
        str(tmp_path / "f.json"),
        "--html",
        str(tmp_path / "f.html"),
    ]
    bench.main(words)
    printed = capsys.readouterr().out
    assert "3 science validation questions, 1 answers of each teacher, at most 40" in printed
    record = json.loads((tmp_path / "f.json").read_text())
    assert {r["name"] for r in record["rows"]} == {"plain", "own.txt"} and record["machine"]
    assert (tmp_path / "f.html").read_text().count("<h2>") == 2


@pytest.mark.parametrize(
    "more, message",
    [
        (["--questions", "1"], "--questions needs at least 2"),
        (["--temperatures", "0"], "--temperatures must be above 0"),
    ],
)
def test_flags_that_cannot_be_meant(more, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--task", "science", "--templates", "plain", *more])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--json", "--html"])
def test_files_that_cannot_be_written_stop_before_the_model_loads(flag, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(bench, "load_model", None)
    with pytest.raises(SystemExit, match="x cannot be written"):
        words = ["--task", "science", "--templates", "plain"]
        bench.main([*words, flag, str(tmp_path / "file" / "x")])
