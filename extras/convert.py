"""Convert foreign data sets to our JSONL format (data.py), ready for --data.

    python extras/convert.py Self-Distillation/data/science_data science
    python extras/convert.py train=eval_real.json test=test.jsonl tooluse
    python extras/convert.py SciKnowEval/data/Chemistry/L3 chemistry

The last argument is the folder to write. The others are files, folders, or SPLIT=PATH if you know
the split. Files are JSON Lines (.jsonl, .ndjson, .json), JSON arrays (.json), tables (.csv, .tsv,
.parquet) or folders that Hugging Face's save_to_disk wrote. The fields of a file's first record
tell its source, or --source names it: see SOURCES below.

Files and folders that name their splits (train_data, mydata_test, dev.jsonl,
train-00000-of-00002.parquet, ...; see SPLIT_WORDS) keep them; all files of a split become one. A
file whose name tells no split beside others that tell theirs stops the run. Without a validation
split 1/16 of the training questions become that (75 to 5, as in the paper). Files of which none
names a split are split 75/5/20. The split is a function of seed and question, the same on every
machine, and no prompt is in two splits: a test question leaves training, and is reported.

A broken record stops the run and is named by file, record (lines and records count from 1) and
field; --skip-broken names it and leaves it out. What is printed: which file is which split, which
fields became which and which were not taken, how many records were written and left out, and why.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of scoring.py

from data import parse_line
from scoring import score_reference

SPLITS = ["test", "validation", "train"]  # a prompt in two splits stays in the first of these
SPLIT_WORDS = {  # words of a file's or folder's name -> split, as the Hugging Face hub reads them
    "test": ["test", "testing", "testset", "eval", "evaluation", "evalset"],  # eval: find_files
    "validation": ["validation", "valid", "val", "valset", "dev", "devset", "development"],
    "train": ["train", "training", "trainset"],
}
SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
READABLE = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
# data that would be lost if it were passed over like a README
UNREADABLE = (".arrow", ".bz2", ".gz", ".pkl", ".tar", ".xls", ".xlsx", ".xz", ".zip", ".zst")
# what Hugging Face's datasets writes beside the data
METADATA = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
# ours; the paper's system turn asks for the same two blocks
SCIENCE_SYSTEM = (
    "You get a question and four options, of which one is right. Think it through, then "
    "answer in this form:\n"
    "<reasoning>\n…\n</reasoning>\n<answer>\nX\n</answer>\n"
    "where X is the letter of the right option, A, B, C or D, and nothing else."
)


# ---- one function a source: (record, place, demonstration) -> our dict, or a string, the reason
# why it is left out ----


def toolalpaca(record, place, demonstration):
    """One instruction of a tool (see toolalpaca_instructions); the demonstration is the golden
    calls themselves.
    """
    golden = field(record, "Golden_Answer", place, list)
    # joined, never .format: documentations are full of braces. The records of the paper's test set
    # look like this.
    prompt = "\n".join(
        [
            "Your task is to answer the user's question using available tools. ",
            "You have access to the following tools:",
            "Name: " + field(record, "Name", place),
            "Description: " + field(record, "Description", place),
            "Documentation:",
            field(record, "NLDocumentation", place),
            "Use the following format:",
            "Thought: you should always think about what to do",
            "Action: the action to take, should be one of the tool names.",
            (
                "Action Input: the input to the action, must be in JSON format. All of the action"
                " input must be realistic and from the user."
            ),
            "",
            "Begin!",
            "Question: " + field(record, "Instruction", place),
        ]
    )
    return {"prompt": prompt, "calls": calls(golden, place), "demonstration": call_lines(golden)}


def toolalpaca_instructions(tool, place):
    """One tool's record -> (place, record) of each of its instructions."""
    instructions, golden = (
        field(tool, "Instructions", place, list),
        field(tool, "Golden_Answers", place, list),
    )
    if len(instructions) != len(golden):
        raise ValueError(
            f'{place}: {len(instructions)} "Instructions", but {len(golden)} "Golden_Answers"'
        )
    return [
        (f"{place}, instruction {i}", tool | {"Instruction": instruction, "Golden_Answer": answer})
        for i, (instruction, answer) in enumerate(zip(instructions, golden, strict=True), start=1)
    ]


