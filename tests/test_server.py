"""The client of chat servers. Oracles: servers on this machine that answer as told, count who is
under way and write down what they were asked; messages and waits written out here.
"""

import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import KEY, serving

from support import server as client
from support.server import CUT, EMPTY, REFUSAL, THOUGHTS, Server, read_reply

pytest.importorskip("openai", reason="needs: pip install openai")

QUESTION = [{"role": "user", "content": "Is it?"}]


def error_body(message="", **more):
    return json.dumps({"error": {"message": message, "code": None, "type": None} | more}).encode()


def completion(content, end="stop", **more):
    choice = {"message": {"content": content} | more, "finish_reason": end}
    return json.dumps({"choices": [choice]}).encode()


@pytest.fixture
def crowd():
    """A server that answers in threads; crowd.answer(request, number under way) -> status, body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with here.lock:
                here.under_way += 1
                here.asked.append(request)
                here.most.append(here.under_way)
            time.sleep(0.03)  # so that others come meanwhile
            with here.lock:
                status, body = here.answer(request, here.under_way)
                here.under_way -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.lock, here.under_way, here.asked, here.most = threading.Lock(), 0, [], []
    here.url = f"http://127.0.0.1:{here.server_port}/v1"
    with serving(here):
        yield here


# ---- failures by name ----


@pytest.mark.parametrize(
    "status, body, message",
    [
        (  # llama-server
            400,
            error_body(
                "request (1200 tokens) exceeds the available context size (512 tokens)",
                type="exceed_context_size_error",
                n_prompt_tokens=1200,
                n_ctx=512,
            ),
            "HTTP 400 Bad Request .exceed_context_size_error., 1200 tokens for a context of 512. "
            "The prompt is longer than the server's context; enlarge it .llama-server: -c",
        ),
        (400, error_body(code="context_length_exceeded"), "The prompt is longer than"),  # OpenAI
        (400, error_body("This model's maximum context length is 9 tokens."), "is longer than"),
        (401, error_body(type="authentication_error"), "key is missing or wrong; set MY_KEY$"),
        (403, b"<html>", "HTTP 403 Forbidden. The key is missing or wrong; set MY_KEY$"),
        (404, error_body(code="model_not_found"), "no such address or model; .* --m gpt$"),
        (400, error_body("model 'gpt' does not exist"), "no such address or model; .* --m gpt$"),
        (400, error_body(type="odd_error"), r"Request \(odd_error\). Check .*, --m gpt and the k"),
        (400, error_body(type=KEY), "HTTP 400 Bad Request. Check "),
        (307, b"", "HTTP 307 Temporary Redirect. A redirect might take the key along"),
    ],
)
def test_refusals_name_their_cause_and_the_remedy(server, monkeypatch, status, body, message):
    monkeypatch.setenv("MY_KEY", KEY)
    server.script = [(status, {"Location": "http://localhost:9/"}, body)]
    asks = Server(server.url, "gpt", key_env="MY_KEY", flags=("--m", "--t"), sleep=pytest.fail)
    with pytest.raises(
        ValueError, match=f"^{server.url} refused the request: .*{message}"
    ) as error:
        asks.ask(QUESTION)
    assert KEY not in str(error.value) and len(server.asked) == 1


@pytest.mark.parametrize(
    "status, body, message",
    [
        (500, error_body("Context size has been exceeded."), "Error. The prompt is longer than"),
        (429, error_body(code="insufficient_quota"), "Requests. The account has no credit$"),
        (500, error_body(), "HTTP 500 Internal Server Error. Is it running[?]$"),
        (599, b"", "HTTP 599. Is it running[?]$"),
        (200, b"<html>", "no chat completion, but 6 bytes .*. Is it running[?]$"),
    ],
)
def test_failures_that_last_name_their_cause(server, status, body, message):
    server.reply = lambda _: (status, {}, body)
    asks = Server(server.url, attempts=2, remedy="Is it running?", sleep=lambda _: None)
    with pytest.raises(ValueError, match=f"in 2 attempts; the last one: .*{message}"):
        asks.ask(QUESTION)
    assert len(server.asked) == 2


def test_a_timeout_names_its_flag():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        asks = Server(url, timeout=0.05, attempts=1, flags=("--m", "--judge-timeout"))
        with pytest.raises(ValueError, match="timed out. Raise --judge-timeout, or ask a faster"):
            asks.ask(QUESTION)


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://999.1.1.1/v1"])
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match=f"^the address {re.escape(url)} "):
        Server(url)


# ---- what a reply is ----


@pytest.mark.parametrize(
    "body, text, lacks",
    [
        (completion("Yes."), "Yes.", None),
        (
            completion([{"type": "text", "text": "Y"}, {"type": "text", "text": "es."}]),
            "Yes.",
            None,
        ),
        (completion([{"type": "thinking", "thinking": []}, {"text": "Yes."}, 7]), "Yes.", None),
        (completion("Ye", "length"), "", CUT),
        (completion(None, "length", reasoning_content="Hm"), "", CUT),
        (completion(None, reasoning_content="Hm."), "", THOUGHTS),
        (completion("", reasoning="Hm."), "", THOUGHTS),
        (completion(None, refusal="I will not."), "", REFUSAL),
        (completion(None, "content_filter"), "", REFUSAL),
        (completion(None), "", EMPTY),
        (completion(" \n"), "", EMPTY),
        (completion([]), "", EMPTY),
        (completion({"text": "Yes."}), "", EMPTY),
    ],
)
def test_what_a_reply_lacks(body, text, lacks):
    assert read_reply(body) == (text, lacks)


# ---- a server that starts ----


def test_a_server_that_loads_is_waited_for(server, capsys):
    """Its 503 is no attempt; another 503 is one."""
    loading = (503, {}, error_body("Loading model", type="unavailable_error"))
    server.script, waits = [loading] * 5, []
    asks = Server(server.url, attempts=1, sleep=waits.append)
    assert asks.ask(QUESTION).text == "CORRECT" and waits == [2] * 5
    assert capsys.readouterr().err.count(f"waiting for {server.url}: HTTP 503 Service") == 1
    assert asks.concurrency == 4
    server.reply = lambda _: loading
    with pytest.raises(ValueError, match="gave no answer in 60 seconds: HTTP 503 .*unavailable_er"):
        asks.ask(QUESTION)
    assert sum(waits[5:]) == 60
    waits.clear()
    with pytest.raises(ValueError, match="gave no answer in 600 seconds: HTTP 503"):
        Server(server.url, attempts=1, sleep=waits.append).ask(QUESTION)
    assert sum(waits) == 600
    server.reply = lambda _: (503, {}, b"")
    with pytest.raises(ValueError, match="gave no answer in 1 attempts"):
        Server(server.url, attempts=1, sleep=pytest.fail).ask(QUESTION)


def test_a_closed_port_is_waited_for_until_the_server_has_answered_once(server):
    """The server's port opens while it is waited for; when it has answered and is gone, its
    absence is a failure as any other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    opened, waits = [], []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            late = ThreadingHTTPServer(("127.0.0.1", port), server.RequestHandlerClass)
            opened.append(serving(late))
            opened[0].__enter__()

    asks = Server(f"http://127.0.0.1:{port}/v1", attempts=2, sleep=sleep)
    assert asks.ask(QUESTION).text == "CORRECT" and waits == [2, 2, 2]
    opened[0].__exit__(None, None, None)
    asks.client.close()  # its connection outlives the port
    asks = Server(asks.url, attempts=2, sleep=waits.append)
    asks.has_answered = True
    with pytest.raises(ValueError, match="2 attempts; the last one: Connection refused"):
        asks.ask(QUESTION)
    assert waits[3:] == [1]
    with pytest.raises(ValueError, match="gave no answer in 60 seconds: Connection refused"):
        Server(asks.url, sleep=waits.append).ask(QUESTION)
    assert sum(waits[4:]) == 60


