"""Foreign data -> our format. Oracles: records written out by hand; the paper's 68 test prompts,
byte for byte; pyarrow's writer.

Tests of real files run where the environment variable SDFT_SHARED_DATA names a folder with
tooluse/, science/ and medical/.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from data import TASKS, load_task

sys.path.insert(0, str(ROOT / "extras"))
from convert import SCIENCE_SYSTEM, SPLITS, convert

SHARED = Path(os.environ.get("SDFT_SHARED_DATA", "not given"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="SDFT_SHARED_DATA names no folder")
USER = {"role": "user", "content": "Why {x}?"}
SYSTEM = {"role": "system", "content": "Be brief."}
GOLDEN = [
    {"Action": "find", "Action_Input": '{"what": "é", "near": {"x": [1]}}'},
    {"Action": "stop", "Action_Input": "{}"},
]
CALLS = [
    {"name": "find", "arguments": {"what": "é", "near": {"x": [1]}}},
    {"name": "stop", "arguments": {}},
]
CALL_LINES = (
    'Action: find\nAction Input: {"what": "é", "near": {"x": [1]}}\nAction: stop\nAction Input: {}'
)
TOOL = {
    "Name": "Finder",
    "Description": "Finds {things}",
    "NLDocumentation": "find: Finds.\nParameters: {}\n",
    "Instructions": ["Where?", "Who?"],
    "Golden_Answers": [GOLDEN, [GOLDEN[1]]],
}
SCIKNOW = {
    "prompt": {"default": "…"},
    "question": "How many {atoms}?",
    "choices": {"text": ["1", "2", "3", "4"], "label": ["A", "B", "C", "D"]},
    "answerKey": "C",
    "type": "mcq-4-choices",
    "answer": "",
}
FILLING = SCIKNOW | {"type": "filling", "choices": {"text": [], "label": []}, "answerKey": ""}
HUATUO = {"Question": "Which organ?", "Complex_CoT": "Hm. Bile.", "Response": "It is the liver."}
DEMO = HUATUO | {
    "question": "x",
    "options": {},
    "answer": "Liver",
    "Open-ended Verifiable Question": "Which organ?",
    "Ground-True Answer": "Liver",
}


def converted(tmp_path, records, name="train.json", **options):
    """The rows that `records`, in a file of the folder `source`, become; all of them, in the order
    of the splits.
    """
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    text = (
        json.dumps(records)
        if name.endswith(".json")
        else "".join(json.dumps(record) + "\n" for record in records)
    )
    (source / name).write_text(text, encoding="utf-8")
    convert([source], tmp_path / "out", **options)
    return written(tmp_path / "out")


def written(folder):
    return [
        json.loads(line)
        for split in reversed(SPLITS)
        if (folder / f"{split}.jsonl").exists()
        for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


SCIENCE_TEXT = "<reasoning>\n<answer>A</answer>?\n</reasoning>\n<answer>\nB\n</answer>"
ONE_OF_EACH = {
    "authors-tooluse": (
        {
            "prompt": "Use {tools}.",
            "name": "f",
            "instruction": "i",
            "golden_answer": GOLDEN,
            "golden_response": [" I look.\nAction: find", "Action: stop"],
        },
        {
            "prompt": [USER | {"content": "Use {tools}."}],
            "calls": CALLS,
            "demonstration": " I look.\nAction: find\nAction: stop",
        },
    ),
    "authors-tooluse, evaluation": (
        {"prompt": [SYSTEM, USER], "golden_answer": GOLDEN, "golden_response": None},
        {"prompt": [SYSTEM, USER], "calls": CALLS},
    ),
    "authors-science, training": (
        {"messages": [SYSTEM | {"name": None}, USER], "output_text": SCIENCE_TEXT},
        {"prompt": [SYSTEM, USER], "demonstration": SCIENCE_TEXT, "answer": "B"},
    ),
    "authors-science, evaluation": (
        {"prompt": [SYSTEM, USER], "answer": " D "},
        {"prompt": [SYSTEM, USER], "answer": "D"},
    ),
    "sdpo-tooluse": (
        {"prompt": "Where?", "answer": json.dumps(GOLDEN), "kind": "tooluse", "system": None},
        {"prompt": [USER | {"content": "Where?"}], "demonstration": CALL_LINES, "calls": CALLS},
    ),
    "sciknoweval": (
        SCIKNOW,
        {
            "prompt": [
                {"role": "system", "content": SCIENCE_SYSTEM},
                {"role": "user", "content": "How many {atoms}?\n\nA: 1\nB: 2\nC: 3\nD: 4"},
            ],
            "answer": "C",
        },
    ),
    "huatuo, demo": (
        DEMO,
        {
            "prompt": "Which organ?",
            "demonstration": "It is the liver.",
            "reference": "Liver",
            "key_facts": [["Liver"]],
        },
    ),
    "huatuo, reasoning-SFT": (
        HUATUO,
        {
            "prompt": "Which organ?",
            "demonstration": "It is the liver.",
            "reference": "It is the liver.",
        },
    ),
    "huatuo, verifiable-problem": (
        {"Open-ended Verifiable Question": "Which organ?", "Ground-True Answer": "Liver"},
        {"prompt": "Which organ?", "reference": "Liver", "key_facts": [["Liver"]]},
    ),
    "trl, prompt and completion": (
        {
            "prompt": [SYSTEM, USER],
            "completion": [{"role": "assistant", "content": "So."}],
            "text": "Article.",
            "key_facts": [["So"]],
        },
        {
            "prompt": [SYSTEM, USER],
            "demonstration": "So.",
            "text": "Article.",
            "key_facts": [["So"]],
        },
    ),
    "trl, messages": (
        {"messages": [SYSTEM, USER, {"role": "assistant", "content": "So."}], "answer": "A"},
        {"prompt": [SYSTEM, USER], "demonstration": "So.", "answer": "A"},
    ),
    "trl, privileged context": (
        {"prompt": [USER], "privileged_context": "So."},
        {"prompt": [USER], "demonstration": "So."},
    ),
}


@pytest.mark.parametrize("source", ONE_OF_EACH)
@pytest.mark.parametrize("name", ["test.json", "test.jsonl"])
def test_a_record_of_each_source(tmp_path, source, name):
    record, row = ONE_OF_EACH[source]
    assert converted(tmp_path, [record], name) == [row]
    (tmp_path / "named").mkdir()
    assert converted(tmp_path / "named", [record], name, source=source.partition(",")[0]) == [row]


@pytest.mark.parametrize(
    "source, line",
    [
        (
            "huatuo, demo",
            "huatuo: prompt from Open-ended Verifiable Question, reference from Ground-True "
            "Answer, key_facts from Ground-True Answer, demonstration from Response",
        ),
        (
            "authors-science, training",
            "authors-science: prompt from messages, demonstration from output_text, answer from "
            "output_text",
        ),
        ("authors-science, evaluation", "authors-science: prompt from prompt, answer from answer"),
        ("sciknoweval", "sciknoweval: prompt from question + choices, answer from answerKey"),
        (
            "trl, prompt and completion",
            "trl: key_facts from key_facts, text from text, prompt from prompt, demonstration "
            "from completion",
        ),
    ],
)
def test_it_says_which_fields_it_took(tmp_path, source, line, capsys):
    converted(tmp_path, [ONE_OF_EACH[source][0]], "test.json")
    assert capsys.readouterr().out.splitlines()[0] == line


def test_thoughts_in_a_demonstration_are_named(tmp_path, capsys):
    converted(tmp_path, [DEMO], demonstration="reasoning")
    assert "demonstration from Complex_CoT + Response" in capsys.readouterr().out


def test_toolalpaca_and_its_prompt(tmp_path):
    first, second = converted(tmp_path, [TOOL], "test.json")
    assert first == {
        "demonstration": CALL_LINES,
        "calls": CALLS,
        "prompt": "Your task is to answer the user's question using available tools. \n"
        "You have access to the following tools:\nName: Finder\n"
        "Description: Finds {things}\nDocumentation:\nfind: Finds.\nParameters: {}\n\n"
        "Use the following format:\n"
        "Thought: you should always think about what to do\n"
        "Action: the action to take, should be one of the tool names.\n"
        "Action Input: the input to the action, must be in JSON format. All of the action "
        "input must be realistic and from the user.\n\n"
        "Begin!\nQuestion: Where?",
    }
    assert second["prompt"].endswith("\nQuestion: Who?") and second["calls"] == [CALLS[1]]


def test_reasoning_stands_before_the_response(tmp_path):
    assert (
        converted(tmp_path, [DEMO], demonstration="reasoning")[0]["demonstration"]
        == "Hm. Bile.\n\nIt is the liver."
    )


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"key": 1, "kwargs": []},
            (
                "source/train.json: record 1: fields key, kwargs are of no known source. Known "
                "are sciknoweval: answerKey"
            ),
        ),
        (TOOL | {"Instructions": ["Where?"]}, 'record 1: 1 "Instructions", but 2 "Golden_Answers"'),
        (
            TOOL | {"Golden_Answers": [GOLDEN, [{"Action": "f", "Action_Input": '{"x": ${id}}'}]]},
            'record 1, instruction 2, call 1: field "Action_Input" is not JSON',
        ),
        (
            TOOL | {"Golden_Answers": [GOLDEN, [{"Action": "f", "Action_Input": "[1]"}]]},
            'call 1: field "Action_Input" must be JSON of a dict',
        ),
        (
            TOOL | {"Golden_Answers": [GOLDEN, [{"Action": "f", "Action_Input": '{"x": NaN}'}]]},
            'call 1: field "Action_Input" is not JSON',
        ),
        (
            TOOL | {"Golden_Answers": [GOLDEN, [{"Action_Input": "{}"}]]},
            'instruction 2, call 1: field "Action" is missing',
        ),
        (TOOL | {"Name": None}, 'instruction 1: field "Name" must be a string'),
        (
            {"prompt": "x", "golden_answer": []},
            'field "golden_answer" must be a list with something in it; it is []',
        ),
        (
            {"prompt": "x", "golden_answer": GOLDEN, "golden_response": ["a", 5]},
            'field "golden_response", item 2 must be a string',
        ),
        ({"prompt": [SYSTEM], "answer": "A"}, 'field "prompt" ends with a turn of "system"'),
        (
            {"prompt": [{"role": "robot", "content": "x"}], "answer": "A"},
            'field "prompt", turn 1: role "robot" is unknown',
        ),
        ({"prompt": [USER], "answer": "E"}, 'field "answer" gives no letter'),
        ({"messages": [USER], "output_text": "It is B."}, 'field "output_text" gives no letter'),
        ({"messages": [USER]}, 'field "messages" must end with the assistant'),
        ({"prompt": [USER], "completion": [USER, USER]}, 'field "completion" has 2 turns'),
        (
            SCIKNOW | {"choices": {"text": ["1"], "label": ["A", "B", "C", "D"]}},
            'field "choices" has 1 texts for four labels',
        ),
        (DEMO | {"Response": " "}, 'field "Response" must be a string with something in it'),
        (
            HUATUO | {"Question": "x\ud800"},
            'field "Question" holds a NUL or half of a surrogate pair',
        ),
        (5, "source/train.json: record 1 must be an object; it is 5"),
    ],
)
def test_errors_name_file_record_and_field(tmp_path, record, message):
    with pytest.raises(ValueError) as error:
        converted(tmp_path, [record])
    assert "source/train.json: record 1" in str(error.value) and message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_data(tmp_path):
    for name, content, message in [
        ("a.json", "{}", "must be JSON of a list"),
        ("b.jsonl", '{"x": 1}\n{', "b.jsonl:2: the line is not JSON"),
        ("c.json", "[]", "without records"),
        ("d.json", b"\xff", "not UTF-8"),
    ]:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message):
            convert([tmp_path / name], tmp_path / "out")
    with pytest.raises(ValueError, match="missing does not exist"):
        convert([tmp_path / "missing"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no .json or .jsonl file"):
        convert([tmp_path / "empty"], tmp_path / "out")
    converted(tmp_path, [SCIKNOW])
    with pytest.raises(
        ValueError, match="out/train.jsonl exists; name another folder|out/validation.jsonl exists"
    ):
        converted(tmp_path, [SCIKNOW])


def test_broken_records_are_left_out_on_request_and_counted(tmp_path, capsys):
    records = [SCIKNOW, SCIKNOW | {"answerKey": "E"}, FILLING, SCIKNOW]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(
        ValueError, match='x.jsonl:2: field "answerKey" gives no letter.*--skip-broken'
    ):
        convert([tmp_path / "x.jsonl"], tmp_path / "out")
    counts, left_out = convert([tmp_path / "x.jsonl"], tmp_path / "out", skip_broken=True)
    assert sum(counts.values()) == 1
    assert left_out == {
        "broken": 1,
        'type "filling", not four choices A to D': 1,
        "question is in train already": 1,
    }
    output = capsys.readouterr().out
    assert "read 4 records of sciknoweval" in output and "x.jsonl:2" in output
    assert "1 records of train and validation have no demonstration" in output


def questions(folder):
    return {
        split: [
            json.loads(line)["prompt"][-1]["content"]
            for line in (folder / f"{split}.jsonl").read_text().split("\n")
            if line
        ]
        for split in SPLITS
    }


def test_free_records_are_split_75_5_20_by_question_not_by_order(tmp_path):
    records = [SCIKNOW | {"question": f"Question {i}?"} for i in range(200)]
    other_options = [
        record | {"choices": {"text": ["5", "6", "7", "8"], "label": ["A", "B", "C", "D"]}}
        for record in records
    ]
    for name, rows in [("a", records + other_options), ("b", other_options[::-1] + records[::-1])]:
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        convert([tmp_path / f"{name}.json"], tmp_path / name)
    a, b = questions(tmp_path / "a"), questions(tmp_path / "b")
    assert {split: len(rows) for split, rows in a.items()} == {
        "train": 300,
        "validation": 20,
        "test": 80,
    }
    assert all(sorted(a[split]) == sorted(b[split]) for split in SPLITS)
    stems = [{question.partition("\n\nA: ")[0] for question in rows} for rows in a.values()]
    assert sum(map(len, stems)) == len(set().union(*stems)) == 200, (
        "a question with two sets of options stands in two splits"
    )
    # the source's order stays
    assert a["train"][0].startswith("Question 0?") or "Question 0?" not in "".join(a["train"])
    convert([tmp_path / "a.json"], tmp_path / "c", seed=1)
    assert set(questions(tmp_path / "c")["test"]) != set(a["test"])
    by_hash = sorted(
        (f"Question {i}?" for i in range(200)),
        key=lambda stem: hashlib.sha256(f"0\n{stem}".encode()).hexdigest(),
    )
    assert stems == [set(by_hash[160:]), set(by_hash[150:160]), set(by_hash[:150])]


def test_given_splits_stay_and_test_questions_leave_training(tmp_path):
    def records(numbers):
        return json.dumps(
            [{"prompt": [USER | {"content": f"Question {i}?"}], "answer": "A"} for i in numbers]
        )

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train_data.json").write_text(records(range(100)))
    (tmp_path / "data" / "eval_data.json").write_text(records([*range(90, 110), 95]))
    counts, left_out = convert([tmp_path / "data"], tmp_path / "out")
    assert (
        counts["test"] == 20
        and counts["train"] + counts["validation"] == 90
        and left_out == {"question is in test already": 11}
    )
    assert 4 <= counts["validation"] <= 7  # 7 of 100, less those that the test set has
    found = questions(tmp_path / "out")
    assert set(found["test"]) == {f"Question {i}?" for i in range(90, 110)} and not set(
        found["train"]
    ) & set(found["validation"])
    counts, _ = convert(
        [f"validation={tmp_path}/data/eval_data.json", f"train={tmp_path}/data/train_data.json"],
        tmp_path / "named",
    )
    assert (
        counts == {"train": 90, "validation": 20, "test": 0}
        and not (tmp_path / "named" / "test.jsonl").exists()
    )


def save_to_disk(folder, records):
    """A folder as Hugging Face datasets writes it: two shards of Arrow IPC streams, and a stale one
    that state.json does not name.
    """
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, rows in [
        *zip(names, (records[:1], records[1:]), strict=True),
        ("cache-1.arrow", records),
    ]:
        table = pyarrow.Table.from_pylist(rows)
        with (
            pyarrow.OSFile(str(folder / name), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names], "_split": "train"})
    )
    (folder / "dataset_info.json").write_text("{}")


def test_the_authors_repository_in_arrow_format(tmp_path):
    save_to_disk(
        tmp_path / "science_data" / "train_data",
        [
            {"messages": [SYSTEM, USER | {"content": str(i)}], "output_text": SCIENCE_TEXT}
            for i in range(3)
        ],
    )
    save_to_disk(
        tmp_path / "science_data" / "eval_data",
        [{"prompt": [SYSTEM, USER | {"content": str(i)}], "answer": "A"} for i in (5, 6)],
    )
    counts, left_out = convert([tmp_path / "science_data"], tmp_path / "science")
    assert counts == {"train": 2, "validation": 1, "test": 2} and left_out == {}
    for split, number in counts.items():
        examples = load_task("science", split, tmp_path / "science")
        assert len(examples) == number and all(
            example.messages[0] == SYSTEM for example in examples
        )
    save_to_disk(
        tmp_path / "tooluse_data" / "train_data",
        [ONE_OF_EACH["authors-tooluse"][0] | {"prompt": str(i)} for i in range(2)],
    )
    # no name of a split above it
    convert([tmp_path / "tooluse_data" / "train_data"], tmp_path / "tooluse")
    assert sorted(row["prompt"][0]["content"] for row in written(tmp_path / "tooluse")) == [
        "0",
        "1",
    ]
    (tmp_path / "science_data" / "eval_data" / "data-00001-of-00002.arrow").write_text(
        "version https://git-lfs.github.com/spec/v1"
    )
    with pytest.raises(
        ValueError, match="data-00001-of-00002.arrow: not readable as an Arrow stream.*git lfs pull"
    ):
        convert([tmp_path / "science_data"], tmp_path / "out")


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(
        ValueError, match="is in Arrow format; pip install pyarrow, then run this again"
    ):
        convert([tmp_path], tmp_path / "out")


@needs_shared
def test_rebuilt_tool_prompts_are_the_papers_byte_for_byte(tmp_path):
    """The 68 of test.jsonl are among the 100 of eval_simulated.json, of which 30 have calls that
    are no JSON (${id}).
    """
    counts, left_out = convert(
        [SHARED / "tooluse" / "eval_simulated.json"], tmp_path / "raw", skip_broken=True
    )
    assert (sum(counts.values()), left_out) == (70, {"broken": 30})
    convert([f"test={SHARED}/tooluse/test.jsonl"], tmp_path / "test")
    raw = {row["prompt"]: row["calls"] for row in written(tmp_path / "raw")}
    rows = written(tmp_path / "test")
    assert len(rows) == 68 and all(raw[row["prompt"][0]["content"]] == row["calls"] for row in rows)


@needs_shared
@pytest.mark.parametrize(
    "task, inputs, expected, reasons",
    [
        (
            "tooluse",
            ["train=tooluse/eval_real.json", "test=tooluse/test.jsonl"],
            {"train": 103, "validation": 7, "test": 68},
            {"broken": 4},
        ),
        ("medical", ["medical/demo_data.json"], {"train": 149, "validation": 10, "test": 39}, {}),
        (
            "science",
            ["science/Chemistry/L3"],
            {"train": 2659, "validation": 176, "test": 707},
            {'type "filling", not four choices A to D': 535},
        ),
    ],
)
def test_counts_of_the_real_files(tmp_path, task, inputs, expected, reasons):
    paths = [
        f"{split}{equals}{SHARED / path}"
        for split, equals, path in (name.rpartition("=") for name in inputs)
    ]
    counts, left_out = convert(paths, tmp_path / task, skip_broken=True)
    assert (counts, left_out) == (expected, reasons)
    if task in TASKS:
        trained = ["train", "validation"] if task != "science" else []  # no demonstrations there
        for split in ("test", *trained):
            assert len(load_task(task, split, tmp_path / task)) == counts[split]


# ---- files as people, exporters and the hub name them ----


def rows_of(name, n=4):
    return [{"prompt": f"{name} {i}?", "completion": f"{name} {i}."} for i in range(n)]


def lines_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def folder_of(folder, files):
    """A folder with these files, {name: content}; each name is also the text of its four rows."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = lines_of(rows_of(name)) if content is None else content
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def names_in(folder):
    """{split: the files whose rows went there}; see folder_of. 1/16 of train may validate."""
    names = {split: set() for split in SPLITS}
    for split in SPLITS:
        if (folder / f"{split}.jsonl").exists():
            for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
                names[split].add(json.loads(line)["prompt"][-1]["content"].rpartition(" ")[0])
    return names


