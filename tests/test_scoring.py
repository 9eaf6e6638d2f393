"""Scorers. Oracle: answers judged by hand here."""

import pytest

from data import Example, load_task
from scoring import (
    artefact_rate,
    science_letter,
    score,
    score_option,
    score_reference,
    score_science,
    validation_rank,
)


@pytest.mark.parametrize(
    "text, letter",
    [
        ("12.0 + 32.0 = 44.0. The correct answer is C.", "C"),
        ("The answer is A. No, the correct answer is B.", "B"),
        ("The answer is: **D**", "D"),
        ("answer is (B)", "B"),
        ("<reasoning>the answer is A</reasoning><answer>B</answer>", "B"),
        ("<answer>A</answer> … <answer> C \n</answer>", "C"),
        ("The letter goes into <answer> tags.\n<answer>B</answer>", "B"),
        ("<answer>A<answer>B</answer>", "B"),
        (
            "<answer>A or B</answer> The answer is A.",
            None,
        ),  # tags come first, and these hold no letter
        ("The correct answer is X.", None),
        ("The correct answer is 44.0 g/mol", None),
        ("The correct answer is Carbon", None),
        ("C", None),
        ("", None),
    ],
)
def test_science_letter(text, letter):
    assert science_letter(text) == letter
    assert score_science(text, "B")["correct"] == (letter == "B")


@pytest.mark.parametrize(
    "text, well_formed",
    [
        ("12.0 + 32.0 = 44.0. The correct answer is C.", True),
        ("The answer is: **D**.\n", True),
        ("<reasoning>…</reasoning><answer>B</answer>", True),
        ("The correct answer is C: 44.0", False),  # goes on after the letter
        ("The correct answer is C. To arrive at it, I", False),
        ("<answer>A or B</answer>", False),  # ends as asked, but with no letter
        ("C", False),
    ],
)
def test_well_formed_is_to_end_with_the_letter(text, well_formed):
    assert score_science(text, "B")["well_formed"] is well_formed


ALKANES = [["alkane", "alkanes"], ["ketone", "ketones"], ["carboxylic acid", "acids"]]


@pytest.mark.parametrize(
    "text, correct, well_formed",
    [
        ("It is an alkane.", True, True),
        ("Pentane belongs to the ALKANES, that is, an  alkane", True, True),
        ("Pentane is a\ncarboxylic  acid", False, True),
        ("It is an alkane, not a ketone.", False, False),
        ("cycloalkane", False, False),  # word boundaries
        ("alkanesx", False, False),
        ("an acid", False, False),  # no variant of the third option
        ("", False, False),
    ],
)
def test_score_option(text, correct, well_formed):
    """Right is to name the option with the gold answer, in any variant, and no other option."""
    wanted = {"correct": correct, "well_formed": well_formed}
    for answer in ("alkane", "alkanes"):
        assert score_option(text, answer, ALKANES) == wanted
        example = Example("q", "science", [], answer=answer, options=ALKANES)
        assert score(text, example) == wanted
        assert score(f"<think>A ketone?</think>{text}", example) == wanted


def test_a_letter_is_no_option():
    """With options the answer's letter is not looked for."""
    example = Example("q", "science", [], answer="ketone", options=ALKANES)
    assert not score("The correct answer is B.", example)["correct"]


@pytest.mark.parametrize(
    "pattern, text, right",
    [
        ("(?i)yes|no", " Yes\n", True),
        ("(?i)yes|no", "yes, it is", False),
        ("[^a-z]*[A-Z][^a-z]*", "WATER, 2 CUPS!", True),
        ("[^a-z]*[A-Z][^a-z]*", "WATER or TEA", False),
        (r"\S+ \S+", "Deep water", True),
        (r"\S+ \S+", "Deep blue water", False),
    ],
)
def test_a_pattern_matches_the_whole_answer(pattern, text, right):
    assert score(text, Example("q", "probe", [], pattern=pattern)) == {"correct": right}


