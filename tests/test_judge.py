"""The judge. Oracles: verdicts read by hand; a server on this machine that answers as told and
writes down what it was asked.
"""

import json
import sys
import time

import pytest
from conftest import KEY, ROOT

from data import Example, load_task
from support import server as client
from support.judge import judge_prompt, parse_verdict
from support.server import CUT, EMPTY, MAX_REPLY_BYTES, Reply, Server, read_body, read_reply

sys.path.insert(0, str(ROOT / "extras"))

import journal
import judge

QUESTION = [{"role": "user", "content": "Is it?"}]
needs_openai = pytest.mark.skipif(client.openai is None, reason="needs: pip install openai")


def ask_server(url, model, messages, **how):
    return Server(url, model, **how).ask(messages).text


def ask_all(prompts, asked, ask, file, workers=1):
    """The texts of journal.ask_all's replies."""
    replies = journal.ask_all(prompts, asked, lambda prompt: Reply(ask(prompt)), file, workers)
    return [reply.text for reply in replies]


@pytest.mark.parametrize(
    "reply, knowledge, medical",
    [
        ("CORRECT", "CORRECT", "CORRECT"),
        ("INCORRECT", "INCORRECT", "INCORRECT"),
        (
            "PARTIALLY_CORRECT",
            "PARTIALLY_CORRECT",
            None,
        ),  # no verdict of the medical judge, and least of all CORRECT
        ('"CORRECT".', "CORRECT", "CORRECT"),
        ("**INCORRECT**\n", "INCORRECT", "INCORRECT"),
        ("Verdict: CORRECT. I repeat: CORRECT", "CORRECT", "CORRECT"),
        ("CORRECT or INCORRECT", None, None),
        ("CORRECT, or at least PARTIALLY_CORRECT", None, "CORRECT"),
        ("The response is not CORRECT.", None, None),
        ("It isn't CORRECT", None, None),
        ("PARTIALLY CORRECT", None, None),
        ("partially-CORRECT", None, None),
        ("The correct answer is missing.", None, None),
        ("CORRECTLY", None, None),
        ("<think>INCORRECT? Not CORRECT?</think>CORRECT", "CORRECT", "CORRECT"),
        ("<think>It is CORRECT", None, None),
        ("XCORRECT", None, None),
        ("", None, None),
    ],
)
def test_parse_verdict(reply, knowledge, medical):
    assert (parse_verdict(reply, "knowledge"), parse_verdict(reply, "medical")) == (
        knowledge,
        medical,
    )


def test_summary_counts_an_unparsable_reply_as_not_right():
    verdicts = ["CORRECT", "PARTIALLY_CORRECT", "INCORRECT", None]
    assert judge.summarise(verdicts, "knowledge") == {
        "n": 4,
        "correct": 0.25,
        "lenient": 0.5,
        "incorrect": 0.25,
        "unparsable": 0.25,
    }
    assert judge.summarise(["CORRECT", "CORRECT", "INCORRECT", None], "medical") == {
        "n": 4,
        "correct": 0.5,
        "incorrect": 0.25,
        "unparsable": 0.25,
    }


def test_prompts():
    example = Example(
        "q", "knowledge", [{"role": "user", "content": "Why {this}?"}], "the demonstration"
    )
    assert judge_prompt("knowledge", example, "{answer}").endswith(
        "\n\n[Question]\nWhy {this}?\n\n[Reference Answer]\nthe demonstration\n\n"
        "[Model Response]\n{answer}"
    )
    example.reference = "the reference"
    prompt = judge_prompt("medical", example, "a")
    assert "\n\n[Medical Question]\nWhy {this}?\n\n[Reference Answer]\nthe reference\n\n" in prompt
    assert 'Output ONLY one of: "CORRECT" or "INCORRECT".' in prompt and "PARTIALLY" not in prompt
    with pytest.raises(ValueError, match="my.jsonl:3: neither"):
        judge_prompt(
            "medical",
            Example("q", "medical", [{"role": "user", "content": "?"}], source="my.jsonl:3"),
            "a",
        )