def authors_tooluse(record, place, demonstration):
    golden = field(record, "golden_answer", place, list)
    row = {"prompt": turns(record, "prompt", place), "calls": calls(golden, place)}
    if record.get("golden_response") is not None:  # training only; null in Arrow's test records
        # the authors' code joins the strings, one a step, with line breaks
        steps = field(record, "golden_response", place, list)
        row["demonstration"] = "\n".join(
            text(step, f'{place}: field "golden_response", item {i}')
            for i, step in enumerate(steps, start=1)
        )
    return row


def sdpo_tooluse(record, place, demonstration):
    golden = parse_json(field(record, "answer", place), f'{place}: field "answer"', list)
    return {
        "prompt": turns(record, "prompt", place),
        "calls": calls(golden, place),
        "demonstration": call_lines(golden),
    }


def authors_science(record, place, demonstration):
    if "output_text" not in record:
        return {"prompt": turns(record, "prompt", place), "answer": letter(record, "answer", place)}
    return {
        "prompt": turns(record, "messages", place),
        "demonstration": field(record, "output_text", place),
        "answer": letter(record, "output_text", place),
    }


def sciknoweval(record, place, demonstration):
    choices = field(record, "choices", place, dict)
    if choices.get("label") != ["A", "B", "C", "D"]:
        return f'type "{record.get("type")}", not four choices A to D'
    texts = field(choices, "text", place, list)
    if len(texts) != 4:
        raise ValueError(f'{place}: field "choices" has {len(texts)} texts for four labels')
    labelled = list(zip("ABCD", texts, strict=True))
    for label, option in labelled:
        text(option, f'{place}: field "choices", option {label}')
    options = "\n".join(f"{label}: {option}" for label, option in labelled)
    question = field(record, "question", place) + "\n\n" + options
    return {
        "prompt": [
            {"role": "system", "content": SCIENCE_SYSTEM},
            {"role": "user", "content": question},
        ],
        "answer": letter(record, "answerKey", place),
    }


def huatuo(record, place, demonstration):
    """The reference is the short gold answer. reasoning-SFT has none: there it is the response, and
    no key fact is written, since only a copy of the demonstration would contain it.
    """
    question = taken("huatuo", "prompt", record)
    row = {"prompt": field(record, question, place)}
    row["reference"] = field(record, taken("huatuo", "reference", record), place)
    if "Ground-True Answer" in record:
        row["key_facts"] = [[row["reference"]]]
    if "Response" in record:  # verifiable-problem has no worked answers
        row["demonstration"] = field(record, "Response", place)
        if demonstration == "reasoning":  # followed by the response: thoughts alone are no answer
            row["demonstration"] = (
                field(record, "Complex_CoT", place) + "\n\n" + row["demonstration"]
            )
    return row


def trl(record, place, demonstration):
    row = {
        name: record[name]
        for name in ("answer", "options", "calls", "key_facts", "other_facts", "text", "reference")
        if record.get(name) is not None
    }
    if record.get("id") is not None:
        row = {"id": identifier(record["id"], place)} | row
    if "messages" in record:
        chat = messages(record, "messages", place)
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise ValueError(
                f'{place}: field "messages" must end with the assistant\'s turn, which becomes '
                "the demonstration"
            )
        prompt = turns({"messages": chat[:-1]}, "messages", place)
        worked = chat[-1]["content"]
    else:
        prompt = turns(record, "prompt", place)
        name = taken("trl", "demonstration", record)
        worked = None  # test records need none
        if name in record:
            answers = messages(record, name, place)
            if len(answers) != 1:
                raise ValueError(
                    f'{place}: field "{name}" has {len(answers)} turns; only one can become the '
                    "demonstration"
                )
            worked = answers[0]["content"]
    if record.get("tools"):
        prompt = with_tools(prompt, record["tools"])
    row["prompt"] = prompt
    return row if worked is None else row | {"demonstration": worked}


