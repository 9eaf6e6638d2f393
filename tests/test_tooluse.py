"""Tool use.

Oracles: answers judged by hand here; the golden calls of ToolAlpaca's test set, if its file is at
hand; the prompts.
"""

import json
import os
from pathlib import Path

import analysis
import pytest

import eval as evaluation
from data import Example, load_task
from eval import Answer
from scoring import score, score_tooluse

GOLD = [{"name": "search", "arguments": {"query": "tea", "limit": 10}}]
TWO = GOLD + [{"name": "open", "arguments": {"id": 7}}]
NESTED = [{"name": "save", "arguments": {"filter": {"kind": "tea"}, "tags": ["a", "b"]}}]
BRACKETS = [{"name": "[Optional]save", "arguments": {}}]
FIND = "Action: search\nAction Input: "
SEARCH = FIND + '{"query": "tea", "limit": 10}'
TAGS = '{"tags": ["a", "b"], "filter": {"kind": "tea"}}'
REORDERED = TAGS.replace('"a", "b"', '"b", "a"')
SAY = [{"name": "say", "arguments": {"text": "a } b"}}]
OPEN_1 = [{"name": "open", "arguments": {"id": 1}}]
OPEN_LONG = [{"name": "open", "arguments": {"id": 12345678901234567890}}]
OPEN = 'Action: open\nAction Input: {"id": 7}'
SWAPPED = SEARCH.replace("search", "open") + "\n" + OPEN.replace("open", "search")


@pytest.mark.parametrize(
    "text, golden, calls, well_formed",
    [
        ("I need tea.\n" + SEARCH, GOLD, True, True),
        (FIND + '{"limit": 10.0, "query": "tea"}\nEnd', GOLD, True, True),
        ('  Action:search  \r\n Action Input:\n{\n"query": "tea", "limit": 1e1}', GOLD, True, True),
        (FIND + '{"query": "tea", "limit": "10"}', GOLD, False, True),
        (FIND + '{"query": "Tea", "limit": 10}', GOLD, False, True),
        (FIND + '{"query": "tea"}', GOLD, False, True),
        (FIND + '{"query": "tea", "limit": 10, "page": 1}', GOLD, False, True),
        (SEARCH.replace("search", "find"), GOLD, False, True),
        (OPEN + "\nNow the other.\n" + SEARCH, TWO, True, True),  # any order of calls
        (SEARCH, TWO, False, True),  # one call too few
        (SEARCH + "\n" + OPEN, GOLD, False, True),  # one too many
        (SEARCH + "\n" + SEARCH, GOLD, False, True),  # the same one twice
        # inputs with each other's action
        (SWAPPED, TWO, False, True),
        # an input before its action, and one without: both are there, but not paired
        ('Action Input: {"query": "tea", "limit": 10}\nAction: search', GOLD, False, False),
        ("Action: search\n" + SEARCH.replace("search", "open"), GOLD, False, True),
        # an input that does not parse, then one that does
        (FIND + "{query}\n" + SEARCH.partition("\n")[2], GOLD, False, False),
        # nested JSON, and braces in a string
        (f"Action: save\nAction Input: {TAGS} done", NESTED, True, True),
        (f"Action: save\nAction Input: {REORDERED}", NESTED, False, True),
        ('Action: say\nAction Input: {"text": "a } b"}', SAY, True, True),
        ("Action: [Optional]save\nAction Input: {}", BRACKETS, True, True),
        ('Action: open\nAction Input: {"id": true}', OPEN_1, False, True),  # Python says 1 == true
        ('Action: open\nAction Input: {"id": 12345678901234567891}', OPEN_LONG, False, True),
        # no JSON object after the action
        (FIND + "tea, 10", GOLD, False, False),
        (FIND + '{"query": "tea", "limit": 10', GOLD, False, False),
        (FIND + '["tea", 10]', GOLD, False, False),
        ('Action:\nAction Input: {"query": "tea", "limit": 10}', GOLD, False, False),
        (f'{SEARCH}\n{FIND}{{"query', GOLD, False, True),  # cut off in a second call
        (OPEN.replace("7", "9" * 5000), GOLD, False, False),  # Python reads no integer this long
        ('Action: open\nAction Input: {"id": ' + "[" * 100_000, GOLD, False, False),
        ('Action: open\nAction Input: {"id": ' + "[" * 100_000 + "}", GOLD, False, False),
        ("I would search for tea.", GOLD, False, False),
        ("", GOLD, False, False),
    ],
)
def test_score_tooluse(text, golden, calls, well_formed):
    assert score_tooluse(text, golden) == {"correct": calls, "well_formed": well_formed}
    example = Example("q", "tooluse", [], calls=golden)
    assert score(text, example) == {"correct": calls, "well_formed": well_formed}


