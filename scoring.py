"""Scorers: the text of an answer -> a dict of booleans, "correct" among them. Only needs Python."""

import json
import math
import re
from collections import Counter

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
        p = summary["correct"]
        summary["standard_error"] = math.sqrt(p * (1 - p) / len(found["correct"]))
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


def final_answer(text):
    """The text after the last </think>, and nothing of a <think> that never ended."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


# ---- science ----


def score_option(text, answer, options):
    """correct: the text names the option that holds the gold answer, and no other option.

    options is a list of options, each a list of accepted variants. well_formed: it names just one.
    """
    text = normalise(text)
    named = [variants for variants in options if any(_occurs(v, text) for v in variants)]
    return {"correct": len(named) == 1 and answer in named[0], "well_formed": len(named) == 1}


def score_science(text, answer):
    """correct: the letter is the gold one; well_formed: the text ends by stating its letter."""
    letter = science_letter(text)
    at_the_end = re.search(r"(</answer>|answer is:?\s+[*(\"']*[A-D])[\s.*)\"']*$", text)
    return {"correct": letter == answer, "well_formed": letter is not None and bool(at_the_end)}


def science_letter(text):
    """The letter in the last <answer>…</answer>, else in the last "answer is X", else None."""
    tagged = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    if tagged:
        letter = tagged[-1].strip()
        return letter if letter in ("A", "B", "C", "D") else None
    stated = re.findall(r"answer is:?\s+[*(\"']*([A-D])\b(?!')", text)
    return stated[-1] if stated else None


# ---- knowledge and medical ----


def score_reference(text, key_facts, other_facts=None):
    """correct (strict): every key fact occurs in one of its variants; lenient: at least one does;
    recites: one of other_facts does, so that the answer says more of its text than was asked.

    Case is folded, white space normalised, and a variant counts at word boundaries only: 31 is not
    in 312, nor in 31.5 or 1,031.
    """
    text = normalise(text)
    found = [any(_occurs(variant, text) for variant in variants) for variants in key_facts]
    scores = {"correct": all(found), "lenient": any(found)}
    if other_facts:
        scores["recites"] = any(_occurs(v, text) for variants in other_facts for v in variants)
    return scores


def _occurs(variant, normalised_text):
    variant = normalise(variant)
    before = r"(?<!\w)(?<!\d[.,])" if variant[0].isdigit() else r"(?<!\w)"
    after = r"(?!\w)(?![.,]\d)" if variant[-1].isdigit() else r"(?!\w)"
    return re.search(before + re.escape(variant) + after, normalised_text) is not None


def normalise(text):
    return " ".join(text.casefold().split())


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
    return sum(opening.match(normalise(text)) is not None for text in texts) / len(texts)
