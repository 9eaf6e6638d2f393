"""Examples, our one JSONL format, and the prompts of student and teacher. Needs no package; the tokenizer is the caller's.

A line of a file is one JSON object:

    prompt         the question: a string, or a list of {"role": "system" | "user" | "assistant", "content": string}
                   that ends with the user's turn                                                       always
    demonstration  a worked answer by an expert, the c of the paper                                     train, validation
    answer         the right letter                                                                     science
    key_facts      a list of facts, each a list of accepted variants: [["312"], ["1 May", "May 1"]]     knowledge, medical
    calls          the tool calls of a right answer, a list of {"name": string, "arguments": object}     tooluse
    format         the form that the answer must have: {"words": 3}, {"one_of": ["yes", "no"]}          probe, or key_facts
    reference      the right answer in one sentence, for a judge
    text           the article the answer comes from                                                    knowledge
    id             any string; without it the line is named by file and number

A data set is a folder with train.jsonl, validation.jsonl and test.jsonl. Anything else in a line, a field of the wrong
type or an empty one is an error that names file, line and field: a typo must not train a model for hours.
"""

import json
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent / "samples"
TASKS = {  # the fields that scoring and the teacher's prompt need beside `prompt`
    "science": ["demonstration", "answer"],
    "knowledge": ["demonstration", "text", "key_facts"],
    "tooluse": ["demonstration", "calls"],
    "medical": ["demonstration", "key_facts"],
    "general": [],  # questions of everyday use, never trained on: they measure forgetting
    "probe": [],    # the same, with answers that can be checked: key_facts or format
}
FIELDS = ["id", "prompt", "demonstration", "answer", "key_facts", "calls", "text", "reference", "format"]
FORMATS = {"words": 3, "items": 4, "uppercase": True, "lowercase": True, "starts_with": "Because", "ends_with": "the end",
           "one_of": ["yes", "no"]}  # each with an example; scoring.score_format says what they ask for
ROLES = ["system", "user", "assistant"]
CONTEXTS = ["demonstration", "text", "text+demonstration", "none"]


@dataclass
class Example:
    """One question with what the teacher may see and what scoring compares with."""
    id: str
    task: str
    messages: list                      # chat turns {"role", "content"}; the last is the user's
    demonstration: str | None = None
    text: str | None = None             # source text
    answer: str | None = None           # gold answer
    key_facts: list | None = None       # list of facts, each a list of accepted variants
    calls: list | None = None           # golden tool calls {"name", "arguments"}
    reference: str | None = None        # right answer in one sentence
    format: dict | None = None          # form asked for, one of FORMATS: {"words": 3}
    source: str = ""                    # "file:line", for messages


# ---- prompts: Ctx_S and Ctx_T of Algorithm 1, l. 5 and l. 9 ----

def student_messages(example):
    """What the student sees: the question alone."""
    return example.messages


def teacher_messages(example, context="demonstration"):
    """What the teacher sees: the question with `context` around it, in the question's own turn; other turns stay.

    "demonstration"        the paper's template for skills, word for word (section 3)
    "text+demonstration"   article, question and worked answer, without the words "including the thinking process": asked
                           for them, a small model talks about its thinking process, and the student learns that talk
    "text"                 article and question
    "none"                 the question alone
    """
    if context not in CONTEXTS:
        raise ValueError(f'teacher context "{context}" is unknown; choose from {", ".join(CONTEXTS)}')
    for field in ("text", "demonstration"):
        if field in context and getattr(example, field) is None:
            raise ValueError(f'{example.source}: field "{field}" is missing; the teacher context "{context}" shows it')
    question = example.messages[-1]["content"]
    # joined, never .format: questions contain curly braces
    if context == "demonstration":
        turn = "\n\n".join([question, "This is an example for a response to the question:\n" + example.demonstration,
                            "Now answer with a response of your own, including the thinking process:"])
    elif context == "text+demonstration":
        turn = "\n\n".join([example.text, question, "This is an example for a response to the question:\n" + example.demonstration,
                            "Now answer with a response of your own."])
    elif context == "text":
        turn = "\n\n".join([example.text, question])
    else:
        turn = question
    return example.messages[:-1] + [{"role": "user", "content": turn}]


