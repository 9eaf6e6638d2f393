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