def identifier(value, place):
    """An id as a string; tables write whole numbers, some of them as 3.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return text(value, f'{place}: field "id"')


def with_tools(prompt, tools):
    """The turns with the tool list in the system turn: our format has no field for it."""
    listed = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    listed = f"You can call these tools:\n{listed}"
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": listed}, *prompt]
    return [prompt[0] | {"content": f"{prompt[0]['content']}\n\n{listed}"}, *prompt[1:]]


# name: (function, sets of fields); a file is of the source with the largest set that is in its
# first record, and of the first of these: {"prompt", "completion", "answer"} is trl's
SOURCES = {
    "sciknoweval": (sciknoweval, [{"question", "choices", "answerKey"}]),
    "toolalpaca": (
        toolalpaca,
        [{"Instructions", "Golden_Answers"}],
    ),  # raw: tools with their instructions
    "authors-tooluse": (authors_tooluse, [{"prompt", "golden_answer"}]),
    "sdpo-tooluse": (
        sdpo_tooluse,
        [{"prompt", "answer", "kind"}],
    ),  # the 68 test questions in SDPO's repository
    "huatuo": (
        huatuo,
        [{"Question", "Response"}, {"Open-ended Verifiable Question", "Ground-True Answer"}],
    ),
    "trl": (
        trl,
        [
            {"prompt", "completion"},
            {"prompt", "privileged_context"},
            {"messages"},
            # our own format
            {"prompt", "demonstration"},
            {"prompt", "answer", "options"},
            {"prompt", "calls"},
            {"prompt", "key_facts"},
            {"prompt", "reference"},
        ],
    ),
    "authors-science": (authors_science, [{"messages", "output_text"}, {"prompt", "answer"}]),
}


# source -> {our field: its fields, of which the first is taken that the records have}
TAKEN = {
    "sciknoweval": {"prompt": ["question + choices"], "answer": ["answerKey"]},
    "toolalpaca": {
        "prompt": ["Name + Description + NLDocumentation + Instructions"],
        "calls": ["Golden_Answers"],
        "demonstration": ["Golden_Answers"],
    },
    "authors-tooluse": {
        "prompt": ["prompt"],
        "calls": ["golden_answer"],
        "demonstration": ["golden_response"],
    },
    "sdpo-tooluse": {"prompt": ["prompt"], "calls": ["answer"], "demonstration": ["answer"]},
    "authors-science": {
        "prompt": ["messages", "prompt"],
        "answer": ["output_text", "answer"],
        "demonstration": ["output_text"],
    },
    "huatuo": {
        "prompt": ["Open-ended Verifiable Question", "Question"],
        "reference": ["Ground-True Answer", "Response"],
        "key_facts": ["Ground-True Answer"],
        "demonstration": ["Response"],
    },
    "trl": {
        "prompt": ["messages", "prompt"],
        "demonstration": ["messages", "completion", "privileged_context", "demonstration"],
    },
}


def taken(source, ours, record):
    """The name of the record's field, or fields, that becomes a field of ours.

    The last choice if the record has none of them: field() says that it is missing.
    """
    choices = TAKEN[source].get(ours, [ours])
    there = (name for name in choices if record.keys() >= set(name.split(" + ")))
    return next(there, choices[-1])


def describe(source, record, row, demonstration):
    """What convert says of a record -> (a line of fields taken, the others that have a value)."""
    names = {ours: taken(source, ours, record) for ours in row}
    if source == "huatuo" and demonstration == "reasoning":
        names["demonstration"] = "Complex_CoT + Response"
    if source == "trl" and record.get("tools"):
        names["prompt"] += " + tools"  # with_tools
    line = f"{source}: " + ", ".join(f"{ours} from {theirs}" for ours, theirs in names.items())
    used = set(" + ".join(names.values()).split(" + "))
    return line, [name for name, value in record.items() if value and name not in used]


def recognise(place, record):
    """The name of the source that a record comes from."""
    matching = [
        (len(fields), name)
        for name, (_, field_sets) in SOURCES.items()
        for fields in field_sets
        if fields <= record.keys()
    ]
    if matching:
        return max(matching, key=lambda pair: pair[0])[1]  # the first of the largest
    known = "; ".join(
        f"{name}: {' or '.join(', '.join(sorted(fields)) for fields in sets)}"
        for name, (_, sets) in SOURCES.items()
    )
    raise ValueError(
        f"{place}: fields {', '.join(map(str, record))[:300]} are of no known source. Known "
        f"are {known}"
    )


# ---- fields ----


def text(value, place):
    """value, if it is a string that data.py takes."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} must be a string with something in it; it is {repr(value)[:60]}")
    if "\0" in value or value.encode(errors="ignore").decode() != value:
        raise ValueError(
            f"{place} holds a NUL or half of a surrogate pair, which no tokenizer takes"
        )
    return value