def encode_prompt(tokenizer, messages):
    """Chat turns -> token ids, up to and with the header of the assistant's turn.

    They equal apply_chat_template's, except that a control token typed inside a turn, such as <|im_end|>, stays text.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the model's tokenizer has no chat template; choose an instruction-tuned model")
    from jinja2 import TemplateError        # here: whoever only reads data does without it
    typed = _typed_control_tokens(tokenizer, messages)
    try:
        if not any(typed):
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return _encode_typed(tokenizer, messages, typed)
    except TemplateError as error:      # of templates that take no system turn, for example
        roles = ", ".join(turn["role"] for turn in messages)
        raise ValueError(f"the model's chat template refuses a prompt with the turns {roles}: {error}") from None


def _typed_control_tokens(tokenizer, messages):
    """For each turn the control tokens whose text stands in its content, the longest first.

    Control tokens are the special ones and those added ones that the template writes: some models mark <|user|> as not
    special. Other added tokens, such as runs of blanks or <b>, are ordinary text. An assistant's turn keeps its <think>,
    which the model itself wrote and templates look for.
    """
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    special = [token.content for token in added if token.special]
    written = [token.content for token in added if token.content in str(tokenizer.chat_template)]
    return [sorted({token for token in special + (written if turn["role"] != "assistant" else []) if token in turn["content"]},
                   key=len, reverse=True) for turn in messages]


def _encode_typed(tokenizer, messages, typed):
    """Token ids of a prompt whose turn i contains the control tokens typed[i] as text.

    Each is swapped for a mark that no text contains, the template is rendered, and the text cut at the marks: what lies
    between is encoded as ever, what was typed as text.
    """
    tokens = sorted(set().union(*typed))
    mark_of = {token: f"mark{uuid.uuid4().hex}" for token in tokens}
    token_of = {mark: token for token, mark in mark_of.items()}
    marked = []
    for turn, found in zip(messages, typed):
        pattern = "|".join(map(re.escape, found)) or "(?!)"  # (?!) matches nowhere
        marked.append(turn | {"content": re.sub(pattern, lambda match: mark_of[match[0]], turn["content"])})
    rendered = tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
    pieces = [token_of.get(piece, piece) for piece in re.split(f"({'|'.join(token_of)})", rendered)]
    # a template that looks for the token in the content, or changes the content, would write another prompt around the mark
    if "".join(pieces) != tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False):
        raise ValueError(f"the chat template treats turns that contain {', '.join(tokens)} in another way; "
                         f"take it out of the prompt that ends with {_short(messages[-1]['content'][-60:])}")
    return _encode_pieces(tokenizer, pieces)


def encode_text(tokenizer, text, role):
    """Token ids of a text that `role` wrote: "assistant", which keeps its <think>, or "user". A control token in it stays text."""
    [typed] = _typed_control_tokens(tokenizer, [{"role": role, "content": text}])
    return _encode_pieces(tokenizer, re.split(f"({'|'.join(map(re.escape, typed))})", text) if typed else [text])


def _encode_pieces(tokenizer, pieces):
    """Token ids of a text in pieces, of which every second one is a control token that stays text."""
    ids = []
    for i, piece in enumerate(pieces):
        # cut after its first character, the text of a token is no longer that token, be it special or only added
        for part in ((piece[:1], piece[1:]) if i % 2 else (piece,)):
            ids += tokenizer.encode(part, add_special_tokens=False)
    return ids


@dataclass
class Pair:
    """A training example as token ids: s = Ctx_S(x) and t = Ctx_T(x, c)."""
    id: str
    student_prompt: list
    teacher_prompt: list
    completion: list | None = None      # what a baseline trains on; None where the student samples it


def encode_pairs(tokenizer, examples, context, max_prompt_tokens, max_teacher_prompt_tokens):
    """(pairs that fit both limits, pairs that do not). Nothing is ever cut: half a question is another question."""
    fitting, too_long = [], []
    for example in examples:
        pair = Pair(example.id, encode_prompt(tokenizer, student_messages(example)),
                    encode_prompt(tokenizer, teacher_messages(example, context)))
        fits = len(pair.student_prompt) <= max_prompt_tokens and len(pair.teacher_prompt) <= max_teacher_prompt_tokens
        (fitting if fits else too_long).append(pair)
    return fitting, too_long


def with_demonstrations(tokenizer, pairs, examples, eos_token_id):
    """The pairs with the demonstration and an EOS as their completion: what SFT trains on."""
    demonstrations = {example.id: example.demonstration for example in examples}
    completed = []
    for pair in pairs:
        text = demonstrations[pair.id]
        if opens_thoughts(tokenizer, pair.student_prompt) and "</think>" not in text:
            text = f"\n</think>\n\n{text}"         # else the whole demonstration would be a thought, and no answer
        completed.append(replace(pair, completion=encode_text(tokenizer, text, "assistant") + [eos_token_id]))
    return completed


def opens_thoughts(tokenizer, prompt):
    """Whether a prompt (token ids) ends with the <think> that some templates write before the answer."""
    return tokenizer.decode(prompt[-16:]).rstrip().endswith("<think>")


def text_blocks(tokenizer, examples, block_tokens, eos_token_id):
    """The examples' articles, each once, one after the other in blocks of block_tokens: what continued pre-training reads."""
    ids = []
    for text in dict.fromkeys(example.text for example in examples):
        ids += encode_text(tokenizer, text, "user") + [eos_token_id]
    blocks = [ids[i:i + block_tokens] for i in range(0, len(ids), block_tokens)]
    return [Pair(f"block-{n}", block[:1], block[:1], block[1:]) for n, block in enumerate(blocks) if len(block) > 1]


