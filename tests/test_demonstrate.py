"""Demonstrations by sampling. Oracles: answers written by hand, round by round; a server on this
machine that answers as told and writes down what it was asked; analysis.sample_answers, called for
one question and one seed after the other; data.read_jsonl on the output.
"""

import json
import sys

import pytest
from conftest import KEY, ROOT

from data import Example, read_jsonl
from support.models import load_model

sys.path.insert(0, str(ROOT / "extras"))

import demonstrate
from analysis import sample_answers

RECORDS = [
    {"id": "a", "prompt": "A {or} B?", "answer": "A"},
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "B or Ж?"},
        ],
        "answer": "B",
    },
    {"id": "c", "prompt": "C or D?", "answer": "C", "reference": "C."},
]


@pytest.mark.parametrize("where, goes_on", [("--url", True), ("--model", False)])
def test_ctrl_c_says_what_is_left(where, goes_on, questions, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstrate, "make_demonstrations", stop)
    words = [str(questions), str(tmp_path / "train.jsonl"), "--task", "science", where, "x"]
    words += ["--server-model", "y"] if goes_on else []
    with pytest.raises(SystemExit) as stopped:
        demonstrate.main(words)
    assert ("the same command goes on" in stopped.value.code) == goes_on
    assert ("nothing was written" in stopped.value.code) != goes_on


@pytest.fixture
def questions(tmp_path):
    """The records with a byte order mark, an empty line and both line ends."""
    file = tmp_path / "questions.jsonl"
    first, *rest = (json.dumps(record, ensure_ascii=False).encode() for record in RECORDS)
    file.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\r\n" + b"\n".join(rest))
    return file


def test_the_first_right_answer_is_kept_and_only_open_questions_are_asked_again(capsys):
    """Of a the second sample is right, and the third too; of b the first; of c none: wrong, a NUL,
    half a pair, no answer at all.
    """
    script = {
        "a": ["The answer is B.", "So: the answer is A.", "The answer is A."],
        "b": ["The answer is B."],
        "c": ["The answer is D.", "\0The answer is C.", "\udfffThe answer is C.", None],
    }
    asked = []

    def sample(examples, n):
        asked.append([example.id for example in examples])
        return [script[example.id][n] for example in examples]

    examples = [
        Example(id, "science", [{"role": "user", "content": id}], answer=id.upper()) for id in "abc"
    ]
    assert demonstrate.demonstrate(examples, sample, 4) == {
        "a": "So: the answer is A.",
        "b": "The answer is B.",
    }
    assert asked == [["a", "b", "c"], ["a", "c"], ["c"], ["c"]]
    assert [line.split(":")[1].split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "1",
        "2",
        "2",
        "2",
    ]
    assert demonstrate.demonstrate(examples[1:2], sample, 4) == {"b": "The answer is B."} and asked[
        4:
    ] == [["b"]]


def test_with_a_server(server, questions, tmp_path, capsys):
    server.script = [
        (200, {}, text)
        for text in (
            "It is <answer>A</answer>\n",
            "B!",
            "The answer is D",
            "Ж: the answer is B",
            None,
        )
    ]
    output = tmp_path / "new" / "train.jsonl"
    command = [
        "--task",
        "science",
        "--url",
        server.url,
        "--server-model",
        "gpt",
        "--samples",
        "2",
        "--concurrency",
        "1",
        "--cache",
        str(tmp_path / "cache.jsonl"),
    ]
    demonstrate.main([str(questions), str(output)] + command)
    written = [
        RECORDS[0] | {"demonstration": "It is <answer>A</answer>\n"},
        RECORDS[1] | {"demonstration": "Ж: the answer is B"},
    ]
    assert [json.loads(line) for line in output.read_text().splitlines()] == written and len(
        read_jsonl(output, "science")
    ) == 2
    turns = [
        record["prompt"]
        if isinstance(record["prompt"], list)
        else [{"role": "user", "content": record["prompt"]}]
        for record in RECORDS
    ]
    assert [asked["messages"] for _, _, asked in server.asked] == turns + turns[1:]
    printed = capsys.readouterr().out
    assert (
        f"2 of 3 questions have a demonstration; they are in {output}\n"
        "left out, without a right answer: c\n" in printed
    )
    assert KEY not in printed + "".join(
        file.read_text() for file in (output, tmp_path / "cache.jsonl")
    )

    before = output.read_bytes()
    with pytest.raises(SystemExit, match="train.jsonl exists already; name another output"):
        demonstrate.main([str(questions), str(output)] + command)
    demonstrate.main([str(questions), str(tmp_path / "again.jsonl")] + command)
    assert (tmp_path / "again.jsonl").read_bytes() == before == output.read_bytes() and len(
        server.asked
    ) == 6, "the second run reads the cache, and asks again where there was no text"


