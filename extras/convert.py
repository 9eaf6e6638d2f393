"""Convert foreign data sets to our JSONL format (data.py), ready for --data.

    python extras/convert.py Self-Distillation/data/science_data science
    python extras/convert.py train=eval_real.json test=test.jsonl tooluse
    python extras/convert.py SciKnowEval/data/Chemistry/L3 chemistry

The last argument is the folder to write. The others are files, folders of .json and .jsonl files
(the authors' repository has such), or SPLIT=PATH if you know the split. The fields of a file's
first record tell its source, or --source names it: see SOURCES below.

A folder that names its splits (train_data, eval_data, train.jsonl, ...) keeps them; if it has no
validation, 1/16 of the training questions become that (75 to 5, as in the paper). Anything else is
split 75/5/20. The split is a function of seed and question, the same on every machine, and no
question is in two splits. A broken record stops the run and is named by file, record (lines and
records count from 1) and field; --skip-broken names it and leaves it out. What is printed: which
fields became which, how many records were written and left out, and why.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of scoring.py

from scoring import score_reference

SPLITS = ["test", "validation", "train"]  # a question in two splits stays in the first of these
FOLDER_NAMES = {
    "test": ["test", "eval_data"],
    "validation": ["validation", "valid", "val"],
    "train": ["train", "train_data"],
}
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
        for name in ("id", "answer", "options", "calls", "key_facts", "text", "reference")
        if record.get(name) is not None
    }
    if "messages" in record:
        chat = messages(record, "messages", place)
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise ValueError(
                f'{place}: field "messages" must end with the assistant\'s turn, which becomes '
                "the demonstration"
            )
        return row | {
            "prompt": turns({"messages": chat[:-1]}, "messages", place),
            "demonstration": chat[-1]["content"],
        }
    name = "completion" if "completion" in record else "privileged_context"
    worked = messages(record, name, place)
    if len(worked) != 1:
        raise ValueError(
            f'{place}: field "{name}" has {len(worked)} turns; only one can become the '
            "demonstration"
        )
    return row | {"prompt": turns(record, "prompt", place), "demonstration": worked[0]["content"]}


# name: (function, sets of fields); a file is of the first source one of whose sets is in its first
# record
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
    "authors-science": (authors_science, [{"messages", "output_text"}, {"prompt", "answer"}]),
    "huatuo": (
        huatuo,
        [{"Question", "Response"}, {"Open-ended Verifiable Question", "Ground-True Answer"}],
    ),
    "trl": (trl, [{"prompt", "completion"}, {"prompt", "privileged_context"}, {"messages"}]),
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
        "demonstration": ["messages", "completion", "privileged_context"],
    },
}


def taken(source, ours, record):
    """The name of the record's field, or fields, that becomes a field of ours."""
    choices = TAKEN[source].get(ours, [ours])
    return next(name for name in choices if record.keys() >= set(name.split(" + ")))


def describe(source, record, row, demonstration):
    """What convert says of the fields that it took."""
    names = {ours: taken(source, ours, record) for ours in row}
    if source == "huatuo" and demonstration == "reasoning":
        names["demonstration"] = "Complex_CoT + Response"
    return f"{source}: " + ", ".join(f"{ours} from {theirs}" for ours, theirs in names.items())


def recognise(place, record):
    """The name of the source that a record comes from."""
    for name, (_, field_sets) in SOURCES.items():
        if any(fields <= record.keys() for fields in field_sets):
            return name
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
    if isinstance(record.get(name), str):
        return [{"role": "user", "content": field(record, name, place)}]
    places = [
        (f'{place}: field "{name}", turn {i}', turn)
        for i, turn in enumerate(field(record, name, place, list), start=1)
    ]
    return [
        {"role": field(turn, "role", here), "content": field(turn, "content", here)}
        for here, turn in places
    ]


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


def read_source(path, split=None):
    """A file or folder -> list of (split or None, [(place, record)]), one a file."""
    if path.is_file():
        return [(split, read_json(path))]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist")
    if (path / "state.json").is_file():
        return [(split, read_arrow(path))]
    named = [
        (name, path / (alias + suffix))
        for name in SPLITS
        for alias in FOLDER_NAMES[name]
        for suffix in ("", ".json", ".jsonl")
    ]
    files = [(name, file) for name, file in named if file.exists()] or [
        (split, file) for file in sorted(path.glob("*.json*"))
    ]
    if not files:
        raise ValueError(
            f"{path} has no .json or .jsonl file, no train_data or eval_data, and no "
            "state.json of a save_to_disk folder"
        )
    return [part for name, file in files for part in read_source(file, split or name)]


