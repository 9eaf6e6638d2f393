"""From a file to training pairs: our JSONL format, and the prompts of student and teacher.

Needs no package, and support/chat.py beside it. In this order: the teacher's prompt, pairs of
token ids, the files of a run, and the format that is checked line by line.

A line of a file is one JSON object (docs/data.md has examples of each task):

    prompt         the question: a string, or a list of {"role": "system" | "user" | "assistant",
                   "content": string} that ends with the user's turn              always
    demonstration  a worked answer by an expert, the c of the paper               train, validation
    answer         the right letter A-D, or one of the options                    science
    options        what the answer is one of, each a list of accepted variants:
                   [["alkane", "alkanes"], ["ketone", "ketones"]]                 science
    key_facts      facts, each a list of accepted variants: [["1 May", "May 1"]]; knowledge and
                   medical need them, unless a judge scores
    other_facts    the same, of the text, but not asked for: who names one recites   knowledge
    calls          the golden tool calls: [{"name": string, "arguments": object}] tooluse
    pattern        regular expression that the whole answer must match            probe
    reference      the right answer in words, for a judge; else it takes the demonstration
    text           the article the answer comes from                              knowledge
    id             any string; else the line is named by file and number

A data set is a folder with train.jsonl, validation.jsonl and test.jsonl. An unknown or mistyped
field is an error that names file, line and field: a typo must not train a model for hours.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from support.chat import RefusedPrompt, encode_prompt, shorten

SAMPLES = Path(__file__).resolve().parent / "samples"
TASKS = {  # the fields that each line needs beside `prompt`
    "science": ["demonstration", "answer"],
    "knowledge": ["demonstration", "text"],
    "tooluse": ["demonstration", "calls"],
    "medical": ["demonstration"],
    "general": [],  # questions of everyday use, never trained on: they measure forgetting
    "probe": [],  # the same, with answers that can be checked: key_facts or pattern
}
ROLES = ["system", "user", "assistant"]
CONTEXTS = ["demonstration", "text", "text+demonstration", "none"]
TEACHER_INSTRUCTIONS = {  # how the teacher's prompt ends
    "thinking": "Now answer with a response of your own, including the thinking process:",
    "plain": "Now answer with a response of your own.",
    "own-words": "Now answer the question in your own words.",
}
SHOWN = "This is an example for a response to the question:\n{demonstration}"  # section 3
PLACEHOLDERS = ["question", "demonstration", "text"]  # of a teacher's template


@dataclass
class Example:
    """One question with what the teacher may see and what scoring compares with."""

    id: str
    task: str
    messages: list  # chat turns {"role", "content"}; the last is the user's
    demonstration: str | None = None
    text: str | None = None
    answer: str | None = None
    options: list | None = None
    key_facts: list | None = None
    other_facts: list | None = None
    calls: list | None = None
    reference: str | None = None
    pattern: str | None = None
    source: str = ""  # "file:line", for error messages


# ---- prompts: Ctx_S (l. 5 of Algorithm 1) is the question; Ctx_T (l. 9) is this ----


def teacher_messages(example, context="demonstration", instruction="thinking", own_template=None):
    """What the teacher sees: the question with `context` around it, in the question's own turn.

    "demonstration"        question, worked answer, instruction: the paper's template (section 3)
    "text+demonstration"   the article before it
    "text"                 article and question
    "none"                 the question alone, as the student sees it

    own_template replaces the words of a context with a demonstration, the instruction among them.
    Turns before the question's, such as a system turn, are the student's.
    """
    check_context(example, context)
    template = teacher_template(context, instruction, own_template)
    turn = {"role": "user", "content": fill_template(template, example)}
    return example.messages[:-1] + [turn]


def teacher_template(context, instruction, own_template=None):
    """The text around {question}, {demonstration} and {text} in the last turn of the teacher."""
    if context == "none":
        return "{question}"
    if context == "text":
        return "{text}\n\n{question}"
    if own_template is not None:
        shown = context_of_template(own_template)
        if shown != context:
            raise ValueError(f"the teacher's template shows {shown}; the context is {context}")
        return own_template
    template = "{question}\n\n" + SHOWN + "\n\n" + TEACHER_INSTRUCTIONS[instruction]
    return "{text}\n\n" + template if context == "text+demonstration" else template


def fill_template(template, example):
    """The template with the example's texts in place of its placeholders.

    Replaced in one pass, never str.format: questions contain curly braces, and may contain the
    word {text} itself.
    """
    texts = {
        "question": example.messages[-1]["content"],
        "demonstration": example.demonstration,
        "text": example.text,
    }
    pattern = "{(" + "|".join(PLACEHOLDERS) + ")}"
    return re.sub(pattern, lambda match: texts[match[1]], template)


def context_of_template(template):
    """What an own template shows: "demonstration" or "text+demonstration".

    ValueError if it lacks the question or the demonstration, or has an unknown placeholder.
    """
    found = re.findall(r"{([A-Za-z_]\w*)}", template)
    known = ", ".join("{" + name + "}" for name in PLACEHOLDERS)
    for name in found:
        if name not in PLACEHOLDERS:
            raise ValueError(f"placeholder {{{name}}} is unknown; a teacher's template has {known}")
    for name in ("question", "demonstration"):
        if name not in found:
            raise ValueError(f"placeholder {{{name}}} is missing; a teacher's template has {known}")
    return "text+demonstration" if "text" in found else "demonstration"


def read_template(file):
    """The text of a template's file, without a line break at its end; ValueError if it is wrong."""
    try:
        template = Path(file).read_text(encoding="utf-8-sig").removesuffix("\n")
        context_of_template(template)
    except (OSError, ValueError) as error:
        raise ValueError(f"teacher's template {file}: {error}") from None
    return template


