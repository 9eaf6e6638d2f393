"""The probe and the forms it asks for.

Oracles: answers judged by hand here; the generator; the general prompts, which must be others.
"""

import importlib.util
import json
import re

import pytest
from conftest import ROOT, run_generator

from data import Example, load_task, parse_line
from eval import Answer
from scoring import score, summarise

PROBE = load_task("probe", "test")


def generator():
    """samples/make/probe.py, which writes a pattern for each form."""
    spec = importlib.util.spec_from_file_location("probe", ROOT / "samples/make/probe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "form, text, right",
    [
        ({"words": 3}, "Deep blue water.", True),
        ({"words": 3}, "Deep - blue\nwater !", True),  # signs alone are no words
        (
            {"words": 3},
            "well-known, don't, 3.5",
            True,
        ),  # what stands between white space is one word
        ({"words": 3}, "Deep water.", False),
        ({"words": 3}, "The deep blue water.", False),
        ({"words": 3}, "", False),
        ({"items": 4}, "apple, pear, plum, and fig", True),
        ({"items": 4}, "1. apple\n2. pear\n\n3. plum\n4. fig\n", True),
        ({"items": 4}, "apple, pear, plum, fig,", True),  # nothing stands after the last comma
        ({"items": 4}, "apple, pear, plum", False),
        ({"items": 4}, "Four fruits:\napple, pear, plum, fig", False),
        ({"items": 1}, "apple", True),
        ({"items": 1}, "", False),
        ({"uppercase": True}, "WATER, 2 CUPS!", True),
        ({"uppercase": True}, "WATER or TEA", False),
        ({"uppercase": True}, "123", False),  # no letter at all
        ({"lowercase": True}, "they eat fish.", True),
        ({"lowercase": True}, "They eat fish.", False),
        ({"lowercase": True}, "", False),
        ({"starts_with": "Because"}, "because it rains", True),
        ({"starts_with": "Because"}, '"Because," he said', True),
        ({"starts_with": "No"}, "Nobody knows", False),
        ({"starts_with": "No"}, "I say no", False),
        ({"starts_with": "Dear Anna"}, "**Dear  Anna**,\nhow are you?", True),
        ({"starts_with": "Dear Anna"}, "Dear", False),
        ({"ends_with": "sleep"}, "Cats love to sleep.", True),
        ({"ends_with": "sleep"}, "Cats fall asleep.", False),
        ({"ends_with": "sleep"}, "Sleep is what cats love.", False),
        ({"ends_with": "thank you"}, "For the gift: Thank you!", True),
        ({"ends_with": "thank you"}, "you", False),
        ({"one_of": ["yes", "no"]}, " Yes.\n", True),
        ({"one_of": ["yes", "no"]}, "no", True),
        ({"one_of": ["yes", "no"]}, "Yes, it is.", False),
        ({"one_of": ["yes", "no"]}, "yes no", False),
        ({"one_of": ["yes", "no"]}, "", False),
        ({"one_of": ["ice cream", "cake"]}, "_Ice cream_", True),
    ],
)
def test_patterns_of_the_forms(form, text, right):
    [(name, wanted)] = form.items()
    example = Example("q", "probe", [], pattern=generator().pattern(name, wanted))
    assert score(text, example) == {"correct": right}


def test_samples_are_enough_and_of_every_kind():
    """A fact is wrong when it is left out, or when the question is repeated."""
    facts, forms = [e for e in PROBE if e.key_facts], [e for e in PROBE if e.pattern]
    assert len(facts) >= 90 and len(forms) >= 40 and len(facts) + len(forms) == len(PROBE) >= 130
    names = {example.id.rpartition("-")[0] for example in forms}
    counted = {"words", "items", "uppercase", "lowercase"}
    assert names == counted | {"starts_with", "ends_with", "one_of"}
    for example in facts:
        right = f"I think it is {example.key_facts[0][0]}."
        for text, correct in ((right, True), (example.messages[-1]["content"], False), ("", False)):
            assert score(text, example) == {"correct": correct}, (example.id, text)
    for example in forms:
        assert not score("", example)["correct"]


@pytest.mark.parametrize(
    "prompt, text, right",
    [
        ("What is the capital of France?", "The capital of France is Paris.", True),
        ("What is the capital of France?", "London", False),
        ("What is 3 + 4?", "3 + 4 = 7", True),
        ("What is 3 + 4?", "seven", True),
        ("What is 3 + 4?", "77", False),
        ("Write exactly three words about the sea.", "Salt and waves", True),
        (
            "Write exactly three words about the sea.",
            "Here are three words about the sea: salt, foam, waves",
            False,
        ),
    ],
)
def test_scores_by_hand(prompt, text, right):
    [example] = [example for example in PROBE if example.messages[-1]["content"] == prompt]
    assert score(text, example) == {"correct": right}


def test_facts_and_forms_are_summarised_together():
    """Each fact is answered right, and no form is."""
    answers = [
        Answer(text, [1], True, score(text, example))
        for example in PROBE
        for text in [example.key_facts[0][0] if example.key_facts else ""]
    ]
    summary = summarise(answers)
    facts = sum(example.key_facts is not None for example in PROBE)
    assert summary["correct"] == facts / len(PROBE) and summary["n"] == len(PROBE)


def test_sums_and_counts_of_the_samples():
    """Arithmetic done again here, from the question."""
    signs = {"+": int.__add__, "-": int.__sub__, "times": int.__mul__}
    sums = [
        (re.fullmatch(r"What is (\d) (\+|-|times) (\d)\?", e.messages[-1]["content"]), e.key_facts)
        for e in PROBE
    ]
    checked = [
        key_facts[0][0] == str(signs[match[2]](int(match[1]), int(match[3])))
        for match, key_facts in sums
        if match
    ]
    assert len(checked) == 23 and all(checked)


def test_no_question_is_one_of_the_general_prompts():
    """Two prompts share less than three in five of their words.

    "What is 5 + 5?" and "What is rain?" share a half.
    """

    def words(example):
        return set(re.findall(r"\w+", example.messages[-1]["content"].casefold()))

    general = [words(example) for example in load_task("general", "test")]
    for example in PROBE:
        assert all(
            len(words(example) & other) / len(words(example) | other) < 0.6 for other in general
        ), example.id


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, 'task probe needs field "key_facts" or field "pattern", not both'),
        ({"key_facts": [["7"]], "pattern": "7"}, 'task probe needs field "key_facts" or field'),
        ({"pattern": "(yes"}, 'field "pattern": no regular expression ('),
        ({"pattern": ["yes"]}, 'field "pattern" must be a string'),
        ({"pattern": ""}, 'field "pattern" must be a string that is not empty'),
        ({"format": {"words": 3}}, 'field "format" is unknown'),
    ],
)
def test_wrong_lines_name_line_field_and_remedy(fields, message):
    with pytest.raises(ValueError, match=re.escape("my.jsonl:4: " + message)):
        parse_line(json.dumps({"prompt": "Why?"} | fields), "my.jsonl:4", "probe")


def test_generator_writes_the_file_that_is_here(tmp_path):
    run_generator("probe", tmp_path)
    assert (tmp_path / "probe/test.jsonl").read_bytes() == (
        ROOT / "samples/probe/test.jsonl"
    ).read_bytes()
