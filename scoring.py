"""Scorers: the text of an answer -> a dict of booleans, "correct" among them. Only needs Python."""

import json
import math
import re
import unicodedata
from collections import Counter
from functools import lru_cache

# ---- scorers of a list of answers: scorer(examples, answers) -> a dict of booleans for each ----


def score_by_rule(examples, answers):
    return [score(answer.text, e) for answer, e in zip(answers, examples, strict=True)]


def score(text, example):
    """The rule of the example's task; thoughts are not scored."""
    text = final_answer(text)
    if example.task == "science" and example.options:
        return score_option(text, example.answer, example.options)
    if example.task == "science":
        return score_science(text, example.answer)
    if example.task == "tooluse":
        return score_tooluse(text, example.calls)
    if example.pattern:
        return {"correct": re.fullmatch(example.pattern, text.strip()) is not None}
    if example.key_facts:
        scores = score_reference(text, example.key_facts, example.other_facts)
        # the probe also has patterns, which know no lenient: all its scores have the same names
        return {"correct": scores["correct"]} if example.task == "probe" else scores
    raise ValueError(f"{example.source}: there is nothing to score an answer by")


def summarise(answers):
    """Shares over answers (text, ids, finished, scores) -> dict; eval.evaluate explains it.

    Each share is over the answers that have that score: what a judge did not judge has none.
    """
    n, found = len(answers), {}
    for answer in answers:
        for name, value in answer.scores.items():
            found.setdefault(name, []).append(value)
    summary = {"n": n} | {name: sum(values) / len(values) for name, values in found.items()}
    if "correct" in summary:
        values = found["correct"]
        spread = sum((value - summary["correct"]) ** 2 for value in values) / len(values)
        # values of a judge that was asked repeatedly are shares: their spread includes the judge's
        summary["standard_error"] = math.sqrt(spread / len(values))
    summary["finished"] = sum(answer.finished for answer in answers) / n
    summary["completion_tokens"] = sum(len(answer.ids) for answer in answers) / n
    summary["artefacts"] = artefact_rate([answer.text for answer in answers])
    return summary


def validation_rank(summary):
    """What the best weights are chosen by: correct, then well_formed or lenient.

    None, which chooses nothing, if a judge judged fewer than half of the answers.
    """
    if summary.get("not_judged", 0) > 0.5:
        return None
    return [summary["correct"], summary.get("well_formed", summary.get("lenient", 0))]


# ---- thoughts: what a model writes before its answer ----

THOUGHTS = {  # opening marker -> closing marker
    "<think>": "</think>",  # DeepSeek-R1, Qwen3, SmolLM3, GLM, Phi-4, Nemotron
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",  # EXAONE Deep
    "[THINK]": "[/THINK]",  # Magistral
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<longcat_think>": "</longcat_think>",
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel>": "<channel|>",  # Gemma 4
    "<unused94>": "<unused95>",  # MedGemma
}
# gpt-oss: <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
CHANNEL_MARKERS = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]

_OPENING = re.compile("|".join(map(re.escape, THOUGHTS)))
_CLOSING = re.compile("|".join(map(re.escape, THOUGHTS.values())))
_CHANNEL = re.compile(r"<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_MESSAGE_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")


def final_answer(text):
    """The text after the last thought; "" if the text ends inside of one.

    Of a text in channels it is the last message of the channel `final`.
    """
    if "<|channel|>" in text:
        _, *final_messages = _FINAL_CHANNEL.split(text)
        text = _MESSAGE_END.split(final_messages[-1])[0] if final_messages else ""
    after_thoughts = _CLOSING.split(text)[-1]
    return _OPENING.split(after_thoughts)[0]


def opened_thought(prompt):
    """The marker of thoughts that a prompt's text ends with, or "".

    The model's answer then begins inside of a thought.
    """
    prompt = prompt.rstrip()
    for pattern in (_OPENING, _CHANNEL):
        for match in pattern.finditer(prompt):
            if match.end() == len(prompt):
                return match[0]
    return ""


def thought_markers(tokens):
    """Those of a vocabulary's tokens (strings) that mark thoughts or channels."""
    markers = {*THOUGHTS, *THOUGHTS.values()}
    if "<|channel|>" in tokens:  # <|end|> is other models' end of a turn
        markers |= set(CHANNEL_MARKERS)
    return markers & set(tokens)