# ---- many requests at a time ----


@pytest.mark.parametrize("at_most", [1, 2, 4])
def test_a_5xx_lowers_the_number_of_requests_under_way(crowd, at_most, capsys):
    """A server whose context holds the prompts of `at_most` requests answers all of them."""

    def answer(request, under_way):
        if under_way > at_most:
            return 500, error_body("Context size has been exceeded.", type="server_error")
        return 200, completion(request["messages"][0]["content"])

    crowd.answer = answer
    asks = Server(crowd.url, attempts=4, sleep=lambda _: time.sleep(0.01))
    prompts = [[{"role": "user", "content": str(n)}] for n in range(16)]
    with ThreadPoolExecutor(4) as pool:
        assert [reply.text for reply in pool.map(asks.ask, prompts)] == [str(n) for n in range(16)]
    assert 1 <= asks.concurrency <= at_most and max(crowd.most) <= 4
    assert max(crowd.most[-6:]) <= at_most
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 - asks.concurrency
    assert all("HTTP 500 Internal Server Error (server_error); asking at most" in s for s in said)


def test_a_busy_server_keeps_its_number_of_requests(server):
    server.script = [(429, {}, b"")] * 2
    asks = Server(server.url, sleep=lambda _: None)
    assert asks.ask(QUESTION).text == "CORRECT" and asks.concurrency == 4


def test_waits_are_spread(monkeypatch):
    slept = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    for _ in range(50):
        client.sleep_about(8)
    assert min(slept) >= 8 and max(slept) <= 10 and max(slept) - min(slept) > 0.5
    assert Server("http://127.0.0.1:9").sleep is client.sleep_about


def test_a_refused_temperature_is_sent_no_more(crowd):
    """Four requests under way are refused at once, and each is answered without it."""
    refusal = error_body("'temperature' does not support 0 with this model", param="temperature")

    def answer(request, _):
        return (400, refusal) if "temperature" in request else (200, completion("Yes."))

    crowd.answer = answer
    asks = Server(crowd.url, temperature=0, sleep=pytest.fail)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(asks.ask, [QUESTION] * 8))
    assert [reply.text for reply in replies] == ["Yes."] * 8
    sent = [request.get("temperature") for request in crowd.asked]
    assert sent.count(None) == 8 and 1 <= sent.count(0) <= 4


# ---- the key, proxies ----


def test_loopback_needs_no_proxy_and_other_hosts_take_it(server, monkeypatch):
    monkeypatch.delenv("no_proxy")
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead)
    for host in ("127.0.0.1", "localhost"):
        url = server.url.replace("127.0.0.1", host)
        assert Server(url, sleep=pytest.fail).ask(QUESTION).text == "CORRECT"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, server.url.removesuffix("/v1"))
    Server("http://127.0.0.1.example.invalid/v1", sleep=pytest.fail).ask(QUESTION)
    assert server.asked[-1][0] == "http://127.0.0.1.example.invalid/v1/chat/completions"


def test_the_key_is_in_no_log_and_no_representation(server, caplog):
    caplog.set_level(logging.DEBUG)
    asks = Server(server.url, "gpt")
    asks.ask(QUESTION)
    assert "chat/completions" in caplog.text
    assert KEY not in caplog.text + repr(asks)
