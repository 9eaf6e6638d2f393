"""Tool use.

Oracles: answers judged by hand here; the golden calls of ToolAlpaca's test set, if its file is at
hand; the prompts.
"""

import json
import os
from pathlib import Path

import pytest

from data import load_task
from scoring import score, score_tooluse

GOLD = [{"name": "search", "arguments": {"query": "tea", "limit": 10}}]
TWO = GOLD + [{"name": "open", "arguments": {"id": 7}}]
NESTED = [{"name": "save", "arguments": {"filter": {"kind": "tea"}, "tags": ["a", "b"]}}]
BRACKETS = [{"name": "[Optional]save", "arguments": {}}]
SEARCH = 'Action: search\nAction Input: {"query": "tea", "limit": 10}'
OPEN = 'Action: open\nAction Input: {"id": 7}'


@pytest.mark.parametrize(
    "text, golden, calls, published, well_formed",
    [
        ("I need tea.\n" + SEARCH, GOLD, True, True, True),
        (
            'Action: search\nAction Input: {"limit": 10.0, "query": "tea"}\nObservation: none',
            GOLD,
            True,
            True,
            True,
        ),
        (
            '  Action:search  \r\n Action Input:\n{\n"query": "tea",\n"limit": 1e1\n}',
            GOLD,
            True,
            True,
            True,
        ),
        ('Action: search\nAction Input: {"query": "tea", "limit": "10"}', GOLD, False, False, True),
        ('Action: search\nAction Input: {"query": "Tea", "limit": 10}', GOLD, False, False, True),
        ('Action: search\nAction Input: {"query": "tea"}', GOLD, False, False, True),
        (
            'Action: search\nAction Input: {"query": "tea", "limit": 10, "page": 1}',
            GOLD,
            False,
            False,
            True,
        ),
        (SEARCH.replace("search", "find"), GOLD, False, False, True),
        (OPEN + "\nNow the other.\n" + SEARCH, TWO, True, True, True),  # any order of calls
        (SEARCH, TWO, False, False, True),  # one call too few
        (SEARCH + "\n" + OPEN, GOLD, False, False, True),  # one too many
        (SEARCH + "\n" + SEARCH, GOLD, False, False, True),  # the same one twice
        # inputs with each other's action: merging hides it
        (
            'Action: open\nAction Input: {"query": "tea", "limit": 10}\n'
            'Action: search\nAction Input: {"id": 7}',
            TWO,
            False,
            True,
            True,
        ),
        # an input before its action, and one without: both are there, but not paired
        ('Action Input: {"query": "tea", "limit": 10}\nAction: search', GOLD, False, True, False),
        (
            'Action: search\nAction: open\nAction Input: {"query": "tea", "limit": 10, "id": 7}',
            TWO,
            False,
            True,
            True,
        ),
        # an input that does not parse, then one that does: skipped by the one rule, the action's
        # own by the other
        (
            'Action: search\nAction Input: {query}\nAction Input: {"query": "tea", "limit": 10}',
            GOLD,
            False,
            True,
            False,
        ),
        # nested JSON and braces in a string: the published rule stops at the first closing brace
        (
            'Action: save\nAction Input: {"tags": ["a", "b"], "filter": {"kind": "tea"}} done',
            NESTED,
            True,
            False,
            True,
        ),
        (
            'Action: save\nAction Input: {"tags": ["b", "a"], "filter": {"kind": "tea"}}',
            NESTED,
            False,
            False,
            True,
        ),
        (
            'Action: say\nAction Input: {"text": "a } b"}',
            [{"name": "say", "arguments": {"text": "a } b"}}],
            True,
            False,
            True,
        ),
        ("Action: [Optional]save\nAction Input: {}", BRACKETS, True, False, True),
        # true is not 1, though Python says so
        (
            'Action: open\nAction Input: {"id": true}',
            [{"name": "open", "arguments": {"id": 1}}],
            False,
            True,
            True,
        ),
        (
            'Action: open\nAction Input: {"id": 12345678901234567891}',
            [{"name": "open", "arguments": {"id": 12345678901234567890}}],
            False,
            False,
            True,
        ),
        # no JSON object after the action
        ("Action: search\nAction Input: tea, 10", GOLD, False, False, False),
        ('Action: search\nAction Input: {"query": "tea", "limit": 10', GOLD, False, False, False),
        ('Action: search\nAction Input: ["tea", 10]', GOLD, False, False, False),
        ('Action:\nAction Input: {"query": "tea", "limit": 10}', GOLD, False, False, False),
        (
            SEARCH + '\nAction: search\nAction Input: {"query',
            GOLD,
            False,
            False,
            True,
        ),  # cut off in a second call
        (
            'Action: open\nAction Input: {"id": ' + "9" * 5000 + "}",
            GOLD,
            False,
            False,
            False,
        ),  # Python reads no integer this long
        ('Action: open\nAction Input: {"id": ' + "[" * 100_000, GOLD, False, False, False),
        ('Action: open\nAction Input: {"id": ' + "[" * 100_000 + "}", GOLD, False, False, False),
        ("I would search for tea.", GOLD, False, False, False),
        ("", GOLD, False, False, False),
    ],
)
def test_score_tooluse(text, golden, calls, published, well_formed):
    assert score_tooluse(text, golden) == {"correct": calls, "well_formed": well_formed}
    assert score_tooluse(text, golden, "published") == {
        "correct": published,
        "well_formed": well_formed,
    }


def test_published_lets_a_later_argument_hide_an_earlier_one():
    golden = [{"name": "open", "arguments": {"id": 1}}, {"name": "open", "arguments": {"id": 2}}]
    text = OPEN + '\nAction: open\nAction Input: {"id": 2}'
    assert (
        score_tooluse(text, golden, "published")["correct"]
        and not score_tooluse(text, golden)["correct"]
    )


def test_unknown_rule():
    with pytest.raises(ValueError, match='rule "merged" is unknown; choose from calls, published'):
        score_tooluse(SEARCH, GOLD, "merged")


def test_golden_calls_of_toolalpaca_score_themselves():
    """Written out as text, all 68 are right; the published rule refuses two, with nested JSON and a
    name in brackets.
    """
    file = Path(os.environ.get("SDFT_SHARED_DATA", "")) / "tooluse" / "test.jsonl"
    if "SDFT_SHARED_DATA" not in os.environ or not file.is_file():
        pytest.skip(
            "SDFT_SHARED_DATA names no folder with tooluse/test.jsonl, ToolAlpaca's test set"
        )
    right = {"calls": 0, "published": 0}
    for line in file.read_text(encoding="utf-8").splitlines():
        answer = json.loads(json.loads(line)["answer"])
        golden = [
            {"name": call["Action"], "arguments": json.loads(call["Action_Input"])}
            for call in answer
        ]
        text = "\n".join(
            f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in answer
        )
        for rule in right:
            right[rule] += score_tooluse(text, golden, rule)["correct"]
    assert right == {"calls": 68, "published": 66}


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
            assert score(example.demonstration, example) == {
                "correct": True,
                "well_formed": True,
            }, example.id
            assert score_tooluse(example.demonstration, example.calls, "published")["correct"], (
                example.id
            )
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