def field(record, name, place, kind=str):
    """record[name], of that kind and not empty."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f'{place}: field "{name}" is missing')
    if kind is str:
        return text(record[name], f'{place}: field "{name}"')
    if not isinstance(record[name], kind) or not record[name]:
        raise ValueError(
            f'{place}: field "{name}" must be a {kind.__name__} with something in it; it is '
            f"{repr(record[name])[:60]}"
        )
    return record[name]


def parse_json(string, place, kind):
    """A JSON text -> object of that kind."""
    try:
        value = json.loads(string, parse_constant=lambda name: json.loads(""))  # NaN is no JSON
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}): {repr(string)[:100]}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{place} must be JSON of a {kind.__name__}; it is {repr(string)[:100]}")
    return value


def calls(golden, place):
    """[{"Action": name, "Action_Input": JSON text}] -> [{"name", "arguments"}]."""
    return [
        {
            "name": field(call, "Action", f"{place}, call {i}"),
            "arguments": parse_json(
                field(call, "Action_Input", f"{place}, call {i}"),
                f'{place}, call {i}: field "Action_Input"',
                dict,
            ),
        }
        for i, call in enumerate(golden, start=1)
    ]


def call_lines(golden):
    """Golden calls as the model should write them."""
    return "\n".join(
        f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in golden
    )


def letter(record, name, place):
    """The letter in the last <answer>…</answer>, or else the whole text."""
    answer = field(record, name, place).rpartition("<answer>")[2].partition("</answer>")[0].strip()
    if answer not in ("A", "B", "C", "D"):
        raise ValueError(
            f'{place}: field "{name}" gives no letter A to D, alone or in <answer>…</answer>; '
            f"it gives {answer[-60:]!r}"
        )
    return answer


def messages(record, name, place):
    """A string or a list of turns -> turns of role and content; Arrow adds columns of null."""
    if not isinstance(record.get(name), list):
        return [{"role": "user", "content": field(record, name, place)}]
    places = [
        (f'{place}: field "{name}", turn {i}', turn)
        for i, turn in enumerate(field(record, name, place, list), start=1)
    ]
    return [
        {"role": field(turn, "role", here), "content": content_of(turn, here)}
        for here, turn in places
    ]


def content_of(turn, place):
    """A turn's text; servers write it as a list of parts, {"type": "text", "text": ...}, too."""
    parts = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(parts, list):
        return field(turn, "content", place)
    texts = []
    for i, part in enumerate(parts, start=1):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError(f'{place}: field "content", part {i} is no text: {repr(part)[:60]}')
        texts.append(field(part, "text", f'{place}: field "content", part {i}'))
    return text("".join(texts), f'{place}: field "content"')


def turns(record, name, place):
    """A prompt: turns that end with the user's."""
    chat = messages(record, name, place)
    for i, turn in enumerate(chat, start=1):
        if turn["role"] not in ("system", "user", "assistant"):
            raise ValueError(
                f'{place}: field "{name}", turn {i}: role "{turn["role"]}" is unknown; choose '
                "from system, user, assistant"
            )
    if chat[-1]["role"] != "user":
        raise ValueError(
            f'{place}: field "{name}" ends with a turn of "{chat[-1]["role"]}"; the last turn '
            "must be the user's question"
        )
    return chat


# ---- files ----


