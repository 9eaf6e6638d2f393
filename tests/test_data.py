"""Reading, prompts and the files of a run.

Oracle: the paper's template and broken lines, written out here.
"""

import json
import re

import pytest
from conftest import ROOT

from config import Config
from data import (
    Example,
    encode_pairs,
    load_splits,
    load_task,
    parse_line,
    read_jsonl,
    teacher_messages,
)

GOOD = {
    "prompt": "What is {2} + 2?",
    "demonstration": "It is 4. The correct answer is B.",
    "answer": "B",
}


SYSTEM = {"role": "system", "content": "Be brief."}


def example(**fields):
    return parse_line(json.dumps(GOOD | fields), "my.jsonl:1", "science")


def test_paper_template_word_for_word():
    """Section 3 of the paper; the braces of a question stay as they are."""
    content = (
        "What is {2} + 2?\n\n"
        "This is an example for a response to the question:\n"
        "It is 4. The correct answer is B.\n\n"
        "Now answer with a response of your own, including the thinking process:"
    )
    assert teacher_messages(example()) == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "instruction, end",
    [
        ("thinking", "Now answer with a response of your own, including the thinking process:"),
        ("plain", "Now answer with a response of your own."),
        ("own-words", "Now answer the question in your own words."),
    ],
)
@pytest.mark.parametrize("context", ["demonstration", "text+demonstration"])
def test_the_instruction_ends_the_teachers_prompt_in_both_contexts(context, instruction, end):
    shown = "This is an example for a response to the question:\nIt is 4. The correct answer is B."
    parts = ["What is {2} + 2?", shown, end]
    if context == "text+demonstration":
        parts.insert(0, "The article.")
    [turn] = teacher_messages(example(text="The article."), context, instruction)
    assert turn["content"] == "\n\n".join(parts)


def test_system_turns_stay_with_the_teacher():
    chat = example(prompt=[SYSTEM, {"role": "user", "content": "Why?"}])
    assert chat.messages == [SYSTEM, {"role": "user", "content": "Why?"}]
    system, user = teacher_messages(chat)
    assert system == SYSTEM and user["content"].startswith("Why?\n\nThis is an example")


def test_contexts_without_a_demonstration():
    record = {"prompt": "How many?", "demonstration": "It was 312.", "text": "The article."}
    fact = parse_line(json.dumps(record | {"key_facts": [["312"]]}), "my.jsonl:1", "knowledge")
    for context, content in (("none", "How many?"), ("text", "The article.\n\nHow many?")):
        assert teacher_messages(fact, context) == [{"role": "user", "content": content}]
    with pytest.raises(ValueError, match='my.jsonl:1: field "text" is missing'):
        teacher_messages(example(), "text")
    with pytest.raises(ValueError, match="choose from demonstration, text"):
        teacher_messages(fact, "article")


OPTIONS = [["alkane", "alkanes"], ["ketone", "ketones"]]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"prompt": None},
            'field "prompt" must be a list that is not empty, as in "Why?" or',
        ),
        ({"prompt": ""}, 'field "prompt" must be'),
        ({"prompt": []}, 'field "prompt" must be a list that is not empty'),
        ({"prompt": [SYSTEM]}, 'field "prompt": its last turn must be the user'),
        (
            {"prompt": [{"role": "robot", "content": "x"}]},
            'field "prompt", item 0, "role" must be one of system, user, assistant',
        ),
        ({"prompt": [{"role": "user", "content": 5}]}, 'item 0, "content" must be a string'),
        (
            {"prompt": [{"role": "user", "text": "x"}]},
            "item 0 must be an object with role and content",
        ),
        ({"demonstration": "  "}, 'field "demonstration" must be a string that is not empty'),
        ({"demonstration": ["x"]}, 'field "demonstration" must be a string'),
        ({"demonstration": "\ud800"}, "surrogate"),
        ({"answer": "E"}, """field "answer" is 'E'; it must be one letter, A to D"""),
        ({"key_facts": ["312"]}, 'field "key_facts", item 0 must be a list'),
        (
            {"key_facts": [["312"], []]},
            'field "key_facts", item 1 must be a list that is not empty',
        ),
        ({"calls": []}, 'field "calls" must be a list that is not empty, as in [{"name": "search"'),
        ({"calls": {"name": "f", "arguments": {}}}, 'field "calls" must be a list'),
        (
            {"calls": [{"name": "f"}]},
            'field "calls", item 0 must be an object with name and arguments',
        ),
        (
            {"calls": [{"name": "f", "arguments": {}}, {"name": 5, "arguments": {}}]},
            'field "calls", item 1, "name" must be a string that is not empty',
        ),
        ({"calls": [{"name": "f", "arguments": "{}"}]}, 'item 0, "arguments" must be an object'),
        (
            {"calls": [{"name": "f", "arguments": {"x": [{"y\0": 1}]}}]},
            'field "calls" holds NUL or half of a surrogate pair',
        ),
        ({"pattern": "no\udfff"}, 'field "pattern" holds NUL or half of a surrogate pair'),
        ({"pattern": "(yes"}, 'field "pattern": no regular expression (missing )'),
        ({"pattern": {"words": 3}}, 'field "pattern" must be a string'),
        ({"pattern": "yes|no"}, 'field "pattern" is for the task probe alone; leave it out'),
        ({"options": []}, 'field "options" must be a list that is not empty, as in [["alkane"'),
        ({"options": ["alkane", "ketone"]}, 'field "options", item 0 must be a list'),
        ({"options": [["alkane"], [""]]}, 'field "options", item 1, item 0 must be a string'),
        (
            {"options": OPTIONS, "answer": "A"},
            """field "answer" is 'A'; it must be in one of "options\"""",
        ),
        (
            {"options": [*OPTIONS, ["alkane"]], "answer": "alkane"},
            """field "answer" is 'alkane'; it must be in one of "options""",
        ),
        ({"format": {"words": 3}}, 'field "format" is unknown; choose from id, prompt'),
        ({"demonstratoin": "x"}, 'field "demonstratoin" is unknown; choose from id, prompt'),
    ],
)
def test_wrong_fields_name_line_field_and_remedy(change, message):
    with pytest.raises(ValueError) as error:
        example(**change)
    assert str(error.value).startswith("my.jsonl:1: ") and message in str(error.value)