def test_with_a_model(tiny_folder, tmp_path):
    """Right is what the first sample to end says, and what one before it says that was cut at 16
    tokens: the cut one is not kept.
    """
    model, tokenizer = load_model(str(tiny_folder))
    question = Example("q", "knowledge", [{"role": "user", "content": "Say it."}])
    drawn = [
        sample_answers(model, tokenizer, [question], samples=1, max_new_tokens=16, seed=8 + n)[0][0]
        for n in range(8)
    ]
    ended = next(n for n, answer in enumerate(drawn) if answer.finished)
    assert ended > 0 and "\0" not in drawn[0].text + drawn[ended].text
    record = {
        "id": "q",
        "prompt": "Say it.",
        "text": "An article.",
        "key_facts": [[drawn[0].text, drawn[ended].text]],
    }
    (tmp_path / "questions.jsonl").write_text(json.dumps(record))
    output = tmp_path / "train.jsonl"
    demonstrate.main(
        [
            str(tmp_path / "questions.jsonl"),
            str(output),
            "--task",
            "knowledge",
            "--model",
            str(tiny_folder),
            "--max-new-tokens",
            "16",
            "--seed",
            "1",
        ]
    )
    assert read_jsonl(output, "knowledge")[0].demonstration == drawn[ended].text


@pytest.mark.parametrize(
    "change, more, message",
    [
        ({}, [], "no question got a demonstration, and nothing was written"),
        ({"demonstration": "d"}, [], 'questions.jsonl:1: field "demonstration" is there already'),
        ({"answer": "E"}, [], 'questions.jsonl:1: field "answer" is .E'),
        ({"answer": None}, ["--task", "knowledge"], "1: there is nothing to score an answer by"),
        ({}, ["--context", "text"], 'questions.jsonl:1: field "text" is missing'),
    ],
)
def test_what_leaves_no_file(change, more, message, server, tmp_path):
    record = {k: v for k, v in (RECORDS[0] | change).items() if v is not None}
    record |= {"text": "An article."} if "knowledge" in more else {}
    (tmp_path / "questions.jsonl").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=message):
        demonstrate.main(
            [
                str(tmp_path / "questions.jsonl"),
                str(tmp_path / "train.jsonl"),
                "--task",
                "science",
                "--url",
                server.url,
                "--server-model",
                "gpt",
                "--cache",
                str(tmp_path / "cache.jsonl"),
                *more,
            ]
        )
    assert not (tmp_path / "train.jsonl").exists() and len(server.asked) == (
        8 if message.startswith("no question") else 0
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--url http://127.0.0.1:9", "--url and --server-model go together"),
        (
            "--url http://127.0.0.1:9 --server-model gpt --temperature 0.5",
            "--temperature is only for --model",
        ),
        ("--model smollm2 --cache x", "--cache is only for --url"),
        ("--model smollm2 --temperature 0", "--temperature is 0.0; it must be above 0"),
        (
            "--url http://127.0.0.1:9 --server-model gpt --concurrency 0",
            "--concurrency is 0; it must be above 0",
        ),
        ("--model smollm2 --samples 0", "--samples is 0; it must be above 0"),
        ("--model smollm2 --url http://127.0.0.1:9", "not allowed with"),
    ],
)
def test_flags_that_would_not_be_read(flags, message, questions, tmp_path, capsys):
    with pytest.raises(SystemExit):
        demonstrate.main(
            [str(questions), str(tmp_path / "train.jsonl"), "--task", "science", *flags.split()]
        )
    assert message in capsys.readouterr().err