# ---- reading ----

def load_task(name, split, path=None):
    """All examples of a split ("train", "validation", "test", and "ood" for knowledge) -> list of Example.

    path is a folder with our JSONL files; None means our own samples. Raises ValueError naming file, line and field.
    """
    if name not in TASKS:
        raise ValueError(f'task "{name}" is unknown; choose from {", ".join(TASKS)}')
    folder = Path(path) if path is not None else SAMPLES / name
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; a data set is a folder with train.jsonl, validation.jsonl and test.jsonl")
    return read_jsonl(folder / f"{split}.jsonl", name, needs_demonstration=split in ("train", "validation"))


def from_articles_of(train_examples, examples):
    """The examples that some training example's article answers; a text of several articles has a blank line between them."""
    articles = {example.text for example in train_examples}
    return [e for e in examples if e.text is None or e.text in articles or all(part in articles for part in e.text.split("\n\n"))]


def read_jsonl(file, task, needs_demonstration=True):
    """Examples of one file in our format."""
    file = Path(file)
    if not file.is_file():
        beside = sorted(other.name for other in file.parent.glob("*.jsonl"))
        raise ValueError(f"{file} does not exist; its folder has {', '.join(beside) or 'no .jsonl file'}")
    examples, first_line_of = [], {}
    with open(file, "rb") as lines:  # bytes end at \n alone, and a line that is not UTF-8 keeps its number
        for number, line in enumerate(lines, start=1):
            try:
                line = line.decode("utf-8-sig" if number == 1 else "utf-8")  # -sig: a byte order mark is not part of the line
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}:{number}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
            if line.strip():
                examples.append(parse_line(line, f"{file}:{number}", task, needs_demonstration))
                earlier = first_line_of.setdefault(examples[-1].id, number)
                if earlier != number:
                    raise ValueError(f'{file}:{number}: field "id" is "{examples[-1].id[:60]}" as in line {earlier}; '
                                     "make ids unique, or leave them out")
    if not examples:
        raise ValueError(f"{file} has no examples; each line is one JSON object with at least \"prompt\"")
    return examples


def parse_line(line, source, task, needs_demonstration=True):
    """One line of JSON -> Example; source ("file:line") stands in front of every error."""
    try:
        record = json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python reads
        raise ValueError(f"{source}: not JSON ({error}); each line is one JSON object") from None
    if not isinstance(record, dict):
        raise ValueError(f"{source}: a {type(record).__name__}, not an object; each line is {{\"prompt\": …, …}}")
    for field in record:
        if field not in FIELDS:
            raise ValueError(f'{source}: field {json.dumps(field[:60])} is unknown; choose from {", ".join(FIELDS)}')
    required = ["prompt"] + [field for field in TASKS[task] if field != "demonstration" or needs_demonstration]
    for field in required:
        if field not in record:
            wanted = ", ".join(f'"{name}"' for name in required)
            raise ValueError(f'{source}: field "{field}" is missing; each line of task {task} needs {wanted}')
    if task == "probe" and ("key_facts" in record) == ("format" in record):
        raise ValueError(f'{source}: field "key_facts" or field "format": each line of task probe needs one of them, and not both')
    for field in ("id", "demonstration", "text", "answer", "reference"):
        if field in record:
            _check_string(record[field], f'{source}: field "{field}"')
    if "answer" in record and task == "science" and record["answer"] not in ("A", "B", "C", "D"):
        raise ValueError(f'{source}: field "answer" is "{record["answer"][:60]}"; it must be one letter, A to D')
    if "key_facts" in record:
        _check_key_facts(record["key_facts"], f'{source}: field "key_facts"')
    if "calls" in record:
        _check_calls(record["calls"], f'{source}: field "calls"')
    if "format" in record:
        _check_format(record["format"], f'{source}: field "format"')
    return Example(id=record.get("id", source), task=task, messages=_check_prompt(record["prompt"], f'{source}: field "prompt"'),
                   demonstration=record.get("demonstration"), text=record.get("text"), answer=record.get("answer"),
                   key_facts=record.get("key_facts"), calls=record.get("calls"), reference=record.get("reference"),
                   format=record.get("format"), source=source)