def test_golden_calls_of_toolalpaca_score_themselves():
    """Written out as text, all 68 are right."""
    file = Path(os.environ.get("SDFT_SHARED_DATA", "")) / "tooluse" / "test.jsonl"
    if "SDFT_SHARED_DATA" not in os.environ or not file.is_file():
        pytest.skip("SDFT_SHARED_DATA names no folder with ToolAlpaca's tooluse/test.jsonl")
    right = 0
    for line in file.read_text(encoding="utf-8").splitlines():
        calls = json.loads(json.loads(line)["answer"])
        golden = [
            {"name": call["Action"], "arguments": json.loads(call["Action_Input"])}
            for call in calls
        ]
        text = "\n".join(
            f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in calls
        )
        right += score_tooluse(text, golden)["correct"]
    assert right == 68


# ---- our samples ----


def samples():
    return {split: load_task("tooluse", split) for split in ("train", "validation", "test")}


def between(example, start, end):
    return example.messages[-1]["content"].split(start)[1].split(end)[0]


def test_splits_share_neither_tools_nor_questions():
    splits = samples()
    assert [len(examples) for examples in splits.values()] == [110, 21, 32]
    tools = {
        split: {between(example, "\nName: ", "\n") for example in examples}
        for split, examples in splits.items()
    }
    assert sum(len(names) for names in tools.values()) == len(set.union(*tools.values())) == 18
    questions = [
        between(example, "\nQuestion: ", "\n")
        for examples in splits.values()
        for example in examples
    ]
    assert len(set(questions)) == len(questions)


def test_demonstrations_make_the_golden_calls_and_no_others_do():
    for examples in samples().values():
        for example, other in zip(examples, examples[1:] + examples[:1], strict=True):
            own = score(example.demonstration, example)
            assert own == {"correct": True, "well_formed": True}, example.id
            assert not score(other.demonstration, example)["correct"], example.id


def test_calls_follow_the_documentation_in_the_prompt():
    for example in sum(samples().values(), []):
        lines = between(example, "\nDocumentation:\n", "\n\nUse the following format:").split("\n")
        documented = {
            line.split(": ")[0]: json.loads(parameters.removeprefix("Parameters: "))
            for line, parameters in zip(lines[::3], lines[1::3], strict=False)
        }
        for call in example.calls:
            parameters = documented[call["name"]]
            required = {name for name, text in parameters.items() if text.startswith("Required.")}
            assert required <= call["arguments"].keys() <= parameters.keys(), example.id


def test_either_rule_from_the_command_line(tiny_folder, tmp_path, monkeypatch, capsys):
    """The merged arguments are the golden ones, and each call has the other's: see score_published.

    The second answer is right by our rule alone: nested JSON.
    """
    golden = [
        [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}],
        [{"name": "f", "arguments": {"x": {"y": 1}}}],
    ]
    lines = [json.dumps({"prompt": f"Call {n}.", "calls": calls}) for n, calls in enumerate(golden)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    swapped = 'Action: f\nAction Input: {"y": 2}\nAction: g\nAction Input: {"x": 1}'
    nested = 'Action: f\nAction Input: {"x": {"y": 1}}'
    answers = [Answer(f"<think>{nested}</think>{text}", [1], True) for text in (swapped, nested)]
    monkeypatch.setattr(evaluation, "answer_greedily", lambda *_, **how: answers)
    command = f"--model {tiny_folder} --task tooluse --data {tmp_path} --json {tmp_path}/out.json"
    evaluation.main(command.split())
    record = json.loads((tmp_path / "out.json").read_text())
    assert [answer["scores"]["correct"] for answer in record["answers"]] == [False, True]
    assert "at most 64 tokens " in capsys.readouterr().out
    analysis.main(["published", *command.split()])
    record = json.loads((tmp_path / "out.json").read_text())
    assert [answer["published"] for answer in record["answers"]] == [True, False]
    assert "right by our rule 50.0%, by the published 50.0%" in capsys.readouterr().out