def find_files(arguments):
    """PATH and SPLIT=PATH arguments -> (list of (split or None, file), list of files passed over).

    A folder in Arrow format counts as a file. ValueError if some names tell their split and others
    do not.
    """
    found, passed_over = [], []  # found: (word for the split or None, file)
    for argument in arguments:
        given, root = split_and_path(argument)
        files = files_below(root, passed_over)
        if not files:
            raise ValueError(
                f"{root} has no .json or .jsonl file, no .csv, .tsv or .parquet file, and no "
                "state.json of a save_to_disk folder"
            )
        # its own name counts, except that of a single folder, which may be ~/test
        above = root if root.is_dir() and len(arguments) == 1 else root.parent
        for file in files:
            word = split_word(file.relative_to(above).parts)
            if given and word and root.is_dir() and SPLIT_OF_WORD[word] != given:
                raise ValueError(
                    f"{argument}: {file} is named like {SPLIT_OF_WORD[word]}; name the files of "
                    f"{given} one by one"
                )
            found.append((given or word, file))
    words = {word for word, _ in found}
    split_of = {None: None} | SPLIT_OF_WORD
    if words & {"test", "testing", "testset"} and not words & {*SPLIT_WORDS["validation"]}:
        # train, eval and test: here eval is what the weights are chosen by
        split_of |= dict.fromkeys(("eval", "evaluation", "evalset"), "validation")
    unclear = [str(file) for word, file in found if word is None]
    if unclear and words != {None}:
        raise ValueError(
            f"which split is {', '.join(unclear[:5])}? Other files have it in their names. Write "
            "train=PATH, validation=PATH or test=PATH, or move it away"
        )
    return [(split_of[word], file) for word, file in found], passed_over


def split_and_path(argument):
    """PATH or SPLIT=PATH -> (split or None, Path)."""
    name, _, path = argument.partition("=")
    split = SPLIT_OF_WORD.get(name.lower())
    return split, Path(path if split else argument).expanduser()


def split_word(names):
    """The word for a split in the last of some names, of folders and a file, that has one.

    None if no name has one, or if the last one has words for two splits, as train_test.jsonl has.
    """
    for name in reversed(names):
        # words are also told apart by capitals: trainData
        found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
        words = [word.lower() for word in found if word.lower() in SPLIT_OF_WORD]
        if words:
            return words[0] if len({SPLIT_OF_WORD[word] for word in words}) == 1 else None
    return None


def files_below(root, passed_over):
    """A file, or all files with data in a folder and its folders; others go to passed_over."""
    if not root.exists():
        link = f", but a link to {os.readlink(root)}" if root.is_symlink() else ""
        raise ValueError(f"{root} does not exist{link}")
    if root.is_file():
        if root.suffix.lower() in UNREADABLE:
            raise ValueError(
                f"{root} is in a format that cannot be read; unpack it or export it as JSON Lines "
                "(.jsonl), or move it away"
            )
        return [root]
    if (root / "state.json").is_file():
        return [root]
    files = []
    for path in sorted(root.iterdir()):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or path.name in METADATA:
            continue
        if path.is_dir():
            if path.resolve() not in (root.resolve(), *root.resolve().parents):  # a link upwards
                files += files_below(path, passed_over)
        elif suffix in READABLE or suffix in UNREADABLE:
            files += files_below(path, passed_over)
        else:
            passed_over.append(path)
    return files


def read_file(file, refuse):
    """A file, or a folder in Arrow format -> list of (place, record).

    refuse(error) raises the error of one line, or goes on without it.
    """
    if file.is_dir():
        return read_arrow(file)
    if file.suffix.lower() == ".parquet":
        return read_parquet(file)
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    if content.startswith("version https://git-lfs"):
        raise ValueError(f"{file} is a Git LFS pointer and not the file itself; git lfs pull")
    if file.suffix.lower() in (".csv", ".tsv"):
        return read_table(file, content)
    return read_json(file, content, refuse)


def read_json(file, content, refuse):
    """JSON Lines, or a JSON array -> list of (place, record)."""
    lines = [
        (f"{file}:{number}", line.strip("\ufeff"))  # inside after `cat` of files that begin with it
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip("\ufeff \t\r")
    ]
    # names and contents differ in practice: arrays in .jsonl files, lines in .json files
    named_lines = file.suffix.lower() in (".jsonl", ".ndjson")
    is_array = content.lstrip().startswith("[")
    if (named_lines and not is_array) or (len(lines) > 1 and is_object(lines[0][1])):
        records = []
        for place, line in lines:
            try:
                records.append((place, parse_json(line, f"{place}: the line", dict)))
            except ValueError as error:
                refuse(error)
        return records
    records = parse_json(content, f"{file}: the file (JSON Lines end in .jsonl)", list)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(
                f"{file}: record {number} must be an object; it is {repr(record)[:60]}"
            )
    return [(f"{file}: record {number}", record) for number, record in enumerate(records, start=1)]