def test_ask_server_sends_the_turns_and_the_key(server, monkeypatch):
    assert ask_server(server.url + "/", "gpt", QUESTION) == "CORRECT"
    assert server.asked == [
        ("/v1/chat/completions", f"Bearer {KEY}", {"model": "gpt", "messages": QUESTION})
    ]
    monkeypatch.delenv("OPENAI_API_KEY")
    server.script = [(200, {}, None)]
    assert ask_server(server.url, "gpt", QUESTION) == "" and server.asked[-1][1] is None


def test_busy_broken_and_silent_servers_are_asked_again(server):
    waits = []
    server.script = [
        (429, {"Retry-After": "7"}, ""),
        (500, {}, ""),
        "hang up",
        (503, {"Retry-After": "900"}, ""),
    ]
    assert ask_server(server.url, "gpt", QUESTION, sleep=waits.append) == "CORRECT"
    assert waits == [7, 2, 4, 60] and len(server.asked) == 5
    server.script = [(429, {}, "")] * 3
    with pytest.raises(ValueError, match="no answer in 3 attempts; the last one: HTTP 429"):
        ask_server(server.url, "gpt", QUESTION, attempts=3, sleep=waits.append)
    assert waits[4:] == [1, 2]


@needs_openai
def test_a_timeout_is_asked_again(monkeypatch):
    """The port listens, and nobody answers."""
    import socket

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        waits = []
        with pytest.raises(ValueError, match="no answer in 2 attempts; the last one: .*timed out"):
            ask_server(
                f"http://127.0.0.1:{listening.getsockname()[1]}",
                "gpt",
                QUESTION,
                timeout=0.05,
                attempts=2,
                sleep=waits.append,
            )
    assert waits == [1]


@pytest.mark.parametrize(
    "answer, message",
    [
        ((401, {}, ""), "refused the request: HTTP 401"),
        ((404, {}, ""), "refused the request: HTTP 404"),
        ((302, {"Location": "/elsewhere"}, ""), "refused the request: HTTP 302"),
    ],
)
def test_refusals_are_asked_once_and_never_show_the_key(server, answer, message):
    server.script = [answer]
    with pytest.raises(ValueError, match=message) as error:
        ask_server(server.url, "gpt", QUESTION, sleep=pytest.fail)
    assert len(server.asked) == 1 and KEY not in str(error.value)