def check_context(example, context):
    """ValueError if the teacher's context needs a field that the example lacks."""
    if context not in CONTEXTS:
        choices = ", ".join(CONTEXTS)
        raise ValueError(f'teacher context "{context}" is unknown; choose from {choices}')
    for field in ("text", "demonstration"):
        if field in context and getattr(example, field) is None:
            raise ValueError(
                f'{example.source}: field "{field}" is missing; '
                f'the teacher context "{context}" shows it'
            )


# ---- pairs: what training sees of an example, as token ids ----


@dataclass
class Pair:
    """A training example as token ids: s = Ctx_S(x) and t = Ctx_T(x, c)."""

    id: str
    student_prompt: list
    teacher_prompt: list
    completion: list | None = None  # what a baseline trains on; None if the student samples it


def encode_pair(tokenizer, example, config):
    """The student sees the question alone, the teacher what teacher_messages puts around it."""
    teacher_turns = teacher_messages(
        example, config.teacher_context, config.teacher_instruction, config.teacher_template
    )
    kwargs = config.chat_template_kwargs
    try:
        student_prompt = encode_prompt(tokenizer, example.messages, kwargs)
        teacher_prompt = encode_prompt(tokenizer, teacher_turns, kwargs)
    except RefusedPrompt as error:
        raise ValueError(f"{example.source}: {error}") from None
    return Pair(example.id, student_prompt, teacher_prompt)