def is_object(line):
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_table(file, content):
    """A table with a line of names -> list of (place, record); an empty cell is None."""
    header = content.partition("\n")[0]
    if header.startswith("sep="):  # Excel's own line
        delimiter, content = header[4], content.partition("\n")[2]
    elif file.suffix.lower() == ".tsv":
        delimiter = "\t"
    else:  # Excel writes semicolons where the comma is the decimal one
        delimiter = ";" if ";" in header and "," not in header else ","
    csv.field_size_limit(2**31 - 1)  # of a cell: documents are longer than its default
    records = []
    try:
        lines = io.StringIO(content, newline="")
        rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
        for number, row in enumerate(rows, start=1):
            place = f"{file}: record {number}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{place} has not the {len(rows.fieldnames)} cells that the first line names"
                )
            records.append((place, {name: cell_value(name, row[name], place) for name in row}))
    except csv.Error as error:
        raise ValueError(f"{file}: record {len(records) + 1} is not CSV ({error})") from None
    return records


def cell_value(name, cell, place):
    """A cell of a table: None, text, or the list that the field of that name holds."""
    if not cell.strip():
        return None
    lists = ("messages", "tools", "options", "calls", "key_facts", "other_facts")
    if name in (*lists, "prompt", "completion") and re.match(r"\[\s*\{\s*'", cell):
        raise ValueError(
            f'{place}: field "{name}" holds a list in Python\'s notation, as pandas writes it, and '
            "not in JSON; export the table as JSON Lines, such as DataFrame.to_json(FILE, "
            'orient="records", lines=True)'
        )
    if name in lists or (name in ("prompt", "completion") and re.match(r'\[\s*\{\s*"', cell)):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def read_parquet(file):
    """A file of the Hugging Face hub, for example -> list of (place, record)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{file} is in Parquet format; pip install pyarrow, then run this again"
        ) from None
    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(
            f"{file}: not readable as Parquet ({error}); if it is a Git LFS pointer, git lfs pull"
        ) from None
    return arrow_records(file, rows)


def arrow_records(file, rows):
    """Rows of an Arrow table -> list of (place, record).

    Arrow gives all objects of a column the same keys, and null for those that an object did not
    have: a call of {"city": "Oslo"} beside one of {"query": "tea"} would want "query", too.
    """
    objects = ("calls", "tools")
    return [
        (
            f"{file}: record {number}",
            {name: without_nulls(row[name]) if name in objects else row[name] for name in row},
        )
        for number, row in enumerate(rows, start=1)
    ]


def without_nulls(value):
    """Lists and objects without the keys of objects whose value is None."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def read_arrow(folder):
    """A folder that Hugging Face's save_to_disk wrote -> list of (place, record).

    It holds Arrow IPC streams, named in state.json.
    """
    try:
        import pyarrow
    except ImportError:
        raise ValueError(
            f"{folder} is in Arrow format; pip install pyarrow, then run this again"
        ) from None
    state = parse_json(
        (folder / "state.json").read_text(encoding="utf-8"), f"{folder}/state.json", dict
    )
    records = []
    for part in field(state, "_data_files", f"{folder}/state.json", list):
        file = folder / field(part, "filename", f"{folder}/state.json")
        try:
            with pyarrow.OSFile(str(file)) as stream, pyarrow.ipc.open_stream(stream) as reader:
                rows = reader.read_all().to_pylist()
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise ValueError(
                f"{file}: not readable as an Arrow stream ({error}); if it is a Git LFS "
                "pointer, git lfs pull"
            ) from None
        records += arrow_records(file, rows)
    return records


# ---- splits ----


def turns_of(row, roles=("system", "user", "assistant")):
    """A prompt's turns as a tuple of (role, content), white space normalised.

    Case is kept: it changes the meaning of a SMILES.
    """
    prompt = row["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return tuple(
        (turn["role"], " ".join(turn["content"].split())) for turn in turns if turn["role"] in roles
    )


def conversation_of(row):
    """What the user and the assistant say, without the system turn."""
    return turns_of(row, ("user", "assistant"))


