"""When a text contains a fact. Oracle: pairs judged by hand, some of them in docs/matching.md."""

import random
import re
import unicodedata

import pytest
from conftest import ROOT

from scoring import normalise, score_option, score_reference


def found(fact, text):
    return score_reference(text, [[fact]])["correct"]


def documented():
    """(fact, text, whether it is found) of each row of the tables in docs/matching.md."""
    lines = (ROOT / "docs" / "matching.md").read_text(encoding="utf-8").splitlines()
    rows = [re.match(r"\|[^|]*\| `(.*)` \| `(.*)` \| (yes|no) \|", line) for line in lines]
    return [(row[1], row[2], row[3] == "yes") for row in rows if row]


def test_the_tables_are_read_whole():
    lines = (ROOT / "docs" / "matching.md").read_text(encoding="utf-8").splitlines()
    headings_and_rules = 4
    assert len(documented()) == sum(line.startswith("|") for line in lines) - headings_and_rules


@pytest.mark.parametrize("fact, text, right", documented())
def test_the_documented_examples(fact, text, right):
    assert found(fact, text) is right


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
@pytest.mark.parametrize(
    "fact, text, right",
    [
        ("Ångström", "by Anders Ångström", True),
        ("Angstrom", "by Anders Ångström", False),
        ("naïve", "a NAÏVE answer", True),
        ("pho", "phở", False),
        ("ガラス", "これはガラスです", True),
        ("カラス", "これはガラスです", False),
        ("한글", "한글은 쉽다", True),
    ],
)
def test_both_unicode_forms_are_one(form, fact, text, right):
    assert found(fact, unicodedata.normalize(form, text)) is right
    assert found(unicodedata.normalize(form, fact), text) is right


@pytest.mark.parametrize(
    "fact, text",
    [
        ("40 mg", "40\u00a0mg"),  # no-break blank
        ("40 mg", "40\u202fmg"),  # narrow no-break blank
        ("40 mg", "４０　ｍｇ"),
        ("40 µg", "40 μg"),  # micro sign, Greek letter
        ("X-ray", "x\u2011ray"),  # no-break hyphen
        ("Anna's", "Anna\u2019s"),
        ("oﬃce", "OFFICE"),
        ("metformin", "met\u00adformin"),  # soft hyphen
        ("metformin", "\u200bmet\u200dformin\ufeff"),  # zero width
        ("20 °C", "20 ℃"),
        ("20 °C", "20 ºC"),  # the ordinal sign
        ("No. 9", "№9"),
        ("1/2", "½"),
        ("2 1/2", "2½"),
        ("5 kg", "5 ㎏"),
        ("6", "𝟔"),
        ("10^-3", "10⁻³"),
        ("H2O", "H₂O"),
        ("❤", "❤\ufe0f"),
        ("10,000", "１０，０００"),
    ],
)
def test_what_looks_the_same_is_the_same(fact, text):
    assert found(fact, f"It is {text}.") and found(text, f"It is {fact}.")


@pytest.mark.parametrize(
    "fact, text",
    [
        ("102", "10²"),
        ("102", "10₂"),
        ("11/2", "1½"),
        ("1", "①"),
        ("e", "é"),
        ("I", "l"),
        ("0", "O"),
    ],
)
def test_what_looks_different_is_different(fact, text):
    assert not found(fact, text) and not found(text, fact)


@pytest.mark.parametrize(
    "fact, text, right",
    [
        ("8", "x=-8", False),
        ("-8", "x=-8", True),
        ("-8", "18-8", False),  # a difference
        ("8", "(-8)", False),
        ("8", "±8", False),
        ("8", "'8'", True),
        ("8", "₹8", True),
        ("8", "8, then 9", True),
        ("8", "8.Then", True),
        ("8", "well...8", True),
        ("8", "8...", True),
        ("80", "(.80)", False),
        (".80", "(.80)", True),
        (".80", "0.80", False),
        ("80", "lost.80 people", True),
        ("031", "1'031", False),
        ("1 031", "1\u202f031", True),
        ("1", "1 031", False),
        ("312", "in 2019 312 people", True),  # four digits are no group
        ("2", "1 1/2", False),
        ("1", "1 1/2", False),
        ("5", "5×10³ cells", False),
        ("19", "COVID-19", True),
        ("555", "call 555-1234", False),
        ("12", "am 1.12.1999", True),
        ("1.12", "am 1.12.1999", True),
        ("12", "version 1.12.3", False),
        ("14", "1914-18", False),
        ("1914", "1914-18", True),
        ("٣", "٣٫٥", False),
        ("3.5", "٣٫٥", True),
        ("5", "5%", True),
        ("1998", "1998년에", True),
        ("98", "1998年", False),
    ],
)
def test_numbers(fact, text, right):
    assert found(fact, text) is right


@pytest.mark.parametrize("fact", ["한강", "Han", "1945"])
@pytest.mark.parametrize("particle", ["은", "을", "에서", "에서는", "입니다", "이었습니다"])
def test_korean_particles(fact, particle):
    assert found(fact, f"답은 {fact}{particle}.")


def test_a_korean_word_begins_and_ends_somewhere():
    for text in ("남한강은", "한강변", "한강물이"):
        assert not found("한강", text)


def test_no_character_is_an_error_and_one_form_is_final():
    blocks = [
        range(0x3400),
        range(0xF900, 0x10000),
        range(0x1D400, 0x1D800),
        range(0x1F100, 0x1F200),
    ]
    characters = [chr(i) for block in blocks for i in block]
    for character in characters:
        assert normalise(normalise(character)) == normalise(character)
    draw = random.Random(0)
    for _ in range(5000):
        text = "".join(draw.choices(characters[32:0x3100], k=5))
        assert normalise(normalise(text)) == normalise(text)
        assert normalise(unicodedata.normalize("NFD", text)) == normalise(text)


def test_a_fact_of_nothing_visible_is_never_found():
    assert not found("\u200b", "It is 5.") and not found("\ufe0f", "")


@pytest.mark.parametrize(
    "text, correct, well_formed",
    [
        ("答案是苯甲酸。", True, True),
        ("答案是甲酸。", False, True),
        ("甲酸，不是苯甲酸", False, False),
        ("乙醇", False, False),
    ],
)
def test_an_option_inside_a_longer_one_is_not_named(text, correct, well_formed):
    """苯甲酸 (benzoic acid) contains 甲酸 (formic acid)."""
    options = [["甲酸"], ["苯甲酸"]]
    assert score_option(text, "苯甲酸", options) == {"correct": correct, "well_formed": well_formed}
    acids = [["acid"], ["amino acid", "amino acids"]]
    assert score_option("An amino acid.", "amino acid", acids)["correct"]
    assert not score_option("An amino acid, or another acid.", "amino acid", acids)["correct"]


def test_an_accent_alone_stays_a_character():
    assert found("¨", "The sign ¨ is a diaeresis.") and normalise("a¨") == "a¨" != normalise("ä")