def encode_pairs(tokenizer, examples, config, positions=None):
    """The examples whose prompts fit the limits -> list of Pair; prints how many, and which do not.

    positions is the most tokens of prompt and answer that the model takes. Nothing is ever cut:
    half a question is another question. ValueError if none fits, or if one does not and --too-long
    is stop.
    """
    pairs = [encode_pair(tokenizer, example, config) for example in examples]
    longest_student = max(len(pair.student_prompt) for pair in pairs)
    longest_teacher = max(len(pair.teacher_prompt) for pair in pairs)
    fitting = [
        pair
        for pair in pairs
        if len(pair.student_prompt) <= config.max_prompt_tokens
        and len(pair.teacher_prompt) <= config.max_teacher_prompt_tokens
        and fits_positions(pair, config.max_new_tokens, positions)
    ]
    report = (
        f"{len(fitting)} of {len(pairs)} fit; longest student prompt {longest_student} tokens "
        f"(limit {config.max_prompt_tokens}), longest teacher prompt {longest_teacher} "
        f"(limit {config.max_teacher_prompt_tokens})"
    )
    if positions is not None:
        report += f"; the model has {positions} positions"
    too_long = ids_left_out(pairs, fitting)
    if too_long:
        report += f"; left out: {shorten_list(too_long)}"
    if not fitting or (too_long and config.too_long == "stop"):
        remedy = "Raise --max-prompt-tokens or --max-teacher-prompt-tokens, or shorten these"
        if positions is not None:
            remedy += ", or lower --max-new-tokens"
        drop = ", or leave them out with --too-long drop" if fitting else ""
        raise ValueError(f"prompts: {report}\n{remedy}{drop}")
    print(f"prompts: {report}")
    return fitting


def fits_positions(pair, new_tokens, positions):
    """Whether both prompts leave room for an answer of new_tokens."""
    longest = max(len(pair.student_prompt), len(pair.teacher_prompt))
    return positions is None or longest + new_tokens <= positions


def leave_out_beyond_positions(
    tokenizer, examples, config, positions, has_teacher, measures_drift=False
):
    """The examples of an evaluation set whose answers fit the model's positions -> list.

    has_teacher: the teacher answers these, too, as in the preflight. measures_drift: their answers
    are of --general-tokens. Names what is left out, or stops (--too-long stop). ValueError if none
    is left.
    """
    new_tokens = config.general_tokens if measures_drift else config.answer_tokens
    flag = "--general-tokens" if measures_drift else "--max-new-tokens"
    label = "left out of drift" if measures_drift else "left out of evaluation"
    fitting = []
    for example in examples:
        if has_teacher:
            pair = encode_pair(tokenizer, example, config)
        else:
            prompt = encode_prompt(tokenizer, example.messages, config.chat_template_kwargs)
            pair = Pair(example.id, prompt, [])
        if fits_positions(pair, new_tokens, positions):
            fitting.append(example)
    why = f"prompt and {new_tokens} new tokens exceed the model's {positions} positions"
    remedy = f"Shorten them, or lower {flag}"
    name_left_out(examples, fitting, config.too_long, label, why, remedy)
    return fitting


def name_left_out(items, fitting, too_long, label, why, remedy):
    """Print the ids of the items that are not among the fitting ones, if any.

    ValueError, with the remedy, if none fits or --too-long is stop.
    """
    names = ids_left_out(items, fitting)
    if not names:
        return
    report = f"{why}: {shorten_list(names)}"
    if not fitting or too_long == "stop":
        raise ValueError(f"{report}. {remedy}")
    print(f"{label}: {report}")


def ids_left_out(items, fitting):
    kept = {item.id for item in fitting}
    return [item.id for item in items if item.id not in kept]


def shorten_list(names, most=5):
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


# ---- the files of a run ----


@dataclass
class Splits:
    """The data of a run: lists of Example."""

    train: list
    validation: list
    reports: dict  # name -> the examples of a row of the final table
    general: list  # everyday questions, never trained on, that drift is measured on


REPORTS = {  # rows of the final table, {name: split}; all but test.jsonl a folder may lack
    "science": {"test": "test", "new stems": "test_new_stems"},
    "knowledge": {
        "trained wordings": "train",
        "held-out wordings": "test",
        "indirect (OOD)": "ood",
    },
}
GENERAL_PROMPTS = 32  # that drift is measured on, at most