def share(row, seed):
    """A number in [0, 1) from the seed and the question, with the turns before it.

    Its options do not count: the same question with other options stays in the same split. Nor
    does the system turn.
    """
    prompt = row["prompt"]
    texts = (
        [prompt]
        if isinstance(prompt, str)
        else [turn["content"] for turn in prompt if turn["role"] != "system"]
    )
    stem = " ".join("\n".join(text.partition("\n\nA: ")[0] for text in texts).split())
    return int(hashlib.sha256(f"{seed}\n{stem}".encode()).hexdigest()[:13], 16) / 16**13


def split_by_share(rows, seed, parts):
    """Share of a row -> its split; parts are (split, where it ends in [0, 1]).

    By the rank of the share, so that the parts are exact even of a small set. Of two questions or
    more one becomes validation, of a single one none.
    """
    shares = sorted({share(row, seed) for row in rows})
    N = len(shares)
    splits = [next(split for split, end in parts if i / N < end) for i in range(N)]
    if N == 1:
        splits = ["train"]
    elif N > 1 and "validation" not in splits:
        splits[splits.count("train") - 1] = "validation"
    return dict(zip(shares, splits, strict=True))


def split_rows(rows, seed, left_out):
    """[(split or None, row)] -> {split: [row]}, each prompt once."""
    free = [row for split, row in rows if split is None]
    training = [row for split, row in rows if split == "train"]
    has_validation = any(split == "validation" for split, _ in rows)
    split_of_free = split_by_share(free, seed, [("train", 0.75), ("validation", 0.8), ("test", 1)])
    split_of_train = split_by_share(training, seed, [("validation", 5 / 80), ("train", 1)])
    result, split_of = {split: [] for split in SPLITS}, {}
    # stable: the source's order stays
    for split, row in sorted(rows, key=lambda pair: SPLITS.index(pair[0] or "train")):
        if split is None:
            split = split_of_free[share(row, seed)]
        elif split == "train" and not has_validation:
            split = split_of_train[share(row, seed)]
        # whole prompts: two chats may end with the same turn
        prompt = turns_of(row)
        if prompt in split_of:
            left_out[f"question is in {split_of[prompt]} already"] += 1
        else:
            split_of[prompt] = split
            result[split].append(row)
    return result


def make_ids_unique(rows):
    """Number ids that come again, as in shards that each count from 0 -> how many were changed."""
    used, changed = {row["id"] for row in rows if "id" in row}, 0
    seen = set()
    for row in rows:
        if row.get("id") in seen:
            number = 2
            while f"{row['id']}-{number}" in used:
                number += 1
            row["id"] = f"{row['id']}-{number}"
            used.add(row["id"])
            changed += 1
        if "id" in row:
            seen.add(row["id"])
    return changed


def read_rows(inputs, source, demonstration, skip_broken, left_out):
    """Inputs (PATH or SPLIT=PATH) -> ([(split or None, row)], {source: records read}).

    It counts in left_out what it leaves out.
    """
    rows, read, described, not_taken = [], Counter(), [], {}

    def refuse(error):
        if not skip_broken:
            raise ValueError(f"{error}; repair it, or leave such records out with --skip-broken")
        print(f"broken: {error}")
        left_out["broken"] += 1

    files, passed_over = find_files([str(argument) for argument in inputs])
    for split, file in files:
        records = read_file(file, refuse)
        if not records:
            raise ValueError(f"{file} is a file without records")
        name = source or recognise(*records[0])
        if name == "toolalpaca":
            tools, records = records, []
            for place, tool in tools:
                try:
                    records += toolalpaca_instructions(tool, place)
                except ValueError as error:
                    refuse(error)
        read[name] += len(records)
        for place, record in records:
            try:
                row = SOURCES[name][0](record, place, demonstration)
                if not isinstance(row, str):
                    # read as data.py will read it; what each task needs is checked there
                    parse_line(json.dumps(row), place, "general")
            except ValueError as error:
                refuse(error)
                continue
            if isinstance(row, str):
                left_out[row] += 1
                continue
            rows.append((split, row))
            line, others = describe(name, record, row, demonstration)
            if line not in described:
                described.append(line)
            not_taken.setdefault(name, Counter()).update(others)
    for line in described:
        print(line)
    for name, others in not_taken.items():
        if others:
            print(f"{name}: not taken: {', '.join(map(str, others))}")
    for split in reversed(SPLITS):
        if of_split := [str(file) for named, file in files if named == split]:
            print(f"{split} from {', '.join(of_split)}")
    if passed_over:
        print("passed over:", ", ".join(map(str, passed_over)))
    return rows, read