@pytest.mark.parametrize(
    "train, validation, test",
    [
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], [], []),
        (["train-00000.jsonl", "train-00001.jsonl"], [], ["test-00000.jsonl"]),
        (["data/train-00000-of-00001.jsonl"], [], ["data/test-00000-of-00001.jsonl"]),
        (["TRAIN.jsonl"], ["DEV.JSONL"], ["Test.jsonl"]),
        (["mydata_train.jsonl"], ["mydata_val.jsonl"], ["mydata_test.jsonl"]),
        (["train.jsonl"], ["validation_matched.jsonl", "validation_mismatched.jsonl"], []),
        (["trainingData.jsonl"], ["devSet.jsonl"], ["testSet.jsonl"]),
        (["train_sft.jsonl"], [], ["test_sft.jsonl"]),
        (["train-v1.1.jsonl"], ["dev-v1.1.jsonl"], []),
        (["de/train/0000.jsonl", "en/train/0000.jsonl"], [], ["de/test/0000.jsonl"]),
        (["train.jsonl"], [], ["eval.jsonl"]),  # nothing else could be the test split
        (["train.jsonl"], ["eval.jsonl"], ["test.jsonl"]),
        (["train.jsonl"], ["dev.jsonl"], ["eval.jsonl"]),
        (["latest/train.jsonl"], [], ["latest/contest_test.jsonl"]),  # whole words only
    ],
)
def test_names_of_splits(tmp_path, train, validation, test):
    wanted = {"train": set(train), "validation": set(validation), "test": set(test)}
    source = folder_of(tmp_path / "in", dict.fromkeys(train + validation + test))
    convert([source], tmp_path / "out")
    found = names_in(tmp_path / "out")
    if not validation:
        found["train"] |= found.pop("validation")
        del wanted["validation"]
    assert found == wanted
    # the same as single arguments: in one file each, these names stand alone
    if all("/" not in name for name in train + test):
        convert([source / name for name in train + validation + test], tmp_path / "again")
        for split in SPLITS:
            first, second = (tmp_path / f / f"{split}.jsonl" for f in ("out", "again"))
            assert first.exists() == second.exists()
            if first.exists():
                assert sorted(first.read_text().split("\n")) == sorted(
                    second.read_text().split("\n")
                )