def load_splits(config):
    """Read every file of a run, before the model loads -> Splits; ValueError if one is wrong."""
    folder, limit = config.data, config.eval_examples
    if config.teacher == "model":  # re-invocation trains on everyday prompts
        train = load_task("general", "train")
    else:
        train = load_task(config.task, "train", folder)
    validation = load_task(config.task, "validation", folder)[:limit]
    reports = {
        name: load_task(config.task, split, folder)[:limit]
        for name, split in REPORTS.get(config.task, {"test": "test"}).items()
        if split == "test" or Path(folder or SAMPLES / config.task, f"{split}.jsonl").exists()
    }
    for example in train + validation:
        check_context(example, config.teacher_context)
    if config.general_data:
        general = read_jsonl(config.general_data, "general", needs_demonstration=False)
    else:
        general = load_task("general", "test")
    check_unseen(general, train)
    return Splits(train, validation, reports, general[:GENERAL_PROMPTS])


def check_unseen(general, train):
    """ValueError if a prompt that drift is measured on is also trained on."""
    source_of = {_prompt_text(example): example.source for example in train}
    for example in general:
        if source := source_of.get(_prompt_text(example)):
            remedy = "leave it out there, or name other prompts with --general-data"
            raise ValueError(f"{example.source}: {source} trains on this prompt; {remedy}")


def _prompt_text(example):
    """All turns of a prompt but a system turn, in a form that ignores case and white space."""
    turns = [f"{t['role']} {t['content']}" for t in example.messages if t["role"] != "system"]
    return " ".join("\n".join(turns).casefold().split())


def load_task(name, split, path=None):
    """The examples of a split (train, validation, test; knowledge: ood) -> list of Example.

    path is a folder with our JSONL files; None means our own samples. Raises ValueError naming
    file, line and field.
    """
    if name not in TASKS:
        raise ValueError(f'task "{name}" is unknown; choose from {", ".join(TASKS)}')
    folder = SAMPLES / name if path is None else Path(path)
    if not folder.is_dir():
        files = "train.jsonl, validation.jsonl and test.jsonl"
        raise ValueError(f"{folder} is not a folder; a data set is a folder with {files}")
    return read_jsonl(folder / f"{split}.jsonl", name, split in ("train", "validation"))


# ---- the format, line by line ----


def read_jsonl(file, task, needs_demonstration=True):
    """Examples of one file in our format."""
    file = Path(file)
    if not file.is_file():
        beside = ", ".join(sorted(other.name for other in file.parent.glob("*.jsonl")))
        raise ValueError(f"{file} does not exist; its folder has {beside or 'no .jsonl file'}")
    examples, first_line_of = [], {}
    # as bytes: these end at \n alone, and a line that is not UTF-8 keeps its number
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        try:
            # -sig: a byte order mark is no part of the first line
            line = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 ({error.reason} at byte {error.start})"
            raise ValueError(f"{file}:{number}: {reason}; save the file as UTF-8") from None
        if not line.strip():
            continue
        example = parse_line(line, f"{file}:{number}", task, needs_demonstration)
        earlier = first_line_of.setdefault(example.id, number)
        if earlier != number:
            raise ValueError(
                f'{file}:{number}: field "id" is "{example.id[:60]}" as in line {earlier}; '
                "make ids unique, or leave them out"
            )
        examples.append(example)
    if not examples:
        raise ValueError(f'{file} has no examples; each line is a JSON object with "prompt"')
    return examples


