"""Questions from articles. Oracles: samples/articles with fixtures/replies.jsonl, good questions
written by hand, of which a data set is a part or wrong; and a server that writes down who asked.
"""

import json
import random
import re
import subprocess
import sys
import threading
import time
import unicodedata
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import KEY, ROOT, serving

from config import Config
from data import load_splits, load_task
from scoring import score

sys.path.insert(0, str(ROOT / "extras"))

import journal  # noqa: E402
import questions  # noqa: E402

from support.server import CUT, THOUGHTS, Reply, Server  # noqa: E402

ARTICLES = ROOT / "samples" / "articles"
LINES = (ROOT / "tests" / "fixtures" / "replies.jsonl").read_text().splitlines()
REPLIES = {line["title"]: line["reply"] for line in map(json.loads, LINES)}
TITLE_OF = {json.dumps(reply): title for title, reply in REPLIES.items()}
SPLITS = {"train": 72, "validation": 24, "test": 48, "ood": 12}


def completion(content, **more):
    return json.dumps({"choices": [{"message": {"content": content}} | more]}).encode()


def send(handler, body, status=200, **headers):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def good(handler, title):
    send(handler, completion(json.dumps(REPLIES[title])))
    handler.server.answered.append(title)


@pytest.fixture
def teacher(monkeypatch):
    """A chat server that has read the articles: teacher.reply(number of the request) answers."""
    pytest.importorskip("openai", reason="needs: pip install openai")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            [turn] = asked["messages"]
            title = " | ".join(re.findall(r"\[Article \d\]\n(.+)", turn["content"]))
            with here.lock:
                number = len(here.asked)
                here.asked.append(title)
            here.reply(number)(self, title)

        def log_message(self, *_):
            pass

    here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.lock, here.asked, here.answered = threading.Lock(), [], []
    here.reply, here.handle_error = lambda number: good, lambda *_: None
    here.url = f"http://127.0.0.1:{here.server_port}/v1"
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(journal, "Server", partial(Server, sleep=lambda _: None))
    with serving(here):
        yield here


def command(server, data, *more):
    where = ["--url", server.url, "--model", "strong", "--questions-per-article", "4"]
    return [str(ARTICLES), "--output", str(data), *where, *more]


def attempt(server, data, *more):
    """Whether the command reached its end; an error must be one line, and is no traceback."""
    try:
        questions.main(command(server, data, *more))
    except SystemExit as end:
        assert re.match("error: |\nstopped", end.code) and KEY not in end.code
        return False
    return True


def records(data):
    """{split: [(question, demonstration, key facts)]} of a data set, read by data.py."""
    read = {split: load_task("knowledge", split, data) for split in SPLITS}
    return {
        split: [(e.messages[-1]["content"], e.demonstration, e.key_facts) for e in examples]
        for split, examples in read.items()
    }


GOOD = [
    (wording, item["answer"], item["key_facts"])
    for reply in REPLIES.values()
    for item in reply
    for wording in item["wordings"]
]


# ---- the whole path ----


def test_from_articles_to_a_data_set(teacher, tmp_path, capsys):
    questions.main(command(teacher, tmp_path / "data"))
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert "36 questions (train 72, validation 24, test 48, ood 12)" in last_line
    assert last_line.count(" 0 ") == len(questions.DROPPED)
    found = records(tmp_path / "data")
    assert {split: len(rows) for split, rows in found.items()} == SPLITS
    assert sorted(sum(found.values(), [])) == sorted(GOOD)
    first = [facts for _, _, facts in found["train"][:24]]
    assert len({str(facts) for facts in first}) == 24, "each fact once, before any second wording"
    # what a run reads, and what it scores
    read = load_splits(Config(task="knowledge", data=str(tmp_path / "data")))
    for example in read.train + read.validation + sum(read.reports.values(), []):
        assert score(example.demonstration, example)["correct"]
        assert score(example.text, example)["correct"]
    assert sorted(teacher.asked) == sorted(REPLIES)