def _object(pairs):
    """A JSON object as a dict; of two equal keys Python would keep the last and lose the first."""
    record = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"field {json.dumps(key[:60])} stands twice in one object")
        record[key] = value
    return record


def _no_constant(name):
    raise ValueError(f"{name} is no JSON number")


def _check_prompt(prompt, place):
    """A prompt as chat turns; a string is one user turn."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place} must be a string or a list of turns; it is {_short(prompt)}")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
            raise ValueError(f'{place}, turn {i}, must be {{"role": …, "content": …}}; it is {_short(turn)}')
        if turn["role"] not in ROLES:
            raise ValueError(f'{place}, turn {i}: role {_short(turn["role"])} is unknown; choose from {", ".join(ROLES)}')
        _check_string(turn["content"], place if isinstance(prompt, str) else f"{place}, turn {i}")
    if turns[-1]["role"] != "user":
        raise ValueError(f'{place} ends with a turn of "{turns[-1]["role"]}"; the last turn must be the user\'s question')
    return turns


def _check_key_facts(key_facts, place):
    if not isinstance(key_facts, list) or not key_facts or not all(isinstance(variants, list) and variants for variants in key_facts):
        raise ValueError(f'{place} must be a list of lists of accepted variants, such as [["312"]]; it is {_short(key_facts)}')
    for variants in key_facts:
        for variant in variants:
            _check_string(variant, place)


def _check_calls(calls, place):
    if not isinstance(calls, list) or not calls:
        raise ValueError(f'{place} must be a list of {{"name": …, "arguments": …}}; it is {_short(calls)}')
    for i, call in enumerate(calls):
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            raise ValueError(f'{place}, call {i}, must be {{"name": …, "arguments": …}}; it is {_short(call)}')
        _check_string(call["name"], f'{place}, call {i}, "name"')
        if not isinstance(call["arguments"], dict):
            raise ValueError(f'{place}, call {i}, "arguments" must be an object ({{}} for none); it is {_short(call["arguments"])}')
        _check_characters(call["arguments"], f'{place}, call {i}, "arguments"')


def _check_format(form, place):
    if not isinstance(form, dict) or len(form) != 1 or not form.keys() <= FORMATS.keys():
        raise ValueError(f'{place} must be an object with one of {", ".join(FORMATS)}; it is {_short(form)}')
    [(name, wanted)] = form.items()
    if name in ("words", "items"):
        right = type(wanted) is int and wanted > 0
    elif name in ("uppercase", "lowercase"):
        right = wanted is True
    else:  # a phrase without letter or digit holds no word to compare
        phrases = wanted if name == "one_of" else [wanted]
        right = isinstance(phrases, list) and phrases and all(isinstance(p, str) and any(map(str.isalnum, p)) for p in phrases)
    if not right:
        raise ValueError(f'{place}, "{name}", is {_short(wanted)}; write it like {json.dumps({name: FORMATS[name]})}')
    _check_characters(wanted, f'{place}, "{name}",')


def _check_string(value, place):
    if not isinstance(value, str):
        raise ValueError(f"{place} must be a string; it is {_short(value)}")
    if not value.strip():
        raise ValueError(f"{place} is empty; write something, or remove the line")
    _check_characters(value, place)


def _check_characters(value, place):
    """The strings of a JSON value, keys among them, hold only characters that text has."""
    parts = [value]
    while parts:  # no recursion: a value may be nested as deep as Python reads it
        part = parts.pop()
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) and re.search("[\ud800-\udfff]", part):
            raise ValueError(f"{place} holds half of a surrogate pair (\\ud800-\\udfff); it is no character and no tokenizer takes it")
        elif isinstance(part, str) and "\0" in part:
            raise ValueError(f"{place} holds a NUL character (\\u0000), which no text has; remove it")


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
