"""Scorers: the text of an answer -> a dict of booleans, "correct" among them. Only needs Python."""

import json
import math
import re
import time
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
        values = found["correct"]
        spread = sum((value - summary["correct"]) ** 2 for value in values) / len(values)
        # of a judge that was asked repeatedly: what it may say another time
        variance = spread + summary.get("judge_variance", 0)
        summary["standard_error"] = math.sqrt(variance / len(values))
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
    numbers. well_formed: the text makes a call that can be parsed. score_published is the authors'
    rule, for comparison with published figures.
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


def score_published(text, calls):
    """Whether a text is right by the rule of the authors' code.

    The multiset of names must be the golden one, and so must all arguments merged into one dict.
    The rule reads an input up to the first "}" and a name as one word: nested JSON and names with
    brackets fail even when right. It never sees which call an argument belongs to.
    """
    inputs = []
    for block in re.findall(r"Action Input:\s*(\{[^}]*\})", text):
        try:
            inputs.append(json.loads(block))
        except (ValueError, RecursionError):
            continue  # skipped: part of the rule
    names = Counter(re.findall(r"Action:\s*(\w+)", text))
    golden_names = Counter(call["name"] for call in calls)
    golden = merge(call["arguments"] for call in calls)
    return names == golden_names and merge(inputs) == golden


def merge(dicts):
    """One dict; a later value of a key hides an earlier one."""
    return {key: value for arguments in dicts for key, value in arguments.items()}


# ---- drift ----


def check_unseen(general, train):
    """ValueError if a prompt that drift is measured on is also trained on."""
    trained = {normalise(example.messages[-1]["content"]): example.source for example in train}
    for example in general:
        if source := trained.get(normalise(example.messages[-1]["content"])):
            remedy = "leave it out there, or name other prompts with --general-data"
            raise ValueError(f"{example.source}: {source} trains on this prompt; {remedy}")


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


# ---- what is printed and logged ----


def verdict(figures):
    """(whether the teacher can teach, why) from the figures of `preflight`."""
    student, teacher = figures["student"], figures["teacher"]
    if "correct" not in student or "correct" not in teacher:
        return False, "no-go: the judge judged no answer; try another --judge-model"
    if teacher["correct"] > student["correct"]:
        return True, "go: with its context the model can do what it cannot do alone"
    no_better = "no-go: the teacher is no better than the student"
    if student["correct"] >= 0.95:
        return False, "nothing to learn: the student already answers nearly everything right"
    if teacher["finished"] < 0.5:
        return (
            False,
            f"{no_better}, but most of its answers are cut off; raise --eval-new-tokens",
        )
    return False, (
        f"{no_better}, so SDFT has nothing to teach. Try a larger --model,\n               another "
        "--teacher-instruction, or demonstrations in a form that this model would say anyway"
    )


def format_preflight(figures, context, why):
    def scores(summary):
        names = {"correct": "right", "not_judged": "not judged"}
        names |= {"well_formed": "well formed", "finished": "ended"}
        return ", ".join(f"{summary[k]:.1%} {name}" for k, name in names.items() if k in summary)

    lines = [
        f"preflight on {figures['student']['n']} validation examples",
        f"  student      {scores(figures['student'])}",
    ]
    if "teacher" in figures:
        lines += [
            f"  teacher      {scores(figures['teacher'])}; context: {context}; "
            f"{figures['copied']:.0%} of its answers copy the demonstration verbatim",
            f"  to learn     KL(teacher || student) = {figures['kl_teacher_student']:.2f} nats a "
            "token on the teacher's answers",
        ]
    return "\n".join([*lines, f"  verdict      {why}"])