def test_the_same_command_asks_nothing_and_writes_the_same(teacher, tmp_path):
    questions.main(command(teacher, tmp_path))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    questions.main(command(teacher, tmp_path))
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(teacher.asked) == len(REPLIES)
    (tmp_path / "replies.jsonl").unlink()
    with pytest.raises(SystemExit, match="has another data set"):
        questions.main(command(teacher, tmp_path))


def test_a_local_model(tiny_folder, tmp_path, monkeypatch, capsys):
    """A random one: none of its four replies is JSON, and none is counted as anything else."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("A short text.")
    monkeypatch.setattr(questions, "PROMPT", "Ask.")
    monkeypatch.setattr(questions, "LOCAL_TOKENS", 8)
    with pytest.raises(SystemExit, match="no data set was written.* 4 replies without JSON; 0 q"):
        folder = str(tmp_path)
        questions.main([folder, "--output", folder + "/data", "--local", str(tiny_folder)])
    assert "small local model makes poor questions" in capsys.readouterr().out


def test_the_lines_of_the_docs_that_ask_a_model(tiny_folder, capsys):
    text = (ROOT / "docs" / "your-documents.md").read_text()
    [code] = re.findall("```python\n(.+?)```", text, flags=re.DOTALL)
    exec(code.replace("runs/my-articles/last", str(tiny_folder)), {})
    assert capsys.readouterr().out


# ---- kills ----


def test_no_question_is_asked_twice_and_none_is_lost(teacher, tmp_path, monkeypatch):
    """26 stops: the server is gone after n replies, or Ctrl-C comes at the n-th question."""

    def hang_up(handler, title):
        handler.close_connection = True

    class Interrupted(Server):
        def ask(self, messages):
            started.append(1)
            if len(started) > n:
                raise KeyboardInterrupt
            return super().ask(messages)

    once = partial(Server, attempts=1)
    for n in range(13):
        teacher.asked.clear(), teacher.answered.clear()
        monkeypatch.setattr(journal, "Server", once)
        teacher.reply = lambda number, n=n: good if number < n else hang_up
        assert attempt(teacher, tmp_path / f"gone-{n}") == (n == 12)
        teacher.reply = lambda number: good
        assert attempt(teacher, tmp_path / f"gone-{n}")
        assert sorted(teacher.answered) == sorted(REPLIES)

        teacher.answered.clear()
        started = []
        monkeypatch.setattr(journal, "Server", partial(Interrupted, attempts=1))
        assert attempt(teacher, tmp_path / f"interrupted-{n}") == (n == 12)
        monkeypatch.setattr(journal, "Server", once)
        assert attempt(teacher, tmp_path / f"interrupted-{n}")
        assert sorted(teacher.answered) == sorted(REPLIES)
        assert records(tmp_path / f"gone-{n}") == records(tmp_path / f"interrupted-{n}")


def test_twenty_kills(teacher, tmp_path):
    """SIGKILL at random moments: what stands in the journal is never asked for again."""

    def slow(handler, title):
        time.sleep(0.02)
        good(handler, title)

    draw, kills, n, teacher.reply = random.Random(0), 0, 0, lambda number: slow
    while kills < 20:
        data, kept = tmp_path / f"data-{n}", []
        while not (data / "ood.jsonl").exists():
            teacher.asked.clear()
            call = [sys.executable, ROOT / "extras" / "questions.py", *command(teacher, data)]
            process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while not teacher.asked and process.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.08))
            kills += process.poll() is None
            process.kill()
            assert b"Traceback" not in process.communicate()[1]
            assert not set(teacher.asked) & set(kept)
            kept = in_journal(data)
            assert len(kept) == len(set(kept))
        questions.main(command(teacher, data))
        assert sorted(sum(records(data).values(), [])) == sorted(GOOD)
        n += 1


def in_journal(data):
    """The titles of the whole lines of a journal."""
    journal = data / "replies.jsonl"
    text = journal.read_text() if journal.exists() else ""
    return [TITLE_OF[json.loads(line)["reply"]] for line in text.split("\n")[:-1]]


# ---- hostile replies ----


def cut(handler, title):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(completion(json.dumps(REPLIES[title]))[:300])
    handler.close_connection = True


def trickle(handler, title):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(20):
        time.sleep(0.1)
        handler.wfile.write(b" ")
        handler.wfile.flush()


def late(handler, title):
    time.sleep(1)
    handler.close_connection = True


def raw(text):
    def answer(handler, title):
        handler.wfile.write(text)
        handler.close_connection = True

    return answer


def with_status(status, **headers):
    return lambda handler, title: send(handler, KEY.encode(), status, **headers)


def body(text):
    return lambda handler, title: send(handler, text)


def changed(**changes):
    """The right reply, but for the fields named."""

    def answer(handler, title):
        send(handler, completion(json.dumps([item | changes for item in REPLIES[title]])))

    return answer


def says(content, **more):
    return body(completion(content, **more))


FOR_A_WHILE = [  # asked again, and may be answered then
    *(cut, trickle, late, raw(b""), raw(KEY.encode() * 9 + b"\r\n\r\n")),
    raw(f"HTTP/1.1 500 {KEY}\r\nContent-Length: 0\r\n\r\n".encode()),
    *(with_status(429), with_status(429, Retry_After="²"), with_status(503, Retry_After="9" * 99)),
    *(body(b"<html>" + KEY.encode()), body(b"x" * 5_000_000), body(b"[" * 100_000), body(b"")),
    *(body("{'ä'}".encode("latin-1")), body(completion("[]").decode().encode("utf-16-le")[1:])),
    *(body(b'{"choices": []}'), body(b'{"choices": [7]}'), body(b'{"choices": [{"message": 1}]}')),
]
FOR_GOOD = [  # a reply, of which nothing can be kept
    *(says(None), says([{}]), says("[]", finish_reason="length"), says("I would rather not.")),
    *(says("[" * 100_000 + "]"), says('[1, null, [], {}, {"wordings": {}}]'), says("{}")),
    says("[" + "9" * 5000 + "]"),
    says(json.dumps([{"wordings": [f"{KEY} {i}?" for i in range(6)], "answer": KEY}])),
    *(changed(answer=None), changed(answer="Nobody knows."), changed(answer="\udc00")),
    *(changed(key_facts=facts) for facts in ([], [[]], [[" "]], "owl", [["dragon"]], [["\0"]], {})),
    changed(answer="A dragon.", key_facts=[["dragon"]]),
    *(changed(wordings=w) for w in ("Why?", [], [""], [1], ["Why?", "Why?", "why"], {"Why?": 1})),
    changed(wordings=["A\ud800?", "B?", "C?", "D?"]),
]
STOPS = [with_status(401), with_status(404), with_status(400)]


def test_two_hundred_hostile_replies(teacher, server, tmp_path, monkeypatch, capsys):
    """No traceback, no wrong record, and the key nowhere; `server` is the other host."""
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    stops = [*STOPS, with_status(302, Location=elsewhere), with_status(307, Location=elsewhere)]
    draw, hostile = random.Random(1), []

    def reply(number):
        kinds = draw.choices([[good], FOR_A_WHILE, FOR_GOOD, stops], weights=[10, 6, 6, 1])[0]
        kind = draw.choice(kinds)
        hostile.append(kind) if kind is not good else None
        return kind

    reached = []
    quick = partial(Server, attempts=3, sleep=lambda _: None)
    monkeypatch.setattr(journal, "Server", quick)
    monkeypatch.setattr(server, "verify_request", lambda *_: reached.append(1) or True)
    teacher.reply, n, written = reply, 0, 0
    while len(hostile) < 200 or not written:
        data = tmp_path / f"data-{n // 8}"
        n += 1
        if attempt(teacher, data, "--timeout", "0.4"):
            found = sum(records(data).values(), [])
            assert found and all(record in GOOD for record in found)
            written += 1
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, *(f.read_text() for f in tmp_path.rglob("*.*l"))):
        assert KEY not in text and "Traceback" not in text
    assert reached == [] and len(list(tmp_path.rglob("*.jsonl"))) > 4


@pytest.mark.parametrize("kind", [*FOR_A_WHILE, *FOR_GOOD])
def test_each_hostile_reply_alone(teacher, tmp_path, monkeypatch, kind):
    """It comes first, and then the server is well: the rest of the data set is right."""
    monkeypatch.setattr(journal, "Server", partial(Server, sleep=lambda _: None))
    teacher.reply = lambda number: kind if number == 0 else good
    assert attempt(teacher, tmp_path, "--timeout", "0.4")
    found = sum(records(tmp_path).values(), [])
    if kind in FOR_A_WHILE:
        assert sorted(found) == sorted(GOOD)
    else:
        [lost] = set(REPLIES) - set(teacher.answered)
        rest = [row for row in GOOD if not any(row[0] in i["wordings"] for i in REPLIES[lost])]
        assert sorted(found) == sorted(rest)
    assert KEY not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize("kind", FOR_A_WHILE)
def test_a_server_that_stays_hostile_ends_the_run_with_one_line(
    teacher, tmp_path, monkeypatch, kind
):
    """`attempt` looks for the key in it. Nothing was answered, so nothing is kept."""
    monkeypatch.setattr(journal, "Server", partial(Server, attempts=1))
    teacher.reply = lambda number: kind
    assert not attempt(teacher, tmp_path, "--timeout", "0.4")
    assert in_journal(tmp_path) == []


def test_the_key_in_escapes(teacher, tmp_path):
    """A server repeats it in a question, so that only the decoded JSON holds it."""
    escaped = "".join(f"\\u{ord(letter):04X}" for letter in KEY)

    def answer(handler, title):
        text = json.dumps(REPLIES[title]).replace("Who ", f"{escaped}, who ")
        send(handler, completion(text))

    teacher.reply = lambda number: answer
    assert attempt(teacher, tmp_path)
    text = "".join(file.read_text() for file in tmp_path.iterdir())
    assert "[key], who designed" in text and KEY not in text


# ---- the parts ----

ONE, TWO = {"wordings": ["Who?"], "answer": "A"}, {"wordings": ["What, and [who]?"], "n": 2}
BOTH = json.dumps([ONE, TWO])


@pytest.mark.parametrize(
    "text, items, broken",
    [
        (BOTH, [ONE, TWO], 0),
        (json.dumps(ONE), [ONE], 0),
        (f"{json.dumps(ONE)}\n\n{json.dumps(TWO, indent=1)}\n", [ONE, TWO], 0),
        (BOTH[:-1] + ",\n]", [ONE, TWO], 0),
        (BOTH.replace('["Who?"]', '["Who?", ]'), [ONE, TWO], 0),
        (
            "For [Article 1]:\n```json\n" + BOTH + "\n```\nAs there [sic], {so} it is.",
            [ONE, TWO],
            0,
        ),
        (json.dumps({"questions": [ONE, TWO]}), [ONE, TWO], 0),
        (json.dumps({"questions": [ONE], "notes": []}), [{"questions": [ONE], "notes": []}], 0),
        (BOTH.replace('"A"', "A"), [TWO], 1),
        (BOTH[:-20], [ONE], 1),
        ("[]", [], 0),
        ("None.", [], 0),
        ('{"a":' * 100_000, [], 100),
        ("{" * 100_000, [], 0),
        ("[" * 100_000, [], 0),
    ],
)
def test_json_in_a_reply(text, items, broken):
    assert questions.read_items(text) == (items, broken)


def test_thoughts_and_replies_without_text_are_not_read():
    good = {"wordings": WORDINGS, "answer": "A dentist.", "key_facts": [["dentist"]]}
    other = json.dumps(good | {"wordings": ["A?", "B?", "C?"]})
    texts = [f"<think>{other}</think>[{json.dumps(good)}]", "Sorry.", '{"wordings": }']
    replies = [Reply(text) for text in texts] + [Reply("", CUT), Reply("", THOUGHTS)]
    kept, dropped = questions.keep_questions([([PASSAGE], 1, 3)] * len(replies), replies)
    assert [wordings for _, _, wordings in kept] == [WORDINGS]
    assert dropped == {"json": 2, "shape": 1, CUT: 1, THOUGHTS: 1}


def test_after_the_limit_was_raised_the_same_command_asks_again(teacher, tmp_path, capsys):
    teacher.reply = lambda number: says("[{", finish_reason="length") if number < 2 else good
    questions.main(command(teacher, tmp_path, "--concurrency", "1"))
    assert "dropped: 2 replies cut at the length limit" in capsys.readouterr().out
    questions.main(command(teacher, tmp_path, "--concurrency", "1"))
    assert len(teacher.asked) == len(REPLIES) + 2
    assert sorted(sum(records(tmp_path).values(), [])) == sorted(GOOD)


PASSAGE = questions.Passage(
    "clock", "The Corvane clock\n\nA dentist built it. An owl tells the hour."
)
OTHER = questions.Passage("garden", "The Ambry garden\n\nA boxer planted it.")
WORDINGS = ["Who built it?", "By whom was it built?", "Who made it?"]


@pytest.mark.parametrize(
    "change, kept, dropped",
    [
        ({}, 3, {}),
        ({"key_facts": [["a surgeon", "a dentist"]]}, 3, {}),
        ({"key_facts": [["dent"]]}, 0, {"fact": 1}),
        ({"key_facts": [["dentist"], ["owl"]]}, 0, {"fact": 1}),  # the answer has no owl
        ({"answer": "A surgeon."}, 0, {"fact": 1}),
        ({"answer": "A surgeon.", "key_facts": [["surgeon"]]}, 0, {"fact": 1}),
        ({"answer": 7}, 0, {"shape": 1}),
        ({"wordings": "Who built it?"}, 0, {"shape": 1}),
        ({"wordings": WORDINGS[:2]}, 0, {"few": 1}),
        ({"wordings": [*WORDINGS, "who BUILT it"]}, 3, {"duplicate": 1}),
        ({"wordings": [*WORDINGS, "Seen before?"]}, 3, {"duplicate": 1}),
        ({"wordings": [*WORDINGS, "?"]}, 3, {"duplicate": 1}),
        ({"wordings": [*WORDINGS, "Did a dentist build it?"]}, 3, {"given": 1}),
        ({"wordings": [*WORDINGS[:2], "Did a dentist?"]}, 0, {"given": 1, "few": 1}),
    ],
)
def test_check_item(change, kept, dropped):
    item = {"wordings": WORDINGS, "answer": "A dentist.", "key_facts": [["dentist"]]} | change
    wordings, counts = questions.check_item(item, [PASSAGE], 3, {"seen before"})
    assert wordings == list(item["wordings"])[:kept] and counts == dropped


def test_two_articles_are_both_needed():
    item = {"wordings": ["Who built the one and planted the other?"]}
    item |= {"answer": "A dentist and a boxer.", "key_facts": [["dentist"], ["boxer"]]}
    both = [PASSAGE, OTHER]
    assert questions.check_item(item, both, 1, set()) == (item["wordings"], {})
    item["key_facts"] = [["dentist"]]
    assert questions.check_item(item, both, 1, set()) == ([], {"fact": 1})


@pytest.mark.parametrize(
    "n, shares", [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (6, (3, 1, 2))]
)
def test_wordings_are_shared_out(n, shares):
    item = {"answer": "A dentist.", "key_facts": [["dentist"]]}
    splits = questions.make_splits([([PASSAGE], item, [f"{i}?" for i in range(n)])])
    names = [
        [r["prompt"][1]["content"] for r in splits[s]] for s in ("train", "validation", "test")
    ]
    assert tuple(map(len, names)) == shares and sum(names, []) == [f"{i}?" for i in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_passages_keep_every_word_and_the_limit(seed):
    draw = random.Random(seed)
    sentences = [" ".join(["word"] * draw.randint(1, 60)) + "." for _ in range(80)]
    text = "".join(s + draw.choice([" ", "\n", "\n\n", "\n \n"]) for s in sentences)
    passages = questions.cut_passages(text, 52)
    assert " ".join(passages).split() == text.split()
    assert max(len(passage.split()) for passage in passages) <= 40
    short = questions.cut_passages("One two.\n\nThree four.\n\nFive six.", 5.2)
    assert short == ["One two.\n\nThree four.", "Five six."]


def test_what_is_no_article_is_named(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\ufeffA text\n\nwith two paragraphs.", encoding="utf-8")
    (tmp_path / "b_c.MD").write_bytes("# Die Brücke\r\n\r\nEin Text.".encode())
    (tmp_path / "latin.txt").write_bytes("Brücke".encode("latin-1"))
    (tmp_path / "empty.md").write_text("# Only a title\n")
    (tmp_path / "nul.md").write_text("a\0b")
    (tmp_path / "paper.pdf").write_text("text")
    (tmp_path / "folder.md").mkdir()
    articles = questions.read_articles(tmp_path, 300)
    texts = [[passage.text for passage in passages] for passages in articles]
    assert texts == [["a\n\nA text\n\nwith two paragraphs."], ["Die Brücke\n\nEin Text."]]
    printed = capsys.readouterr().out
    named = re.findall("skipped '(.+)': .+", printed)
    assert named == ["empty.md", "folder.md", "latin.txt", "nul.md", "paper.pdf"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--key-env", "sk-a-key-typed-here"], "must name an environment variable that is set"),
        (["--passage-tokens", "20"], "--passage-tokens must be at least 50"),
        (["--questions-per-article", "0"], "above 0"),
        (["--local", "smollm2"], "not allowed with"),
    ],
)
def test_flags_that_are_refused(teacher, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        questions.main(command(teacher, tmp_path, *more))
    printed = capsys.readouterr().err
    assert message in printed and "typed-here" not in printed and teacher.asked == []


def test_folders_that_are_refused(teacher, tmp_path):
    only = ["--output", str(tmp_path / "data"), "--url", teacher.url, "--model", "strong"]
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        questions.main([str(tmp_path / "nowhere"), *only])
    (tmp_path / "a.txt").write_text("One short text.")
    with pytest.raises(SystemExit, match="1 article in one passage"):
        questions.main([str(tmp_path), *only])


@pytest.mark.parametrize(
    "sentence",
    [
        "灯塔建于一九〇三年，由渔民看守。",
        "とうだいは1903ねんにたてられました。",
        "ประภาคารสร้างเมื่อปี",
        "ប្រទីបបានសាងសង់",
    ],
)
@pytest.mark.parametrize("between", ["", " ", "\n\n"])
def test_articles_without_blanks_are_cut_at_characters(sentence, between):
    """Nothing is lost, each passage keeps the limit, and no mark stands at the start of one."""
    text = between.join([sentence] * 40)
    passages = questions.cut_passages(text, 50)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert len(passages) > 1 and all(20 < len(passage) <= 60 for passage in passages[:-1])
    assert not any(unicodedata.category(passage[0]).startswith("M") for passage in passages)
    if sentence.endswith("。"):  # whole sentences, where they fit
        assert all(passage.endswith("。") for passage in passages)


def test_a_long_word_with_blanks_is_never_cut():
    assert questions.cut_passages("a" * 500 + " b", 50) == ["a" * 500 + " b"]


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("谁建了灯塔？", "谁建了灯塔?", True),
        ("谁建了灯塔？", "谁拆了灯塔？", False),
        ("दिल कहाँ है?", "दाल कहाँ है?", False),  # two words that differ in a vowel sign
        ("Who painted it?", "WHO painted it", True),
    ],
)
def test_wordings_are_compared_in_any_script(one, other, same):
    assert (questions.plain_words(one) == questions.plain_words(other)) is same
