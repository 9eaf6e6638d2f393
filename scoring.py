"""Scorers: the text of an answer -> a dict of booleans, "correct" among them; intervals over seeds. Only needs Python."""

import json
import math
import re
import statistics
from collections import Counter


def validation_rank(summary):
    """[correct, then well_formed or lenient] of a summary on validation: what the best weights, and the best run of a sweep, are chosen by."""
    return [summary["correct"], summary.get("well_formed", summary.get("lenient"))]


def science_letter(text):
    """The letter in the last <answer>…</answer>, else in the last "answer is X"; None where there is neither."""
    tagged = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    if tagged:
        letter = tagged[-1].strip()
        return letter if letter in ("A", "B", "C", "D") else None
    stated = re.findall(r"answer is:?\s+[*(\"']*([A-D])\b(?!')", text)
    return stated[-1] if stated else None


def score_science(text, answer):
    """correct: the letter is the gold one; well_formed: the text ends with a letter so stated, as the prompts ask."""
    letter = science_letter(text)
    at_the_end = re.search(r"(</answer>|answer is:?\s+[*(\"']*[A-D])[\s.*)\"']*$", text)
    return {"correct": letter == answer, "well_formed": letter is not None and at_the_end is not None}


def score_reference(text, key_facts):
    """correct (strict): every key fact occurs in one of its accepted variants; lenient: at least one does.

    Case is folded, white space normalised, and a variant counts at word boundaries only: 31 is not in 312, nor in 31.5 or 1,031.
    """
    text = _normalise(text)
    found = [any(_occurs(_normalise(variant), text) for variant in variants) for variants in key_facts]
    return {"correct": all(found), "lenient": any(found)}


def _occurs(variant, text):
    before = r"(?<!\w)(?<!\d[.,])" if variant[0].isdigit() else r"(?<!\w)"
    after = r"(?!\w)(?![.,]\d)" if variant[-1].isdigit() else r"(?!\w)"
    return re.search(before + re.escape(variant) + after, text) is not None


def score_tooluse(text, calls, rule="calls"):
    """correct: the text makes the golden calls [{"name", "arguments"}], no more and no fewer; well_formed: it makes one that parses.

    rule "calls"       calls compared as a multiset; the order of arguments is free, numbers are equal as numbers
    rule "published"   the rule of the authors' code, to compare with published figures: the multiset of names, and all arguments
                       merged into one dict. It reads an input up to the first "}" and a name as one word, so that nested JSON and names
                       with brackets fail even when right, and it never sees which call an argument belongs to
    ValueError for any other rule. well_formed is the same under both.
    """
    made = tool_calls(text)
    if rule == "calls":
        correct = Counter(made) == Counter((call["name"], _canonical(call["arguments"])) for call in calls)
    elif rule == "published":
        correct = _published(text) == (Counter(call["name"] for call in calls), _merged(call["arguments"] for call in calls))
    else:
        raise ValueError(f'rule "{rule}" is unknown; choose from calls, published')
    return {"correct": correct, "well_formed": any(name and arguments is not None for name, arguments in made)}


def tool_calls(text):
    """[(name, arguments)]: each line "Action: NAME" with the JSON object after the first "Action Input:" before the next Action.

    arguments are canonical JSON text, or None where there is no such object: that call equals no golden one. An Action Input
    without an Action is no call.
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
        return _canonical(value) if isinstance(value, dict) else None
    except (ValueError, RecursionError):  # ValueError: no JSON, or an integer of thousands of digits; RecursionError: "[[[[[…"
        return None


def _canonical(arguments):
    """JSON text that is the same for 10 and 10.0 and for any order of keys, but not for 1 and true, which Python's == takes for equal."""
    def number(text):
        return int(float(text)) if float(text).is_integer() else float(text)

    return json.dumps(json.loads(json.dumps(arguments), parse_float=number), sort_keys=True)