def estimate(figures, pairs, config, method):
    """How long the steps will take, from the speeds that the preflight measured."""
    T, row_seconds = figures["student"]["completion_tokens"], 0
    for pair in pairs:
        tokens = 3 * (len(pair.student_prompt) + T)  # forward, and a backward that costs two
        if config.teacher != "none":
            tokens += len(pair.teacher_prompt) + T
        row_seconds += tokens / figures["scoring_tokens_per_s"] / len(pairs)
    if method in ("sdft", "reinvoke"):
        row_seconds += T / figures["sampling_tokens_per_s"]
    rows = config.batch_size * config.rollouts_per_prompt
    steps = config.total_steps(len(pairs))
    minutes = steps * rows * row_seconds / 60
    line = f"{steps} steps of about {rows * row_seconds:.0f} s = {minutes:.0f} minutes"
    if 1 <= config.warmup >= steps:
        line += f"; all of them warm up (--warmup {config.warmup:g}), so it learns little: --steps"
    return line


def step_metrics(batch, rollout, grad_norm, started):
    """What the log says of every step; docs/reference.md explains each."""
    lengths_B, seconds = rollout.completion_mask_BT.sum(1).float(), time.perf_counter() - started
    n = len(batch.pairs)
    return {
        "grad_norm": grad_norm,
        "completion_tokens": lengths_B.mean().item(),
        "finished": rollout.finished_B.float().mean().item(),
        "tokens_per_s": lengths_B.sum().item() / seconds,
        "learning_rate": batch.learning_rate,
        "seconds": seconds,
        "prompt_tokens": sum(len(pair.student_prompt) for pair in batch.pairs) / n,
        "teacher_prompt_tokens": sum(len(pair.teacher_prompt) for pair in batch.pairs) / n,
    }


def start_log(file, step):
    """Open a .jsonl for appending, without the lines after `step` or cut off by a full disk."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    file.write_text("".join(whole))
    return open(file, "a", buffering=1)


def log_line(step, metrics, label=""):
    shown = {"kl": ".4f", "nll": ".4f", "grad_norm": ".2f", "correct": ".1%", "lenient": ".1%"}
    shown |= {"not_judged": ".1%", "well_formed": ".1%", "completion_tokens": ".1f"}
    shown |= {"finished": ".0%", "drift_from_base": ".3f", "teacher_gap": ".1e"}
    shown |= {"tokens_per_s": ".1f"}
    cells = [f"  {name} {metrics[name]:{form}}" for name, form in shown.items() if name in metrics]
    return f"step {step:>4}{label}" + "".join(cells)


def format_results(record):
    rows = []
    for name in record["before"]:
        for when in ("before", "best", "last"):
            if when in record:
                step = f" (step {record['best_step']}, by validation)" if when == "best" else ""
                rows.append((f"{name}, {when}{step}", record[when][name]))
    if "teacher" in record["preflight"]:
        context = record["config"]["teacher_context"]
        rows.append((f"validation, teacher with {context}", record["preflight"]["teacher"]))
    return format_table(rows)


def format_table(rows):
    """[(label, summary)] as lines of text; what a summary lacks is left blank."""
    forms = {
        "correct": "{:.1%}",
        "lenient": "{:.1%}",
        "recites": "{:.1%}",
        "not_judged": "{:.1%}",
        "well_formed": "{:.1%}",
        "finished": "{:.1%}",
    }
    forms |= {"completion_tokens": "{:.1f}", "drift_from_base": "{:.3f} nats"}
    names = [name for name in forms if any(name in summary for _, summary in rows)]
    width = max(len(label) for label, _ in rows)
    lines = [" " * width + "     n" + "".join(f"{name.replace('_', ' '):>18}" for name in names)]
    for label, summary in rows:
        cells = [forms[name].format(summary[name]) if name in summary else "" for name in names]
        if "correct" in summary:
            cells[0] += f" ± {summary['standard_error']:.1%}"
        lines.append(f"{label:{width}}  {summary['n']:>4}" + "".join(f"{c:>18}" for c in cells))
    lines.append("± is one standard error over the questions")
    if "not_judged" in names:
        lines.append("right and wrong by the judge, over the answers that it judged")
    return "\n".join(lines)