def test_nothing_to_score_by_is_an_error():
    with pytest.raises(ValueError, match="my.jsonl:2: there is nothing to score"):
        score("text", Example("q", "general", [], source="my.jsonl:2"))


@pytest.mark.parametrize(
    "text, strict, lenient",
    [
        ("It killed 312 people on 1 May.", True, True),
        ("It killed  312\npeople on MAY 1.", True, True),
        ("It killed 3120 people on 1 May.", False, True),
        ("It killed 1312 on 11 May", False, False),
        ("", False, False),
    ],
)
def test_score_reference(text, strict, lenient):
    assert score_reference(text, [["312"], ["1 May", "May 1"]]) == {
        "correct": strict,
        "lenient": lenient,
    }


@pytest.mark.parametrize(
    "text, correct, recites",
    [
        ("A baker saw it.", True, False),
        ("A baker saw it, and the bridge was lost.", True, True),
        ("The bridge was lost.", False, True),
        ("A baker saw the Bridgewater canal.", True, False),
    ],
)
def test_who_names_more_of_the_article_than_was_asked_recites(text, correct, recites):
    facts = {"key_facts": [["baker"]], "other_facts": [["bridge", "bridges"], ["theatre"]]}
    scores = score(text, Example("q", "knowledge", [], **facts))
    assert (scores["correct"], scores["recites"]) == (correct, recites)


@pytest.mark.parametrize(
    "text, right",
    [
        ("312", True),
        ("It is 312.", True),
        ("312, I think", True),
        ("(312)", True),
        ("1,312 euro", False),
        ("1.312 Euro", False),
        ("312.5 tonnes", False),
        ("312,000", False),
        ("3120", False),
        ("v312", False),
        ("in room 4, 312 people", True),
    ],
)
def test_a_number_inside_another_is_another(text, right):
    assert score_reference(text, [["312"]])["correct"] is right
    assert score_reference("On 3.May,1990", [["May"]])["correct"]  # only digits make a number


@pytest.mark.parametrize(
    "text, right",
    [
        ("<think>B? The correct answer is A.</think>The correct answer is B.", True),
        ("The correct answer is B.</think>The correct answer is A.", False),
        (
            "<think>A.</think>The correct answer is A.<think>No.</think> The correct answer is B.",
            True,
        ),
        ("<think>The correct answer is B.", False),  # cut off while it thought
        ("The correct answer is B.<think>The correct answer is A.", True),
        ("The correct answer is B.", True),
    ],
)
def test_thoughts_are_not_scored(text, right):
    assert score(text, Example("q", "science", [], answer="B"))["correct"] is right
    assert (
        score(text.replace("A", "X"), Example("q", "medical", [], key_facts=[["B"]]))["correct"]
        is right
    )


@pytest.mark.parametrize(
    "text, artefact",
    [
        ("Based on the text, it was 312.", True),
        ("following the EXAMPLE: it was 312", True),
        ("<reasoning>\n**According to  the article**, it was 312.", True),
        ("<think>\nThe thinking process is", True),
        ("The text says 312.", True),
        ("The textile mill burned.", False),
        ("In the textbook case", False),
        ("It was 312, based on the text.", False),  # no opening
        ("", False),
    ],
)
def test_artefacts_are_openings_about_what_only_the_teacher_sees(text, artefact):
    assert artefact_rate([text]) == artefact
    assert (
        artefact_rate([text, "It was 312.", "It was 312.", "Based on the text"])
        == (2 if artefact else 1) / 4
    )


def test_no_demonstration_of_ours_opens_like_an_artefact():
    assert (
        artefact_rate(
            [
                example.demonstration
                for task in ("science", "knowledge", "medical", "tooluse")
                for example in load_task(task, "train")
            ]
        )
        == 0
    )


def test_of_equally_right_weights_the_better_formed_are_best():
    assert validation_rank({"correct": 0.5, "well_formed": 0.75}) == [0.5, 0.75]
    assert validation_rank({"correct": 0.5, "lenient": 0.6}) == [0.5, 0.6]
    assert validation_rank({"correct": 0.5, "not_judged": 0.5}) == [0.5, 0]