@pytest.mark.parametrize(
    "names, unclear",
    [
        (["train.jsonl", "extra.jsonl"], "extra.jsonl"),
        (["train.jsonl", "test.jsonl", "more/part-0.jsonl"], "more/part-0.jsonl"),
        (["train.jsonl", "train_test.jsonl"], "train_test.jsonl"),
        (["dev.jsonl", "latest.jsonl"], "latest.jsonl"),
        (["train.jsonl", "config.json"], "config.json"),
    ],
)
def test_a_file_of_no_split_beside_others_is_named(tmp_path, names, unclear):
    source = folder_of(tmp_path / "in", dict.fromkeys(names))
    with pytest.raises(ValueError, match=f"which split is {source / unclear}"):
        convert([source], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    others = [f"train={source / name}" for name in names if name != unclear]
    convert([*others, f"dev={source / unclear}"], tmp_path / "out")
    assert names_in(tmp_path / "out")["validation"] == {unclear}


def test_names_without_splits_are_split_together(tmp_path):
    source = folder_of(tmp_path / "test", dict.fromkeys(["a.jsonl", "b.jsonl"]))
    counts, _ = convert([source], tmp_path / "out")  # the folder's own name does not count
    assert sum(counts.values()) == 8 and counts["train"] == 6
    for name in ("train_data", "eval_data"):
        folder_of(tmp_path / name, {"0.jsonl": lines_of(rows_of(name, 20))})
    convert([tmp_path / "train_data", tmp_path / "eval_data"], tmp_path / "two")  # but of two
    assert names_in(tmp_path / "two") == {
        "train": {"train_data"},
        "validation": {"train_data"},
        "test": {"eval_data"},
    }


def test_what_is_passed_over_and_what_is_not(tmp_path, capsys):
    files = dict.fromkeys(["train.jsonl", "test.jsonl"])
    junk = [
        "README.md",
        ".train.jsonl.swp",
        "._train.jsonl",
        ".git/train.jsonl",
        "dataset_infos.json",
    ]
    source = folder_of(tmp_path / "in", files | dict.fromkeys(junk, "x"))
    counts, _ = convert([source], tmp_path / "out")
    assert sum(counts.values()) == 8
    printed = capsys.readouterr().out
    assert f"passed over: {source / 'README.md'}\n" in printed
    assert f"test from {source / 'test.jsonl'}\n" in printed
    for name in ("test.jsonl.gz", "test.xlsx", "validation.zip"):
        (source / name).write_text("x")
        with pytest.raises(ValueError, match=f"{name} is in a format that cannot be read"):
            convert([source], tmp_path / "other")
        (source / name).unlink()
    with pytest.raises(ValueError, match="test.jsonl is named like test; name the files of train"):
        convert([f"train={source}"], tmp_path / "other")
    (source / "dev.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="dev.jsonl does not exist, but a link to .*gone.jsonl"):
        convert([source], tmp_path / "other")


def test_links_to_folders_are_followed(tmp_path):
    folder_of(tmp_path / "far", dict.fromkeys(["0.jsonl"]))
    source = folder_of(tmp_path / "in", dict.fromkeys(["test.jsonl"]))
    (source / "train").symlink_to(tmp_path / "far")
    (source / "up").symlink_to(source)
    assert convert([source], tmp_path / "out")[1] == {}  # nothing was read twice
    assert names_in(tmp_path / "out")["train"] == {"0.jsonl"}


def test_test_questions_in_train_are_reported(tmp_path, capsys):
    rows = rows_of("Which bird", 20)
    spoken = [
        {"messages": [{"role": "system", "content": system}, *turns]}
        for system, *turns in [
            (
                "Be brief.",
                {"role": "user", "content": "Heron?"},
                {"role": "assistant", "content": "Yes."},
            ),
            (
                "Be kind.",
                {"role": "user", "content": "Heron?"},
                {"role": "assistant", "content": "Yes."},
            ),
        ]
    ]
    source = folder_of(
        tmp_path / "in",
        {
            "train.jsonl": lines_of(rows),
            "test.jsonl": lines_of(rows[3:5]),
            "dev.jsonl": lines_of([rows[7]]),
            "train-chats.jsonl": lines_of(spoken[:1]),
            "test-chats.jsonl": lines_of(spoken[1:]),
        },
    )
    counts, left_out = convert([source], tmp_path / "out")
    assert left_out == {"question is in test already": 2, "question is in validation already": 1}
    assert counts == {"train": 18, "validation": 1, "test": 3}
    printed = capsys.readouterr().out
    assert "note: 2 questions of train are in test too, and were left out of train" in printed
    assert "note: 1 questions of train are in validation too" in printed or (
        "note: 1 questions of validation are in train too" in printed
    )
    assert "first: 'Which bird 3?'" in printed
    assert (
        "1 questions of train are in test too, with another system turn, and were kept" in printed
    )


# ---- what a prompt is ----


def chat_rows(prompts, **more):
    """Chats whose prompts are lists of (role, content); all get the same answer."""
    return [
        {"messages": [{"role": r, "content": c} for r, c in [*turns, ("assistant", "Fine.")]]}
        | more
        for turns in prompts
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "train.jsonl"])
def test_duplicates_are_whole_prompts(tmp_path, name):
    last = ("user", "And why?")
    prompts = [
        [("user", f"A {x}?"), ("assistant", "No."), last] for x in ("fox", "hen", "cow", "owl")
    ]
    prompts += [[("system", s), *prompts[0]] for s in ("Be brief.", "Be kind.")]
    prompts += [[("user", "A fox?"), ("assistant", "Yes."), last], [last]]
    again = [[("user", "A  fox?\n"), ("assistant", "No."), last]]
    rows = chat_rows(prompts + again)
    tools = [chat_rows(prompts[:1], tools=[{"name": n}])[0] for n in ("find", "stop")]
    source = folder_of(tmp_path / "in", {name: lines_of(rows + tools)})
    counts, left_out = convert([source], tmp_path / "out")
    assert sum(counts.values()) == len(prompts) + 2 and sum(left_out.values()) == 1
    found = [row["prompt"] for row in written(tmp_path / "out")]
    assert sum('{"name": "find"}' in prompt[0]["content"] for prompt in found) == 1


def test_chats_with_the_same_last_turn_are_split_one_by_one(tmp_path):
    prompts = [
        [("user", f"Item {i}?"), ("assistant", "Hm."), ("user", "Go on.")] for i in range(40)
    ]
    source = folder_of(tmp_path / "in", {"chats.jsonl": lines_of(chat_rows(prompts))})
    assert convert([source], tmp_path / "out")[0] == {"train": 30, "validation": 2, "test": 8}


def test_a_tool_list_goes_to_the_system_turn(tmp_path, capsys):
    tools = [{"type": "function", "function": {"name": "find"}}]
    alone, beside = [("user", "Hi?")], [("system", "Be brief."), ("user", "Ho?")]
    rows = chat_rows([alone, beside], tools=tools) + chat_rows([[("user", "He?")]], tools=None)
    first, second, third = converted(tmp_path, rows, "test.jsonl")
    listed = "You can call these tools:\n" + json.dumps(tools)
    assert first["prompt"][0] == {"role": "system", "content": listed}
    assert second["prompt"][0]["content"] == f"Be brief.\n\n{listed}"
    assert len(third["prompt"]) == 1
    assert "prompt from messages + tools" in capsys.readouterr().out


def test_a_turn_in_parts(tmp_path):
    parts = [{"type": "text", "text": "Which "}, {"type": "text", "text": "bird?"}]
    [row] = converted(tmp_path, chat_rows([[("user", parts)]]), "test.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "Which bird?"}]
    picture = [{"type": "image_url", "image_url": "x"}]
    with pytest.raises(ValueError, match='turn 1: field "content", part 1 is no text'):
        convert(
            [folder_of(tmp_path / "b", {"a.jsonl": lines_of(chat_rows([[("user", picture)]]))})],
            "x",
        )


# ---- records ----


@pytest.mark.parametrize("name", ["completion", "privileged_context", "demonstration"])
def test_a_worked_answer_is_kept_beside_the_short_one(tmp_path, name):
    record = {"prompt": "Which?\nA: x\nB: y", name: "Since y is even, it is B.", "answer": "B"}
    [row] = converted(tmp_path, [record], "test.jsonl")
    assert row["demonstration"] == record[name] and row["answer"] == "B"


@pytest.mark.parametrize("id, string", [(7, "7"), (0, "0"), (3.0, "3"), (-1, "-1"), ("a7", "a7")])
def test_ids_are_strings(tmp_path, id, string):
    record = rows_of("Which bird", 1)[0] | {"id": id, "key_facts": [["x"]]}
    [row] = converted(tmp_path, [record], "test.jsonl")
    assert row["id"] == string
    assert load_task("medical", "test", tmp_path / "out")[0].id == string


@pytest.mark.parametrize("id", [True, 1.5, [1], {"a": 1}, ""])
def test_other_ids_are_refused(tmp_path, id):
    with pytest.raises(ValueError, match='test.jsonl:1: field "id" must be a string'):
        converted(tmp_path, [rows_of("Which bird", 1)[0] | {"id": id}], "test.jsonl")


def test_ids_of_shards_that_count_from_zero_are_made_unique(tmp_path, capsys):
    shards = {
        f"test-{n}.jsonl": lines_of([r | {"id": i} for i, r in enumerate(rows_of(f"bird {n}", 3))])
        for n in range(3)
    }
    source = folder_of(
        tmp_path / "in", shards | {"test-3.jsonl": lines_of([rows_of("x", 1)[0] | {"id": "1-2"}])}
    )
    convert([source], tmp_path / "out")
    ids = [example.id for example in load_task("medical", "test", tmp_path / "out")]
    assert ids == ["0", "1", "2", "0-2", "1-3", "2-2", "0-3", "1-4", "2-3", "1-2"]
    assert "note: 6 ids came again" in capsys.readouterr().out


def test_fields_that_are_not_taken_are_named(tmp_path, capsys):
    rows = [row | {"source": "web", "score": 3, "empty": None} for row in rows_of("Which bird")]
    converted(tmp_path, rows, "test.jsonl")
    assert "trl: not taken: source, score\n" in capsys.readouterr().out


def test_rows_are_checked_as_they_will_be_read(tmp_path):
    with pytest.raises(ValueError, match='test.jsonl:1: field "key_facts", item 0, item 0 must be'):
        converted(tmp_path, [rows_of("x", 1)[0] | {"key_facts": [[312]]}], "test.jsonl")


# ---- formats ----

ROWS = rows_of("Größe", 3)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", "\ufeff" + lines_of(ROWS).replace("\n", "\r\n")),
        ("a.jsonl", "\ufeff" + lines_of(ROWS[:1]) + "\n\n\ufeff" + lines_of(ROWS[1:])),
        ("a.json", lines_of(ROWS)),  # lines in .json
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.jsonl", json.dumps(ROWS)),  # an array in .jsonl
        ("a.ndjson", lines_of(ROWS)),
        (
            "a.csv",
            "\ufeffprompt,completion\r\n"
            + "".join('"{prompt}","{completion}"\r\n'.format(**r) for r in ROWS),
        ),
        (
            "a.csv",
            "prompt;completion\n" + "".join("{prompt};{completion}\n".format(**r) for r in ROWS),
        ),
        (
            "a.csv",
            "sep=|\r\nprompt|completion\r\n"
            + "".join("{prompt}|{completion}\n".format(**r) for r in ROWS),
        ),
        (
            "a.tsv",
            "prompt\tcompletion\n" + "".join("{prompt}\t{completion}\n".format(**r) for r in ROWS),
        ),
    ],
)
def test_the_same_rows_in_each_format(tmp_path, name, content):
    convert([f"test={folder_of(tmp_path / 'in', {name: content}) / name}"], tmp_path / "out")
    found = {row["prompt"][0]["content"]: row["demonstration"] for row in written(tmp_path / "out")}
    assert found == {row["prompt"]: row["completion"] for row in ROWS}