# ---- science ----


def score_option(text, answer, options):
    """correct: the text names the option that holds the gold answer, and no other option.

    options is a list of options, each a list of accepted variants. An occurrence inside a longer
    one of another option is part of that name: "carboxylic acid" does not name "acid".
    well_formed: the text names just one option.
    """
    text = normalise(text)
    spans = [
        (start, end, option)
        for option, variants in enumerate(options)
        for variant in variants
        for start, end in _occurrences(variant, text)
    ]
    named = {
        option
        for start, end, option in spans
        if not any(
            first <= start and end <= last and last - first > end - start and other != option
            for first, last, other in spans
        )
    }
    one = len(named) == 1
    return {"correct": one and answer in options[min(named)], "well_formed": one}


def score_science(text, answer):
    """correct: the letter is the gold one; well_formed: the text ends by stating its letter."""
    letter = science_letter(text)
    at_the_end = re.search(r"(</answer>|answer is:?\s+[*(\"']*[A-D])[\s.*)\"']*$", text)
    return {"correct": letter == answer, "well_formed": letter is not None and bool(at_the_end)}


def science_letter(text):
    """The letter in the last <answer>…</answer>, else in the last "answer is X", else None."""
    # from the last opening tag before a closing one: a text may speak of <answer> tags
    tagged = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, flags=re.DOTALL)
    if tagged:
        letter = tagged[-1].strip()
        return letter if letter in ("A", "B", "C", "D") else None
    stated = re.findall(r"answer is:?\s+[*(\"']*([A-D])\b(?!')", text)
    return stated[-1] if stated else None


# ---- knowledge and medical ----


def score_reference(text, key_facts, other_facts=None):
    """correct (strict): every key fact occurs in one of its variants; lenient: at least one does;
    recites: one of other_facts does, so that the answer says more of its text than was asked.

    What it means to occur is explained above `_occurrences`.
    """
    text = normalise(text)
    found = [any(_occurs(variant, text) for variant in variants) for variants in key_facts]
    scores = {"correct": all(found), "lenient": any(found)}
    if other_facts:
        scores["recites"] = any(_occurs(v, text) for variants in other_facts for v in variants)
    return scores


# ---- matching: does a text contain a fact? docs/matching.md has examples of each rule ----
#
# 1. Both sides are brought to one form first (`normalise`): case, white space, and characters that
#    look the same.
# 2. A match neither begins nor ends inside a word. Scripts without blanks have no such ends: there
#    a match may stand anywhere, but it does not cut a letter from its marks.
# 3. A match neither begins nor ends inside a number: 31 is not in 31.5, 1,031, -31 or 31/2.

SCRIPTS_WITHOUT_BLANKS = (  # what the Unicode names of their characters begin with
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "BOPOMOFO",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
    "JAVANESE",
    "BALINESE",
    "TAI ",
    "NEW TAI LUE",
    "AHOM",
    "YI ",
)
_CJK = "[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_CONTINUES_KANA = "ーぁぃぅぇぉゃゅょゎァィゥェォャュョヮ"  # the second half of a syllable

# Korean writes particles and "is" behind a word without a blank: 서울 is in 서울은 and 서울입니다
_KOREAN_PARTICLES = re.compile(
    "(?:은|는|이|가|을|를|의|에|와|과|도|만|로|으로|이랑|이나|께서|께|에서|에게|한테|부터|까지|보다"
    "|처럼|마다|밖에|조차|마저|하고|이라고|라고|이라는|라는|이란|이며|이고|이지만|이므로|인데|이다"
    "|입니다|입니까|이에요|예요|이었다|였다|이었습니다|였습니다|이었고|였고)+(?![가-힣])"
)

_SAME_CHARACTER = str.maketrans(
    dict.fromkeys("‘’‛ʼʻ´", "'")
    | dict.fromkeys("“”„‟", '"')
    | dict.fromkeys("‐‑‒–−﹣", "-")  # not the long dash, which stands between clauses
    | dict.fromkeys("⁄∕", "/")
    | dict.fromkeys("º˚", "°")
    | {"٫": ".", "٬": ",", "№": "no. ", "ـ": None}  # the last one only widens an Arabic word
)