def check_output(output):
    """ValueError unless `output` is a folder without splits, or one that can be made."""
    present = [
        str(output / f"{split}.jsonl") for split in SPLITS if (output / f"{split}.jsonl").exists()
    ]
    if present:
        raise ValueError(f"{', '.join(present)} exists; name another folder, or remove it")
    for path in (output, *output.parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; name another "
                "output folder"
            )
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name another output folder than {output}")


def convert(inputs, output, source=None, demonstration="answer", seed=0, skip_broken=False):
    """Write output/SPLIT.jsonl; print and return what became of the records.

    -> ({split: records written}, {reason: records left out})
    """
    output, left_out = Path(output).expanduser(), Counter()
    check_output(output)
    rows, read = read_rows(inputs, source, demonstration, skip_broken, left_out)
    parts = split_rows(rows, seed, left_out)
    renamed = sum(map(make_ids_unique, parts.values()))
    output.mkdir(parents=True, exist_ok=True)
    for split in filter(parts.get, parts):  # no file for an empty split
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in parts[split])
        (output / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    counts = {split: len(parts[split]) for split in reversed(SPLITS)}
    print("read", ", ".join(f"{number} records of {name}" for name, number in read.items()))
    print("wrote", ", ".join(f"{number} {split}" for split, number in counts.items()), "to", output)
    reasons = ", ".join(f"{number} ({reason})" for reason, number in left_out.items())
    print("left out", reasons or "none")
    if renamed:
        print(f"note: {renamed} ids came again within a split, and got a number")
    print_leaks(rows, parts)
    print_notes(parts)
    return counts, dict(left_out)


def print_leaks(rows, parts):
    """Which questions of one split the files have in another one too."""
    for first, second in [("test", "train"), ("test", "validation"), ("validation", "train")]:
        prompts = {turns_of(row) for split, row in rows if split == first}
        both = [row for split, row in rows if split == second and turns_of(row) in prompts]
        if both:
            print(
                f"note: {len(both)} questions of {second} are in {first} too, and were left out of "
                f"{second}; the first: {last_words(both[0])}"
            )
        conversations = {conversation_of(row) for row in parts[first]}
        both = [row for row in parts[second] if conversation_of(row) in conversations]
        if both:
            print(
                f"note: {len(both)} questions of {second} are in {first} too, with another system "
                f"turn, and were kept; the first: {last_words(both[0])}"
            )


def last_words(row):
    """The last turn of a prompt, in short."""
    question = turns_of(row)[-1][1]
    return repr(question if len(question) <= 60 else "…" + question[-60:])


def print_notes(parts):
    """What a user should know of the records that were written, {split: [row]}."""
    for split in ("validation", "test"):
        if parts["train"] and not parts[split]:
            print(f"note: no record is left for {split}, and {split}.jsonl was not written")
    bare = sum("demonstration" not in row for row in parts["train"] + parts["validation"])
    if bare:
        print(
            f"note: {bare} records of train and validation have no demonstration, which "
            "training needs; add it to each line"
        )
    rows = sum(parts.values(), [])
    judged = sum("reference" in row and "key_facts" not in row for row in rows)
    if judged:
        print(f"note: {judged} records have a reference and no key facts: score with --judge URL")
    both = [row for row in rows if "key_facts" in row and "demonstration" in row]
    right = [score_reference(row["demonstration"], row["key_facts"])["correct"] for row in both]
    if not all(right):
        print(
            f"note: by the string rule {right.count(False)} of {len(both)} demonstrations are "
            "wrong, since they say the key facts in other words: score with --judge URL"
        )


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="[SPLIT=]SOURCE",
        help="file or folder; SPLIT is train, validation or test",
    )
    add("output", help="folder to write")
    add("--source", choices=SOURCES, help="what it is, if the fields do not tell")
    add(
        "--demonstration",
        choices=["answer", "reasoning"],
        default="answer",
        help=(
            "huatuo: the response alone (answer, as in the paper's medical data), or the thoughts "
            "before it too"
        ),
    )
    add("--seed", type=int, default=0, help="of the split")
    add("--skip-broken", action="store_true", help="name broken records and leave them out")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a console may lack some characters
    try:
        convert(**vars(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
