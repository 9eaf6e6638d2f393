"""The teacher's prompt, in the paper's words and in one's own.

Oracles: the paper's section 3 and the four contexts, written out here; templates filled by hand.
"""

import dataclasses
import json

import pytest
from conftest import tiny_tokenizer

import eval as evaluation
import sdft
from config import Config, new_config, resumed_config
from data import (
    CONTEXTS,
    TEACHER_INSTRUCTIONS,
    Example,
    encode_pair,
    read_template,
    teacher_messages,
)

SYSTEM = {"role": "system", "content": "Be {brief}."}
QUESTION = "What is {2} + {text}?"  # braces, and the name of a placeholder, are the question's own
DEMONSTRATION = "It is {question}. \\1"
ARTICLE = "About {demonstration}."
OWN = "Use {demonstration}\nand {text},\nthen {question} {2} {}"


def example(**fields):
    turns = [SYSTEM, {"role": "user", "content": QUESTION}]
    values = {"demonstration": DEMONSTRATION, "text": ARTICLE, "answer": "B"}
    return Example("1", "science", turns, **values | fields)


@pytest.mark.parametrize("instruction, end", list(TEACHER_INSTRUCTIONS.items()))
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_built_in_words_are_the_papers(context, instruction, end):
    expected = {
        "none": QUESTION,
        "text": f"{ARTICLE}\n\n{QUESTION}",
        "demonstration": (
            f"{QUESTION}\n\nThis is an example for a response to the question:\n{DEMONSTRATION}"
            f"\n\n{end}"
        ),
    }
    expected["text+demonstration"] = f"{ARTICLE}\n\n{expected['demonstration']}"
    turns = teacher_messages(example(), context, instruction)
    assert turns == [SYSTEM, {"role": "user", "content": expected[context]}]


def test_the_sentences_are_those_that_were_measured():
    assert TEACHER_INSTRUCTIONS == {
        "thinking": "Now answer with a response of your own, including the thinking process:",
        "plain": "Now answer with a response of your own.",
        "own-words": "Now answer the question in your own words.",
    }


def test_an_own_template_is_filled_in_one_pass():
    """What a question contains is never taken for a placeholder; other braces stay."""
    [system, turn] = teacher_messages(example(), "text+demonstration", "plain", OWN)
    assert system == SYSTEM
    assert turn["content"] == f"Use {DEMONSTRATION}\nand {ARTICLE},\nthen {QUESTION} {{2}} {{}}"


def test_an_own_template_leaves_contexts_without_a_demonstration():
    assert teacher_messages(example(), "none", "plain", OWN)[-1]["content"] == QUESTION
    assert teacher_messages(example(), "text", "plain", OWN)[-1]["content"].startswith(ARTICLE)
    with pytest.raises(
        ValueError, match="template shows text.demonstration; the context is demons"
    ):
        teacher_messages(example(), "demonstration", "plain", OWN)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{demonstration}", r"own\.txt: placeholder \{question\} is missing"),
        ("{question} {text}", r"placeholder \{demonstration\} is missing"),
        ("{question} {demonstration} {answer}", r"\{answer\} is unknown; .*\{question\}, \{demon"),
        ("{question} {demonstration} {Text}", r"\{Text\} is unknown"),
        ("{question} {demonstration} {{x}}", r"\{x\} is unknown"),
        ("", r"\{question\} is missing"),
        (None, r"own\.txt: .*No such file"),
        (b"\xff{question}", r"own\.txt: .*utf-8"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(text, message, tmp_path):
    file = tmp_path / "own.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_template(file)


def test_a_files_last_line_break_is_no_part_of_the_template(tmp_path):
    (tmp_path / "own.txt").write_text("\n{question}\n\n{demonstration} ä\n\n", encoding="utf-8")
    assert read_template(tmp_path / "own.txt") == "\n{question}\n\n{demonstration} ä\n"


def test_a_pair_shows_the_teacher_the_template():
    tokenizer = tiny_tokenizer()
    shown = "{demonstration} | {question}"
    config = Config(teacher_template=shown, teacher_context="demonstration")
    pair = encode_pair(tokenizer, example(), config)
    turn = f"<|im_start|>user\n{DEMONSTRATION} | {QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.teacher_prompt).endswith(turn)
    assert QUESTION in tokenizer.decode(pair.student_prompt)
    assert DEMONSTRATION not in tokenizer.decode(pair.student_prompt)


# ---- the flag ----


def test_the_template_decides_the_context():
    """laptop shows text and demonstration for knowledge; a template without {text} does not."""
    values = {"preset": "laptop", "task": "knowledge"}
    config, _, _ = new_config(values | {"teacher_template": "{question}{demonstration}"}, {}, None)
    assert config.teacher_context == "demonstration"
    config, _, _ = new_config({"preset": "laptop", "teacher_template": OWN}, {}, None)
    assert config.teacher_context == "text+demonstration"


SHORT = """--task science --preset laptop --steps 1 --batch-size 2 --eval-examples 2 --eval-every 0
    --general-tokens 4 --max-new-tokens 6 --eval-new-tokens 6 --force
    --max-prompt-tokens 1000 --max-teacher-prompt-tokens 1500""".split()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--teacher-instruction", "plain"], "replaces the words of --teacher-instruction"),
        (
            ["--teacher-context", "text"],
            "shows demonstration, which contradicts --teacher-context te",
        ),
    ],
)
def test_flags_that_contradict_a_template_are_named(more, message, tmp_path):
    (tmp_path / "own.txt").write_text("{question}{demonstration}")
    with pytest.raises(SystemExit, match=message):
        sdft.main([*SHORT, "--teacher-template", str(tmp_path / "own.txt"), *more])