def test_cells_of_a_table(tmp_path):
    """A quoted cell may have lines and commas; lists are JSON; an empty cell is no value."""
    table = (
        ',id,prompt,completion,key_facts,answer\n0,1.0,"A, or\nB?",[1] is it,"[[""x"", ""y""]]",\n'
        '1,2.0,"[{""role"": ""user"", ""content"": ""Hi?""}]",x,,B\n'
    )
    convert([folder_of(tmp_path / "in", {"test.csv": table})], tmp_path / "out")
    first, second = written(tmp_path / "out")
    assert first == {
        "id": "1.0",
        "prompt": [{"role": "user", "content": "A, or\nB?"}],
        "demonstration": "[1] is it",
        "key_facts": [["x", "y"]],
    }
    assert second["prompt"] == [{"role": "user", "content": "Hi?"}] and second["answer"] == "B"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "prompt,completion\nq?\n", "record 1 has not the 2 cells"),
        ("a.csv", "prompt,completion\nq?,a\nq?,a,b\n", "record 2 has not the 2 cells"),
        ("a.csv", 'prompt,completion\nq?,"a\n', "record 1 is not CSV"),
        ("a.csv", "prompt,completion\nq?,\n", 'record 1: field "completion" must be a string'),
        ("a.csv", "prompt,completion,key_facts\nq?,a,\"[['x']]\"\n", '"key_facts" must be a list'),
        ("a.jsonl", lines_of(ROWS).encode("utf-16"), "not UTF-8 .*; save it as UTF-8"),
        ("a.jsonl", '{"prompt": "q?", "completion": NaN}\n', "a.jsonl:1: the line is not JSON"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid x\n", "is a Git LFS pointer"),
        ("a.parquet", "version https://git-lfs", "Parquet"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        convert([folder_of(tmp_path / "in", {name: content})], tmp_path / "out")
    assert name in str(error.value)


def test_parquet_as_the_hub_has_it(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / "in" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        chats = [row | {"id": i} for i, row in enumerate(chat_rows([[("user", f"{split}?")]]))]
        parquet.write_table(
            pyarrow.Table.from_pylist(chats),
            tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet",
        )
    convert([tmp_path / "in"], tmp_path / "out")
    [row] = [row for row in written(tmp_path / "out") if row["prompt"][0]["content"] == "test?"]
    assert row["demonstration"] == "Fine." and row["id"] == "0"


def test_calls_keep_their_own_arguments_in_parquet(tmp_path):
    """Arrow gives each call the arguments of all others, as null."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    calls = [
        {"name": "search", "arguments": {"query": "tea", "how": {"deep": True}}},
        {"name": "weather", "arguments": {"city": "Oslo"}},
    ]
    rows = [
        {
            "prompt": f"q{i}?",
            "completion": "a",
            "calls": [call],
            "tools": [{"name": "f", "parameters": {name: "string" for name in call["arguments"]}}],
        }
        for i, call in enumerate(calls)
    ]
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "test.parquet")
    convert([tmp_path / "in"], tmp_path / "out")
    first, second = written(tmp_path / "out")
    assert first["calls"] == [calls[0]] and second["calls"] == [calls[1]]
    assert '{"city": "string"}' in second["prompt"][0]["content"]


def test_tables_of_pandas_in_pythons_notation_are_refused(tmp_path):
    table = "prompt,completion\n\"[{'role': 'user', 'content': 'Hi?'}]\",Hello.\n"
    with pytest.raises(ValueError, match='record 1: field "prompt" holds a list in Python'):
        convert([folder_of(tmp_path / "in", {"test.csv": table})], tmp_path / "out")


def test_our_own_records_without_a_demonstration(tmp_path, capsys):
    """A test set needs none; training does, and is told so."""
    bare = [
        {"prompt": "q1?", "key_facts": [["b"]]},
        {"prompt": "q2?", "calls": [{"name": "f", "arguments": {}}]},
        {"prompt": "q3?", "answer": "x", "options": [["x"], ["y"]]},
        {"prompt": "q4?", "reference": "x"},
    ]
    for i, row in enumerate(bare):
        folder = tmp_path / str(i)
        convert([folder_of(folder / "in", {"test.jsonl": lines_of([row])})], folder / "out")
        [found] = written(folder / "out")
        prompt = [{"role": "user", "content": row["prompt"]}]
        assert found == row | {"prompt": prompt}
    rows = [{"prompt": f"q{i}?", "demonstration": "a"} for i in range(3)] + [{"prompt": "bare?"}]
    convert([folder_of(tmp_path / "in", {"train.jsonl": lines_of(rows)})], tmp_path / "out")
    assert "1 records of train and validation have no demonstration" in capsys.readouterr().out


def test_a_missing_field_is_named(tmp_path):
    rows = [HUATUO, {"Response": "It is the liver."}]
    with pytest.raises(ValueError, match='train.json: record 2: field "Question" is missing'):
        converted(tmp_path, rows)


def test_skip_broken_skips_lines_and_tools(tmp_path, capsys):
    cut = lines_of(ROWS) + '{"prompt": "q?", "comp'
    source = folder_of(tmp_path / "in", {"train.jsonl": cut})
    with pytest.raises(ValueError, match="train.jsonl:.* is not JSON .*--skip-broken"):
        convert([source], tmp_path / "out")
    counts, left_out = convert([source], tmp_path / "out", skip_broken=True)
    assert sum(counts.values()) == len(ROWS) and left_out == {"broken": 1}
    assert "broken: " in capsys.readouterr().out
    tools = [TOOL, TOOL | {"Name": "Other", "Golden_Answers": [GOLDEN]}]
    (tmp_path / "tools").mkdir()
    assert len(converted(tmp_path / "tools", tools, "test.json", skip_broken=True)) == 2


@pytest.mark.parametrize(
    "N, sizes", [(1, [1, 0, 0]), (2, [1, 1, 0]), (5, [3, 1, 1]), (10, [7, 1, 2]), (20, [15, 1, 4])]
)
def test_small_sets_get_a_validation_split(tmp_path, capsys, N, sizes):
    rows = [{"prompt": f"q{i}?", "completion": "a"} for i in range(N)]
    source = folder_of(tmp_path / "in", {"x.jsonl": lines_of(rows)})
    counts, _ = convert([source], tmp_path / "out")
    assert list(counts.values()) == sizes
    printed = capsys.readouterr().out
    for split in ("validation", "test"):
        assert (f"note: no record is left for {split}," in printed) == (counts[split] == 0)


def test_a_single_training_record_stays_in_training(tmp_path):
    rows = [{"prompt": "q?", "completion": "a"}]
    counts, _ = convert(
        [folder_of(tmp_path / "in", {"train.jsonl": lines_of(rows)})], tmp_path / "out"
    )
    assert counts == {"train": 1, "validation": 0, "test": 0}


# ---- the output folder ----


def test_outputs_that_cannot_be_written_are_refused_at_once(tmp_path):
    source = folder_of(tmp_path / "in", {"a.jsonl": "not even JSON"})
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for output, message in [
        ("file", "file is a file; name another output folder"),
        ("file/deeper/out", "file is a file"),
        ("link", "link is a link to .*gone, which does not exist"),
        ("link/out", "link is a link to .*gone, which does not exist"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert([source], tmp_path / output)
    assert (tmp_path / "file").read_text() == "x" and not (tmp_path / "gone").exists()


def test_the_home_folder_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "in", dict.fromkeys(["test.jsonl", "x.jsonl"]))
    convert(["~/in/test.jsonl", "train=~/in/x.jsonl"], "~/new/out")
    assert (tmp_path / "new/out/test.jsonl").exists() and not (tmp_path / "~").exists()


def test_a_document_in_a_cell(tmp_path):
    """200,000 characters; Python's csv reads cells of 131,072."""
    table = "prompt,completion\nq?," + "long " * 40_000
    convert([folder_of(tmp_path / "in", {"test.csv": table})], tmp_path / "out")
    [row] = written(tmp_path / "out")
    assert len(row["demonstration"]) == 200_000