def test_an_answer_is_one_of_its_options():
    for answer in ("alkane", "ketones"):
        assert example(options=OPTIONS, answer=answer).options == OPTIONS


@pytest.mark.parametrize("field", ["prompt", "demonstration", "answer"])
def test_missing_fields(field):
    line = json.dumps({name: value for name, value in GOOD.items() if name != field})
    message = f'my.jsonl:7: field "{field}" is missing; each line of task science needs "prompt"'
    with pytest.raises(ValueError, match=message):
        parse_line(line, "my.jsonl:7", "science")


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "null", "[" * 100_000])
def test_lines_that_are_no_objects(line):
    with pytest.raises(ValueError, match="my.jsonl:3: "):
        parse_line(line, "my.jsonl:3", "science")


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "x", "prompt": "y"}', 'field "prompt" stands twice in one object'),
        ('{"prompt": [NaN]}', "NaN is no JSON number"),
        ('{"prompt": -Infinity}', "-Infinity is no JSON number"),
    ],
)
def test_what_python_reads_and_json_forbids(line, message):
    with pytest.raises(ValueError, match=f"my.jsonl:3: not JSON .{message}"):
        parse_line(line, "my.jsonl:3", "general")


def test_calls_are_read_as_they_are_and_required():
    calls = [{"name": "[Optional]save", "arguments": {"filter": {"kind": "tea"}, "limit": 10}}]
    record = {"prompt": "Save it.", "demonstration": "Action: …", "calls": calls}
    assert parse_line(json.dumps(record), "my.jsonl:1", "tooluse").calls == calls
    with pytest.raises(ValueError, match='my.jsonl:1: field "calls" is missing'):
        parse_line('{"prompt": "Save it.", "demonstration": "Action: …"}', "my.jsonl:1", "tooluse")


def test_files(tmp_path):
    file = tmp_path / "train.jsonl"
    with pytest.raises(
        ValueError, match="train.jsonl does not exist; its folder has no .jsonl file"
    ):
        load_task("science", "train", tmp_path)
    file.write_text("\n")
    with pytest.raises(ValueError, match="train.jsonl has no examples"):
        load_task("science", "train", tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="train.jsonl:1: not UTF-8"):
        load_task("science", "train", tmp_path)
    line = json.dumps(GOOD).encode() + b"\r\n"
    file.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    examples = load_task("science", "train", tmp_path)
    assert [e.source for e in examples] == [f"{file}:1", f"{file}:3"]
    file.write_text(json.dumps(GOOD | {"id": "x"}) + "\n" + json.dumps(GOOD | {"id": "x"}))
    with pytest.raises(ValueError, match='train.jsonl:2: field "id" is "x" as in line 1'):
        load_task("science", "train", tmp_path)
    with pytest.raises(ValueError, match='task "chess" is unknown; choose from science, knowledge'):
        load_task("chess", "train")
    with pytest.raises(ValueError, match="is not a folder"):
        load_task("science", "train", tmp_path / "missing")


def test_test_split_needs_no_demonstration(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "Why?", "answer": "A"}))
    assert load_task("science", "test", tmp_path)[0].demonstration is None
    with pytest.raises(ValueError, match='"demonstration" is missing'):
        read_jsonl(tmp_path / "test.jsonl", "science")