def _published(text):
    inputs = []
    for block in re.findall(r"Action Input:\s*(\{[^}]*\})", text):
        try:
            inputs.append(json.loads(block))
        except (ValueError, RecursionError):
            continue  # skipped: part of the rule
    return Counter(re.findall(r"Action:\s*(\w+)", text)), _merged(inputs)


def _merged(dicts):
    return {key: value for arguments in dicts for key, value in arguments.items()}


def score_format(text, format):
    """Whether a text has the form asked for, one of data.FORMATS.

    words, items: how many, no more and no fewer; items stand between commas or line breaks.
    starts_with, ends_with, one_of (the whole text is one of these): compared word by word, without case and punctuation.
    """
    [(name, wanted)] = format.items()
    words = _words(text)
    if name == "words":
        return len(words) == wanted
    if name == "items":
        return sum(bool(_words(item)) for item in re.split(r"[,\n]", text)) == wanted
    if name == "uppercase":
        return text.isupper()
    if name == "lowercase":
        return text.islower()
    if name == "starts_with":
        return words[:len(_words(wanted))] == _words(wanted)
    if name == "ends_with":
        return words[-len(_words(wanted)):] == _words(wanted)
    if name == "one_of":
        return words in [_words(choice) for choice in wanted]
    raise ValueError(f'format "{name}" is unknown; choose from words, items, uppercase, lowercase, starts_with, ends_with, one_of')


def final_answer(text):
    """What a thinking model answers: the text after its last </think>, and nothing of a <think> that never ended."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def score(text, example):
    """The scorer of the example's task; thoughts are not scored."""
    text = final_answer(text)
    if example.task == "science":
        return score_science(text, example.answer)
    if example.task in ("knowledge", "medical"):
        return score_reference(text, example.key_facts)
    if example.task == "tooluse":
        return score_tooluse(text, example.calls)
    if example.task == "probe":
        return {"correct": score_format(text, example.format) if example.format else score_reference(text, example.key_facts)["correct"]}
    raise ValueError(f'task "{example.task}" has no scorer')


CHANCE = {"science": 0.25}

ARTEFACTS = [  # openings that speak of what only the teacher sees (the paper's section 5, and what a small model learned here)
    "based on the text", "based on the article", "based on the passage", "based on the example",
    "based on the given text", "based on the given article", "based on the given example",
    "based on the provided text", "based on the provided article", "based on the provided example",
    "according to the text", "according to the article", "according to the passage", "according to the example",
    "following the example", "as in the example", "like the example", "in the example", "in this example", "in the text", "in the article",
    "the text", "the article", "the passage", "the example", "this example", "this is an example", "this response",
    "the thinking process", "my thinking process", "thinking process", "here is a response", "here is an example", "here is my response",
]


def artefact_rate(texts):
    """Share of texts that open with one of ARTEFACTS, whatever the case; tags, such as <reasoning>, and other marks may stand before it."""
    opening = re.compile(r"(?:<\w+>|\W)*(?:" + "|".join(map(re.escape, ARTEFACTS)) + r")(?!\w)")
    return sum(opening.match(_normalise(text)) is not None for text in texts) / len(texts)


def _normalise(text):
    return " ".join(text.casefold().split())


def _words(text):
    """Words between white space, case folded, without punctuation at either end; "-" alone is none."""
    return re.findall(r"[^\W_](?:\S*[^\W_])?", text.casefold())


# ---- over seeds ----

# two-sided 95 % quantiles of Student's t for 2, 3, … values: 1, 2, … degrees of freedom
T_95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def confidence_interval(values):
    """(mean, half width of its 95 % confidence interval) of one figure over seeds: t s / sqrt(n), Student's t; 2 to 10 values."""
    if not 2 <= len(values) <= len(T_95) + 1:
        raise ValueError(f"a confidence interval over {len(values)} seeds: it needs 2 to {len(T_95) + 1}")
    return statistics.mean(values), T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