@pytest.mark.parametrize("key", ["sk-secret\nx", "sk-sécret", "sk secret"])
def test_a_key_that_no_header_holds_is_not_printed(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds") as error:
        ask_server(server.url, "gpt", QUESTION)
    assert "sk" not in str(error.value) and server.asked == []


@needs_openai
def test_other_bodies_and_schemes_are_errors():
    for body in (
        b'{"choices": [{"message": {"content": "CORRECT"}, "finish_reason": "length"}]}',
        b'{"choices": [{"message": {"content": null}}]}',
    ):
        assert read_reply(body).text == ""
    others = [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}']
    for body in (*others, b"[" * 99999, b"\xff\xfe\x00"):
        with pytest.raises(ValueError, match="sent no chat completion"):
            read_reply(body)
    for url in ("file:///etc", "http://me:secret@127.0.0.1", "http://127.0.0.1/?key=secret"):
        with pytest.raises(ValueError, match="must begin with http") as error:
            ask_server(url, "gpt", QUESTION)
        assert "secret" not in str(error.value)


def test_cache(tmp_path):
    """Each different prompt is asked once in all, another judge is asked anew, and a line cut by a
    kill is asked again.
    """
    asked, cache = [], tmp_path / "deep" / "cache.jsonl"

    def ask(prompt):
        asked.append(prompt)
        return f"reply to {prompt}"

    assert ask_all(["a", "b", "a"], "gpt", ask, cache) == [
        "reply to a",
        "reply to b",
        "reply to a",
    ] and asked == ["a", "b"]
    assert ask_all(["b", "c"], "gpt", ask, cache, workers=3) == [
        "reply to b",
        "reply to c",
    ] and asked == ["a", "b", "c"]
    ask_all(["a"], "another", ask, cache)
    assert asked == ["a", "b", "c", "a"]
    whole = cache.read_text()
    cache.write_text(whole[:-5])
    ask_all(["a"], "another", ask, cache)
    assert asked == ["a", "b", "c", "a", "a"] and cache.read_text() == whole
    cache.write_text("{}\n" + whole)
    with pytest.raises(ValueError, match="cache.jsonl:1: not a line of a journal of replies"):
        ask_all(["a"], "gpt", ask, cache)


def test_what_was_judged_before_an_error_is_kept(tmp_path):
    """Also what the other workers were being told when it happened."""
    asked = []

    def ask(prompt):
        asked.append(prompt)
        if prompt == "c" and asked.count("c") == 1:
            raise ValueError("no answer")
        return f"reply to {prompt}"

    with pytest.raises(ValueError, match="no answer"):
        ask_all(list("abcdef"), "gpt", ask, tmp_path / "cache.jsonl", workers=3)
    assert ask_all(list("abcdef"), "gpt", ask, tmp_path / "cache.jsonl") == [
        f"reply to {prompt}" for prompt in "abcdef"
    ]
    assert sorted(asked) == list("abccdef")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_reply_without_text_is_asked_for_again(tmp_path, workers, capsys):
    """Neither a new journal keeps it, nor does an old one count in which "" stands for it."""
    lacking, asked, file = {"b": Reply("", CUT), "c": Reply("", EMPTY)}, [], tmp_path / "j.jsonl"

    def ask(prompt):
        asked.append(prompt)
        return lacking.get(prompt, Reply(f"reply to {prompt}"))

    replies = journal.ask_all(list("abbc"), "gpt", ask, file, workers)
    assert replies == [Reply("reply to a"), Reply("", CUT), Reply("", CUT), Reply("", EMPTY)]
    said = capsys.readouterr().out.splitlines()
    assert said == [f"2 of 4 replies: {CUT}", f"1 of 4 replies: {EMPTY}"]
    [line] = file.read_text().splitlines()
    record = json.loads(line)
    assert record["reply"] == "reply to a"
    lacking.clear()
    file.write_text(json.dumps(record | {"reply": ""}) + "\n")
    assert ask_texts(list("abc"), ask, file) == ["reply to a", "reply to b", "reply to c"]
    assert sorted(asked) == list("aabbcc")


def ask_texts(prompts, ask, file):
    return [reply.text for reply in journal.ask_all(prompts, "gpt", ask, file)]


def test_a_server_that_repeats_the_key_does_not_get_it_printed(server, monkeypatch):
    """In the text of a reply it is replaced; a placeholder such as "none" stays a word."""
    server.script = [(200, {}, f"CORRECT {KEY}")]
    assert ask_server(server.url, "gpt", QUESTION) == "CORRECT [key]"
    monkeypatch.setenv("ANOTHER", "none")
    server.script = [(200, {}, "none")]
    assert ask_server(server.url, "gpt", QUESTION, key_env="ANOTHER") == "none"
    assert server.asked[-1][1] == "Bearer none"


def test_a_reply_without_end_is_given_up(server):
    server.script = [(200, {}, "x" * (MAX_REPLY_BYTES + 1))]
    with pytest.raises(ValueError, match=f"longer than {MAX_REPLY_BYTES} bytes"):
        ask_server(server.url, "gpt", QUESTION, attempts=1)


def test_a_reply_that_trickles_is_given_up():
    """The timeout of a socket begins anew at each byte."""

    def trickle():
        while True:
            time.sleep(0.02)
            yield bytes(2**18)

    with pytest.raises(TimeoutError):
        read_body(trickle(), seconds=0.05)


@pytest.fixture
def answers(tmp_path):
    """Answers to the first four knowledge questions, as eval.py writes them."""
    file = tmp_path / "answers.json"
    examples = load_task("knowledge", "test")[:4]
    file.write_text(
        json.dumps(
            {
                "answers": [
                    {"id": example.id, "answer": f"answer {i}"}
                    for i, example in enumerate(examples)
                ]
            }
        )
    )
    return file


def test_command_line(server, answers, tmp_path, capsys):
    server.script = [
        (200, {}, verdict)
        for verdict in ("CORRECT", "CORRECT", "PARTIALLY_CORRECT", "INCORRECT", "Hm.")
    ]
    command = [
        str(answers),
        "--task",
        "knowledge",
        "--url",
        server.url,
        "--model",
        "gpt",
        "--concurrency",
        "1",
        "--cache",
        str(tmp_path / "cache.jsonl"),
        "--json",
        str(tmp_path / "verdicts.json"),
    ]
    judge.main(command)
    judge.main(command)
    assert len(server.asked) == 5, "the second run reads the cache"
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["n", "strict", "lenient", "incorrect", "unparsable"] and printed[
        2
    ].split() == ["4", "25.0%", "50.0%", "25.0%", "25.0%"]
    record = json.loads((tmp_path / "verdicts.json").read_text())
    assert [row["verdict"] for row in record["verdicts"]] == [
        "CORRECT",
        "PARTIALLY_CORRECT",
        "INCORRECT",
        None,
    ] and record["summary"]["n"] == 4
    example = load_task("knowledge", "test")[3]
    first = server.asked[0][2]["messages"][0]["content"]
    assert "Which organ pumps blood" in first and "It is the heart." in first
    assert server.asked[4][2]["messages"][0]["content"] == judge_prompt(
        "knowledge", example, "answer 3"
    )
    assert not any(
        KEY in file.read_text() for file in tmp_path.glob("*.json*")
    ) and KEY not in "".join(printed)


def test_paths(server, answers, tmp_path, monkeypatch):
    """~ is the home folder, a new folder is made, and a file that cannot be written stops it before
    anything is asked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    command = f"~/answers.json --task knowledge --url {server.url} --model gpt --cache ~/c.jsonl"
    judge.main([*command.split(), "--json", "~/new/v.json"])
    assert json.loads((tmp_path / "new/v.json").read_text())["summary"]["correct"] == 1
    assert (tmp_path / "c.jsonl").exists()
    server.asked.clear()
    for other in (tmp_path / "new", tmp_path / "answers.json" / "v.json"):
        with pytest.raises(SystemExit, match="^error: "):
            judge.main([*command.split(), "--json", str(other), "--cache", "~/d.jsonl"])
    assert server.asked == []


def test_local_judge(tiny_folder, answers, tmp_path, capsys):
    """A random model says no verdict: four unparsable replies, none of them right."""
    command = [
        str(answers),
        "--task",
        "knowledge",
        "--local",
        str(tiny_folder),
        "--cache",
        str(tmp_path / "cache.jsonl"),
    ]
    with pytest.raises(SystemExit):
        judge.main(command + ["--model", "gpt"])
    judge.main(command)
    printed = capsys.readouterr().out
    assert "warning: asked about a right answer, the judge said" in printed
    assert printed.splitlines()[-1].split() == [
        "4",
        "0.0%",
        "0.0%",
        "0.0%",
        "100.0%",
    ]
    assert len(journal.read_journal(tmp_path / "cache.jsonl")) == 5


def test_answers_of_other_questions_are_refused(answers, tmp_path):
    command = [
        "--task",
        "knowledge",
        "--url",
        "http://127.0.0.1:9",
        "--model",
        "gpt",
        "--cache",
        str(tmp_path / "cache.jsonl"),
    ]
    with pytest.raises(SystemExit, match="is no example of this --task, --split and --data"):
        judge.main([str(answers), "--split", "ood"] + command)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match="none.json does not exist; write it with: python eval.py"):
        judge.main([str(tmp_path / "none.json")] + command)
    with pytest.raises(SystemExit, match='other.json has no "answers"'):
        judge.main([str(tmp_path / "other.json")] + command)