def test_prompts_that_do_not_fit_are_named_and_never_cut(tokenizer, capsys):
    fields = {"task": "science", "demonstration": "d"}
    lengths = {"short": 5, "long": 500, "longer": 600}
    examples = [
        Example(name, messages=[{"role": "user", "content": "x" * n}], **fields)
        for name, n in lengths.items()
    ]
    limits = {"max_prompt_tokens": 100, "max_teacher_prompt_tokens": 1000}
    [pair] = encode_pairs(tokenizer, examples, Config(**limits))
    assert "1 of 3 fit; longest student prompt 619" in (printed := capsys.readouterr().out)
    assert "(limit 100)" in printed and printed.rstrip().endswith("left out: long, longer")
    expected = "<|im_start|>user\nxxxxx<|im_end|>\n<|im_start|>assistant\n"
    assert pair.id == "short" and tokenizer.decode(pair.student_prompt) == expected
    assert tokenizer.decode(pair.teacher_prompt).endswith(":<|im_end|>\n<|im_start|>assistant\n")
    plain = encode_pairs(tokenizer, examples[:1], Config(teacher_instruction="plain"))
    assert "of your own.<|im_end|>" in tokenizer.decode(plain[0].teacher_prompt)
    for change, message in [
        ({"too_long": "stop"}, "(?s)left out: long, longer.* --too-long drop"),
        ({"max_prompt_tokens": 10}, r"0 of 3 fit; .* \(limit 10\)"),
        ({"max_teacher_prompt_tokens": 10}, r"0 of 3 fit; .* \(limit 10\)"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            encode_pairs(tokenizer, examples, Config(**limits | change))
        assert ("--too-long" in str(error.value)) == ("too_long" in change)


# ---- the files of a run ----


def test_a_prompt_that_the_template_refuses_is_named_by_its_line(tokenizer):
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer.chat_template = refuses + tokenizer.chat_template
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q?"}]
    line = Example("a", "science", turns, "D.", source="my.jsonl:3")
    with pytest.raises(ValueError, match="^my.jsonl:3: the chat template refuses a prompt with"):
        encode_pairs(tokenizer, [line], Config())


def test_splits_are_cut_and_complete(tmp_path):
    splits = load_splits(Config(eval_examples=3))
    assert len(splits.train) == len(load_task("science", "train")) > 50
    assert len(splits.validation) == 3 and len(splits.general) > 20
    sizes = {name: len(examples) for name, examples in splits.reports.items()}
    assert sizes == {"test": 3, "new stems": 3}
    knowledge = load_splits(Config(task="knowledge", teacher_context="text+demonstration"))
    assert list(knowledge.reports) == ["trained wordings", "held-out wordings", "indirect (OOD)"]
    (tmp_path / "train.jsonl").write_text('{"prompt": "Why?", "demonstration": "x"}\n')
    with pytest.raises(ValueError, match=re.escape(f'{tmp_path}/train.jsonl:1: field "answer"')):
        load_splits(Config(data=str(tmp_path)))


def test_drift_is_measured_on_prompts_of_the_users_own(tmp_path):
    """The first 32, as the plan has memory for these; none of them may be trained on."""
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps({"prompt": f"What is {n}?"}) for n in range(40)]
    file.write_text("\n".join(lines))
    general = load_splits(Config(general_data=str(file))).general
    assert [e.messages[0]["content"] for e in general] == [f"What is {n}?" for n in range(32)]
    for task, trained in (("science", load_task("science", "train")[2]), ("general", None)):
        more = {"teacher": "model", "teacher_context": "none"} if task == "general" else {}
        trained = trained or load_task("general", "train")[0]
        question = trained.messages[-1]["content"]
        turns = [{"role": "system", "content": "Be brief."}]
        turns += [{"role": "user", "content": f" {question.upper()}\n"}]
        file.write_text("\n".join([*lines[:3], json.dumps({"prompt": turns})]))
        message = f"{file}:4: {trained.source} trains on this prompt; leave it out there, or name"
        with pytest.raises(ValueError, match=re.escape(message)):
            load_splits(Config(general_data=str(file), **more))
    history = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]
    file.write_text(json.dumps({"prompt": [*history, *turns[1:]]}))  # another conversation
    assert len(load_splits(Config(general_data=str(file))).general) == 1
    with pytest.raises(ValueError, match="none.jsonl does not exist; its folder has mine.jsonl"):
        load_splits(Config(general_data=str(tmp_path / "none.jsonl")))


def test_our_general_prompts_are_not_trained_on_either(tmp_path):
    general = load_task("general", "test")[3]
    record = {"prompt": general.messages, "demonstration": "x", "answer": "A"}
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(record))
    message = f"{general.source}: {tmp_path}/train.jsonl:1 trains on this prompt"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_splits(Config(data=str(tmp_path)))


def test_a_folder_may_lack_the_rows_beside_test(tmp_path):
    own = load_task("science", "test")[:1]
    for split in ("train", "validation", "test"):
        lines = (ROOT / "samples" / "science" / f"{split}.jsonl").read_text().splitlines()
        (tmp_path / f"{split}.jsonl").write_text(lines[0])
    assert load_splits(Config(data=str(tmp_path))).reports["test"][0].id == own[0].id
    assert list(load_splits(Config(data=str(tmp_path))).reports) == ["test"]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/test.jsonl does not exist")):
        load_splits(Config(data=str(tmp_path)))