def read_json(file):
    """JSON Lines, or a JSON array -> list of (place, record)."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if file.suffix == ".jsonl":
        lines = [
            (f"{file}:{number}", line)
            for number, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        ]
        return [(place, parse_json(line, f"{place}: the line", dict)) for place, line in lines]
    records = parse_json(content, f"{file}: the file (JSON Lines end in .jsonl)", list)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(
                f"{file}: record {number} must be an object; it is {repr(record)[:60]}"
            )
    return [(f"{file}: record {number}", record) for number, record in enumerate(records, start=1)]


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
        records += [(f"{file}: record {number}", row) for number, row in enumerate(rows, start=1)]
    return records


# ---- splits ----


def question_of(row):
    return row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]


def share(row, seed):
    """A number in [0, 1) from the seed and the question.

    Its options do not count: the same question with other options stays in the same split.
    """
    stem = " ".join(question_of(row).partition("\n\nA: ")[0].split())
    return int(hashlib.sha256(f"{seed}\n{stem}".encode()).hexdigest()[:13], 16) / 16**13


def ranks(rows, seed):
    """Share of a row -> its rank among these rows, in [0, 1): exact parts even of a small set."""
    shares = sorted({share(row, seed) for row in rows})
    return {value: i / len(shares) for i, value in enumerate(shares)}


def split_rows(rows, seed, left_out):
    """[(split or None, row)] -> {split: [row]}, each question once."""
    rank_of_free = ranks([row for split, row in rows if split is None], seed)
    rank_of_train = ranks([row for split, row in rows if split == "train"], seed)
    has_validation = any(split == "validation" for split, _ in rows)
    result, split_of = {split: [] for split in SPLITS}, {}
    # stable: the source's order stays
    for split, row in sorted(rows, key=lambda pair: SPLITS.index(pair[0] or "train")):
        if split is None:
            rank = rank_of_free[share(row, seed)]
            split = "train" if rank < 0.75 else "validation" if rank < 0.8 else "test"
        elif split == "train" and not has_validation and rank_of_train[share(row, seed)] < 5 / 80:
            split = "validation"
        # case is kept: it changes the meaning of a SMILES
        question = " ".join(question_of(row).split())
        if question in split_of:
            left_out[f"question is in {split_of[question]} already"] += 1
        else:
            split_of[question] = split
            result[split].append(row)
    return result


def read_rows(inputs, source, demonstration, skip_broken, left_out):
    """Inputs (PATH or SPLIT=PATH) -> ([(split or None, row)], {source: records read}).

    It counts in left_out what it leaves out.
    """
    rows, read, described = [], Counter(), []
    for argument in map(str, inputs):
        named, _, path = argument.partition("=")
        if named not in SPLITS:
            named, path = None, argument
        for split, records in read_source(Path(path), named):
            if not records:
                raise ValueError(f"{path} has a file without records")
            name = source or recognise(*records[0])
            if name == "toolalpaca":
                records = [
                    pair for place, tool in records for pair in toolalpaca_instructions(tool, place)
                ]
            read[name] += len(records)
            for place, record in records:
                try:
                    row = SOURCES[name][0](record, place, demonstration)
                except ValueError as error:
                    if not skip_broken:
                        raise ValueError(
                            f"{error}; repair it, or leave such records out with --skip-broken"
                        ) from None
                    print(f"broken: {error}")
                    row = "broken"
                if isinstance(row, str):
                    left_out[row] += 1
                    continue
                rows.append((split, row))
                if (line := describe(name, record, row, demonstration)) not in described:
                    described.append(line)
    for line in described:
        print(line)
    return rows, read


def convert(inputs, output, source=None, demonstration="answer", seed=0, skip_broken=False):
    """Write output/SPLIT.jsonl; print and return what became of the records.

    -> ({split: records written}, {reason: records left out})
    """
    output, left_out = Path(output), Counter()
    present = [
        str(output / f"{split}.jsonl") for split in SPLITS if (output / f"{split}.jsonl").exists()
    ]
    if present:
        raise ValueError(f"{', '.join(present)} exists; name another folder, or remove it")
    rows, read = read_rows(inputs, source, demonstration, skip_broken, left_out)
    parts = split_rows(rows, seed, left_out)
    output.mkdir(parents=True, exist_ok=True)
    for split in filter(parts.get, parts):  # no file for an empty split
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in parts[split])
        (output / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    counts = {split: len(parts[split]) for split in reversed(SPLITS)}
    print("read", ", ".join(f"{number} records of {name}" for name, number in read.items()))
    print("wrote", ", ".join(f"{number} {split}" for split, number in counts.items()), "to", output)
    reasons = ", ".join(f"{number} ({reason})" for reason, number in left_out.items())
    print("left out", reasons or "none")
    print_notes(parts)
    return counts, dict(left_out)


def print_notes(parts):
    """What a user should know of the records that were written, {split: [row]}."""
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
    try:
        convert(**vars(arguments))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