def normalise(text):
    """A text in the one form in which texts are compared.

    Case, white space, Unicode's two forms of a character (NFC), and compatibility forms that look
    the same: full-width digits and letters, ligatures, no-break blanks and hyphens, curly quotes.
    Digits of all scripts become 0-9. What looks different stays different: é and e, 10² and 102.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        text = re.sub("(?<![０-９])，", ", ", text)  # a full-width comma is no decimal one
        text = re.sub("(?<=\\d)(?=[¼-¾⅐-⅞])", " ", text)  # 1½ is 1 1/2, not 11/2
        text = re.sub("(?<=\\d)(?=[₀-₉])", "_", text)  # 10₂ is not 102
        text = re.sub("[²³¹⁰⁴-⁹⁺⁻]+", lambda match: "^" + _compatible(match[0]), text)
        text = "".join(map(_plain_character, text.translate(_SAME_CHARACTER)))
        text = text.translate(_SAME_CHARACTER)  # ½ became 1⁄2, for example
        text = unicodedata.normalize("NFC", text).casefold()
        text = unicodedata.normalize("NFC", text).replace("i\u0307", "i")  # the Turkish İ
    text = " ".join(text.casefold().split())
    # blanks around Chinese and Japanese words are free: 1998 年 is 1998年
    return re.sub(f"(?<={_CJK}) | (?={_CJK})", "", text)


def _compatible(text):
    return unicodedata.normalize("NFKC", text)


@lru_cache(maxsize=4096)
def _plain_character(character):
    """The plain form of a character that looks the same; "" if nobody sees it."""
    kind = unicodedata.category(character)
    if kind == "Cf" or unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
        return ""
    if kind == "Nd":
        return str(unicodedata.digit(character))
    form = unicodedata.decomposition(character).partition(" ")[0]
    # without a tag: composed letters, for NFC. Small raised and circled characters look different
    if not form.startswith("<") or form in ("<super>", "<circle>"):
        return character
    plain = _compatible(character)
    alone = plain.startswith(" ") and len(plain) > 1  # an accent above nothing, such as ´
    return character if alone else plain


# one number, with all that makes it another number than its first digits
_NUMBER = re.compile(
    r"""
    (?P<parts>                              # numbers side by side, each of which counts alone:
        (?<!\d)\d{1,2}([./-])\d{1,2}\2\d{4}(?!\d)             # the date 1.5.2020
        | (?<!\d)\d{4}([./-])\d{1,2}\3\d{1,2}(?!\d)           # the date 2020-05-01
        | (?<!\d)[12]\d{3}-(?:[12]\d{3}|\d\d)(?!\d)           # the years 1914-1918
    )
    | (?:(?<![\w.)\]])\.)?                 # .50
      (?:(?<!\d)\d{1,3}(?:[ ']\d{3})+(?!\d) | \d+)            # 10 000, 10'000
      (?:[.,:/'-]\d+ | \^[-+]?\d+)*        # 31.5, 1,031, 12:30, 1/2, the range 5-6, 10^3
      (?:\ \d+/\d+)?                       # 1 1/2
      (?:\ ?[x×*·]\ ?10\^[-+]?\d+)?        # 3 × 10^8
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=64)
def _numbers(text):
    """(start, end) of each number of a normalised text, its sign included."""
    spans = []
    for match in _NUMBER.finditer(text):
        if match["parts"]:
            continue
        start = match.start()
        sign = start - 1
        if sign > 0 and unicodedata.category(text[sign]) == "Sc":  # -$5
            sign -= 1
        if sign >= 0 and text[sign] in "-±" and not (sign and _ends_operand(text[sign - 1])):
            start = sign
        spans.append((start, match.end()))
    return spans


def _ends_operand(character):
    """Whether a "-" after it is a hyphen or a minus between two things, and no sign."""
    word = _in_words(character) and not without_blanks(character)
    return word or character in ")]}%°-"


def _occurs(variant, normalised_text):
    return any(True for _ in _occurrences(variant, normalised_text))


def _occurrences(variant, normalised_text):
    """(start, end) of each place where a variant of a fact occurs in a normalised text."""
    text, variant = normalised_text, normalise(variant)
    start = text.find(variant) if variant else -1
    while start >= 0:
        end = start + len(variant)
        in_word = _cuts_word(text, start) or (
            _cuts_word(text, end) and not _KOREAN_PARTICLES.match(text, end)
        )
        in_number = any(a < start < b or a < end < b for a, b in _numbers(text))
        if not in_word and not in_number:
            yield start, end
        start = text.find(variant, start + 1)


def _cuts_word(text, i):
    """Whether a word goes on from text[i - 1] to text[i]."""
    if i in (0, len(text)):
        return False
    before, after = text[i - 1], text[i]
    if unicodedata.category(after).startswith("M"):  # a mark of the letter before it
        return True
    if after in _CONTINUES_KANA and unicodedata.name(before, "").startswith(("HIRAG", "KATAK")):
        return True
    if after == "^":  # m^2 is not m
        return _in_words(before)
    if before == "_":  # snake_case is one word, but _Paris_ is Paris in italics
        before = text[i - 2 : i - 1]
    elif after == "_":
        after = text[i + 1 : i + 2]
    if not _in_words(before) or not _in_words(after):
        return False
    if without_blanks(before) or without_blanks(after):
        return False
    return _hangul(before) == _hangul(after)  # Korean goes on after a word of another script


def _in_words(character):
    """Whether it is a letter, a mark of one, or a digit."""
    return character != "" and unicodedata.category(character)[:2].startswith(("L", "M", "Nd"))


def without_blanks(character):
    """Whether a character belongs to a script that writes no blanks between words."""
    return unicodedata.name(character, "").startswith(SCRIPTS_WITHOUT_BLANKS)


def _hangul(character):
    return unicodedata.name(character, "").startswith("HANGUL")


# ---- tool use ----


def score_tooluse(text, calls):
    """correct: the text makes the golden calls [{"name", "arguments"}], no more and no fewer.

    Calls are compared as a multiset; the order of arguments is free, and numbers are equal as
    numbers. well_formed: the text makes a call that can be parsed.
    """
    made = tool_calls(text)
    golden = Counter((call["name"], canonical(call["arguments"])) for call in calls)
    well_formed = any(name and arguments is not None for name, arguments in made)
    return {"correct": Counter(made) == golden, "well_formed": well_formed}


def tool_calls(text):
    """[(name, arguments)] of each line "Action: NAME" with the object after its "Action Input:".

    arguments are canonical JSON text, or None if no object stands there before the next Action:
    such a call equals no golden one. An Action Input without an Action is no call.
    """
    calls = []
    for part in re.split(r"^[ \t]*Action:", text, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        calls.append((name.strip(), _leading_object(rest.partition("Action Input:")[2].lstrip())))
    return calls


def _leading_object(text):
    """The JSON object that the text begins with, as canonical JSON text, or None."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
        return canonical(value) if isinstance(value, dict) else None
    except (ValueError, RecursionError):  # no JSON, an endless integer, or "[[[[[…"
        return None


def canonical(arguments):
    """JSON text that is the same for 10 and 10.0 and for any order of keys.

    It tells 1 from true, which Python's == does not.
    """

    def number(text):
        return int(float(text)) if float(text).is_integer() else float(text)

    return json.dumps(json.loads(json.dumps(arguments), parse_float=number), sort_keys=True)


# ---- artefacts: what a student learns from a teacher that speaks of its context ----

_SOURCES = ["text", "article", "passage", "example"]
ARTEFACTS = [  # openings about what only the teacher sees (section 5 of the paper)
    *(
        f"based on the {kind}{source}"
        for kind in ("", "given ", "provided ")
        for source in _SOURCES
    ),
    *(f"{start} the {source}" for start in ("according to", "in") for source in _SOURCES),
    *(f"{start} the example" for start in ("following", "as in", "like")),
    *(f"the {source}" for source in _SOURCES),
    *("in this example", "this example", "this is an example", "this response"),
    *("the thinking process", "my thinking process", "thinking process"),
    *("here is a response", "here is an example", "here is my response"),
]


def artefact_rate(texts):
    """Share of texts that open with one of ARTEFACTS, whatever the case; tags may come before."""
    opening = re.compile(r"(?:<\w+>|\W)*(?:" + "|".join(map(re.escape, ARTEFACTS)) + r")(?!\w)")
    texts = [_CHANNEL.sub("", _OPENING.sub("", text)) for text in texts]
    return sum(opening.match(normalise(text)) is not None for text in texts) / len(texts)