def parse_line(line, source, task, needs_demonstration=True):
    """One line of JSON -> Example; source ("file:line") stands in front of every error."""
    try:
        record = json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise ValueError(f"{source}: not JSON ({error}); each line is one JSON object") from None
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise ValueError(f'{source}: a {kind}, not an object; each line is {{"prompt": …, …}}')
    needed = ["prompt", *(f for f in TASKS[task] if f != "demonstration" or needs_demonstration)]
    for field in [*record, *needed]:
        if field not in FORMS:
            name, choices = json.dumps(field[:60]), ", ".join(FORMS)
            raise ValueError(f"{source}: field {name} is unknown; choose from {choices}")
        if field not in record:
            wanted = f"each line of task {task} needs " + ", ".join(f'"{name}"' for name in needed)
            raise ValueError(f'{source}: field "{field}" is missing; {wanted}')
    if task == "probe" and ("key_facts" in record) == ("pattern" in record):
        raise ValueError(
            f'{source}: task probe needs field "key_facts" or field "pattern", not both'
        )
    _check_record(record, task, source)
    prompt = record.pop("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Example(**{"id": source} | record, task=task, messages=messages, source=source)


def _object(pairs):
    """A JSON object as a dict; of two equal keys Python would keep the last and lose the first."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"field {json.dumps(double[:60])} stands twice in one object")
    return record


def _no_constant(name):
    raise ValueError(f"{name} is no JSON number")


# ---- what a field must hold ----

FORMS = {  # field -> (its shape, an example for error messages)
    "id": (str, "any string"),
    "prompt": ([{"role": ROLES, "content": str}], '"Why?" or [{"role": "user", …}]'),
    "demonstration": (str, "a worked answer"),
    "answer": (str, "B"),
    "options": ([[str]], '[["alkane", "alkanes"], ["ketone"]]'),
    "key_facts": ([[str]], '[["312"], ["1 May", "May 1"]]'),
    "other_facts": ([[str]], '[["6.2"], ["9 May", "May 9"]]'),
    "calls": ([{"name": str, "arguments": dict}], '[{"name": "search", "arguments": {}}]'),
    "text": (str, "an article"),
    "reference": (str, "the right answer in a sentence"),
    "pattern": (str, "(?i)yes|no"),
}


def _check(value, shape, place, example):
    """ValueError, with place in front, unless a JSON value has a shape of FORMS."""
    if isinstance(shape, list) and isinstance(shape[0], str):  # one of several words
        right, wanted = isinstance(value, str) and value in shape, f"one of {', '.join(shape)}"
    elif shape is str:
        right, wanted = isinstance(value, str) and value.strip(), "a string that is not empty"
    elif shape is dict:
        right, wanted = isinstance(value, dict), "an object"
    elif isinstance(shape, list):
        right, wanted = isinstance(value, list) and value, "a list that is not empty"
    else:
        right = isinstance(value, dict) and value.keys() == shape.keys()
        wanted = f"an object with {' and '.join(shape)}"
    if not right:
        raise ValueError(f"{place} must be {wanted}, as in {example}; it is {shorten(value)}")
    if isinstance(shape, list) and isinstance(value, list):
        for i, part in enumerate(value):
            _check(part, shape[0], f"{place}, item {i}", example)
    elif isinstance(shape, dict):
        for key, part in value.items():
            _check(part, shape[key], f'{place}, "{key}"', example)


def _check_record(record, task, source):
    """What the shape of a single value does not tell."""
    for field, value in record.items():
        place = f'{source}: field "{field}"'
        if not (field == "prompt" and isinstance(value, str) and value.strip()):
            shape, example = FORMS[field]
            _check(value, shape, place, example)
        _check_characters(value, place)
    prompt = record["prompt"]
    if isinstance(prompt, list) and prompt[-1]["role"] != "user":
        raise ValueError(f'{source}: field "prompt": its last turn must be the user\'s question')
    answer, options = record.get("answer", "A"), record.get("options", ["A", "B", "C", "D"])
    if task == "science" and sum(answer in variants for variants in options) != 1:
        choices = 'in one of "options" alone' if "options" in record else "one letter, A to D"
        raise ValueError(f'{source}: field "answer" is {shorten(answer)}; it must be {choices}')
    try:
        re.compile(record.get("pattern", ""))
    except re.error as error:
        raise ValueError(f'{source}: field "pattern": no regular expression ({error})') from None
    if "pattern" in record and task != "probe":
        raise ValueError(f'{source}: field "pattern" is for the task probe alone; leave it out')


def _check_characters(value, place):
    """No string of a JSON value, keys among them, holds NUL or half of a surrogate pair."""
    parts = [value]
    while parts:  # no recursion: a value may be nested as deep as Python reads it
        part = parts.pop()
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) and re.search("[\ud800-\udfff\0]", part):
            raise ValueError(f"{place} holds NUL or half of a surrogate pair, which no text has")