def test_a_run_keeps_its_template(tiny_folder, tmp_path, monkeypatch):
    """before.json, a resumed run and eval.py see the text of the file as it was."""
    file, folder = tmp_path / "own.txt", tmp_path / "run"
    file.write_text("{question}\nSee: {demonstration}\n")
    command = [*SHORT, "--model", str(tiny_folder), "--output", str(folder)]
    sdft.main([*command, "--teacher-template", str(file)])
    text = "{question}\nSee: {demonstration}"
    assert json.loads((folder / "before.json").read_text())["config"]["teacher_template"] == text
    # resumed without the flag, and with a file that says the same
    kept, _, _ = resumed_config(folder, {}, "sdft.py")
    assert kept.teacher_template == text
    sdft.main(["--resume", str(folder), "--teacher-template", str(file)])
    file.write_text("{question}\nLook: {demonstration}\n")
    with pytest.raises(SystemExit, match=r"--teacher-template is '.*Look.*', was '.*See"):
        sdft.main(["--resume", str(folder), "--teacher-template", str(file)])
    # evaluation in context
    seen, plain = [], evaluation.encode_prompt

    def encode_prompt(tokenizer, turns, *more):
        seen.append(turns[-1]["content"])
        return plain(tokenizer, turns, *more)

    monkeypatch.setattr(evaluation, "encode_prompt", encode_prompt)
    words = ["--model", str(folder / "last"), "--task", "science", "--split", "validation"]
    words += ["--limit", "1", "--context", "demonstration"]
    evaluation.main(words)
    evaluation.main([*words, "--template", str(file)])
    evaluation.main([*words, "--instruction", "plain"])
    assert ["\nSee: " in seen[0], "\nLook: " in seen[1]] == [True, True]
    assert seen[2].endswith(TEACHER_INSTRUCTIONS["plain"])
    # without --context the template says what is shown; the run's own is for those that ask for it
    evaluation.main([*words[:-2], "--template", str(file)])
    evaluation.main(words[:-2])
    assert "\nLook: " in seen[3] and "Look: " not in seen[4] and "See: " not in seen[4]
    with pytest.raises(SystemExit, match="own.txt shows demonstration, not text"):
        evaluation.main([*words[:-1], "text", "--template", str(file)])


def test_without_a_template_a_config_has_none():
    """So checkpoints of before keep their meaning."""
    assert dataclasses.asdict(Config())["teacher_template"] is None


# ---- presets of the three sources ----


def test_the_settings_behind_the_papers_figures():
    """As the authors gave them: forward KL, 1e-5, 10 warm-up steps, three masked tokens."""
    config, _, about = new_config({"preset": "published", "model": "m"}, {}, None)
    found = config.divergence, config.learning_rate, config.warmup, config.skip_first_tokens
    assert found == ("forward", 1e-5, 10, 3) and about.startswith("preset published (as named)")
    # the authors' code differs in the rate and the warm-up, the paper's text in the divergence
    code, _, _ = new_config({"preset": "authors", "model": "m"}, {}, None)
    assert (code.divergence, code.learning_rate, code.warmup) == ("forward", 5e-5, 0.1)
    text, _, _ = new_config({"preset": "paper", "model": "m"}, {}, None)
    assert (text.divergence, text.learning_rate, text.warmup) == ("reverse", 1e-5, 10)


def test_published_differs_from_paper_in_the_divergence_alone():
    for task in ("science", "knowledge", "tooluse", "medical"):
        given = {"task": task, "model": "m"}
        one, two = (
            dataclasses.asdict(new_config(given | {"preset": preset}, {}, None)[0])
            for preset in ("paper", "published")
        )
        assert {name for name in one if one[name] != two[name]} == {"preset", "divergence"}
