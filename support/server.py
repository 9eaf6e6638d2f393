"""Ask a server with OpenAI's chat interface: requests, retries, and what a failure means.

    server = Server("http://127.0.0.1:8080/v1", "NAME")
    reply = server.ask([{"role": "user", "content": "Which organ makes bile?"}])
    reply.text, reply.lacks        # lacks: what the reply is if it has no text (CUT, …), else None

Needs the package `openai` (requirements-extras.txt). The key is read from an environment variable
and is written to no file and no message; a server may need none. Redirects are not followed, so
that the key goes to no other host. Loopback addresses are reached without a proxy.
"""

import http.client
import ipaddress
import json
import os
import random
import re
import sys
import threading
import time
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

try:
    import httpx2
    import openai
except ImportError:  # optional: Server says what to install
    openai = None

CONCURRENCY = 4  # requests at a time
MAX_REPLY_BYTES = 4 * 2**20
SHORTEST_KEY = 12  # anything shorter is a placeholder, such as EMPTY, and may be an ordinary word
STARTING = {"refused": 60, "loading": 600}  # seconds to wait for a server that starts
LATER = "Run the same command again later: what was answered already is kept"
CUT = "cut at the server's length limit; raise it there (llama-server: -n and -c)"
THOUGHTS = "thoughts without an answer; switch them off (llama-server: --reasoning-budget 0)"
REFUSAL = "a refusal"
EMPTY = "no text"
CAUSES = [  # what servers call it; what it means; what mends it
    (
        "context.?(size|length|window)",
        ", the prompt exceeds the server's context",
        "Start the server with a longer one (llama-server: -c, which its -np slots share)",
    ),
    ("HTTP 40[13]|api.?key", ", the key is missing or wrong", "Set the key in {key_env}"),
    (
        "HTTP 404|model.*(not.?found|not exist)",
        ", there is no such address or model",
        "Check {url}, which must end before /chat/completions, and {model_flag} {model}",
    ),
    ("HTTP 3", ", a redirect, which might take the key along", "Name the address it leads to"),
    ("insufficient_quota", ", the account has no credit", "Add some, or name another server"),
    ("^timed out", "", "Raise {timeout_flag}, or ask a faster server"),
]

Reply = namedtuple("Reply", "text lacks", defaults=[None])


def sleep_about(seconds):
    """Sleep up to a quarter longer, so that requests that failed together come back apart."""
    time.sleep(seconds * random.uniform(1, 1.25))


@dataclass
class Failure:
    """A request without a reply."""

    kind: str  # final, broken, 5xx, or a key of STARTING
    reason: str  # for the message
    called: str = ""  # what the server calls it: never shown, as it may repeat the key
    wait: float | None = None  # seconds, if the server names them


class Server:
    """A server at a URL, up to /v1, and a model there; model None is for servers with one model.

    timeout        seconds for a whole reply
    attempts       of a request, with pauses of 1, 2, 4, … seconds, or of the server's Retry-After
    concurrency    most requests under way; each 5xx lowers it
    temperature    None leaves it to the server; 0 is taken back if the server refuses it
    remedy         what messages advise where the cause names none
    flags          what the caller's user sets model and timeout with
    """

    def __init__(
        self,
        url,
        model=None,
        *,
        timeout=120,
        attempts=6,
        concurrency=CONCURRENCY,
        temperature=None,
        remedy=LATER,
        flags=("--model", "--timeout"),
        key_env="OPENAI_API_KEY",
        sleep=sleep_about,
    ):
        if openai is None:
            raise ValueError("a server is asked through the package openai; pip install -U openai")
        check_url(url)
        self.url, self.model, self.timeout, self.attempts = url, model, timeout, attempts
        self.temperature, self.remedy, self.sleep = temperature, remedy, sleep
        self.words = {"url": url, "model": model or "", "key_env": key_env}
        self.words |= {"model_flag": flags[0], "timeout_flag": flags[1]}
        self.key = read_key(key_env)
        self.limit, self.under_way, self.changed = concurrency, 0, threading.Condition()
        self.has_answered = False
        http_client = openai.DefaultHttpxClient(
            follow_redirects=False, trust_env=not is_loopback(url)
        )
        self.client = openai.OpenAI(
            base_url=url,
            api_key=self.key or "none",  # without a key no header is sent
            timeout=timeout,
            max_retries=0,
            http_client=http_client,
        )

    def ask(self, messages):
        """Chat turns -> Reply. Raises ValueError that names the cause and what mends it.

        Asks again after 429, 5xx, timeouts, broken connections and bodies that are no chat
        completion, and waits for a server that starts (STARTING).
        """
        attempt, waited = 0, 0
        while True:
            try:
                with self._place():
                    return self._request(messages)
            except openai.APIStatusError as error:
                if self._drop_temperature(error):
                    continue
                failure = read_status(error, self.key)
            except (openai.APIConnectionError, httpx2.HTTPError, OSError, ValueError) as error:
                failure = read_break(error, self.has_answered)
            if failure.kind == "final":
                raise self._error("refused the request", failure)
            if failure.kind in STARTING:
                if waited >= STARTING[failure.kind]:
                    raise self._error(f"gave no answer in {waited} seconds", failure)
                if waited == 0:
                    print(f"waiting for {self.url}: {failure.reason}", file=sys.stderr)
                self.sleep(2)
                waited += 2
                continue
            if failure.kind == "5xx":
                self._lower_limit(failure)
            attempt += 1
            if attempt == self.attempts:
                raise self._error(f"gave no answer in {attempt} attempts; the last one", failure)
            self.sleep(failure.wait or 2.0 ** (attempt - 1))

    @contextmanager
    def _place(self):
        """Wait until fewer requests than the limit are under way, and be one of them."""
        with self.changed:
            self.changed.wait_for(lambda: self.under_way < self.limit)
            self.under_way += 1
        try:
            yield
        finally:
            with self.changed:
                self.under_way -= 1
                self.changed.notify_all()

    def _lower_limit(self, failure):
        """One request fewer at a time: some servers share their memory among all of them."""
        with self.changed:
            if self.limit > 1:
                self.limit -= 1
                print(
                    f"{self.url}: {failure.reason}; asking at most {self.limit} at a time",
                    file=sys.stderr,
                )

    def _request(self, messages):
        create = self.client.chat.completions.with_streaming_response.create
        with create(
            messages=messages,
            model=self.model or openai.omit,
            temperature=openai.omit if self.temperature is None else self.temperature,
            extra_headers={} if self.key else {"Authorization": openai.omit},
        ) as response:
            reply = read_reply(read_body(response.iter_bytes(), self.timeout))
        self.has_answered = True
        return reply._replace(text=redact(reply.text, self.key))

    def _drop_temperature(self, error):
        """Whether the server refuses the temperature; it is then sent no more."""
        refused = self.temperature is not None and error.status_code in (400, 422)
        if refused and "temperature" in f"{error.param} {error.message}":
            self.temperature = None
            return True
        return False

    def _error(self, what, failure):
        """ValueError with the cause, by the server's own name for it, and the remedy."""
        meaning, remedy = "", self.remedy
        if failure.kind == "final":
            remedy = "Check {url}, {model_flag} {model} and the key in {key_env}"
        for pattern, cause, mend in CAUSES:
            if re.search(pattern, f"{failure.reason} {failure.called}", re.IGNORECASE):
                meaning, remedy = cause, mend
                break
        message = f"{self.url} {what}: {failure.reason}{meaning}. {remedy.format(**self.words)}"
        return ValueError(redact(message, self.key))


def read_status(error, key):
    """An openai.APIStatusError -> Failure."""
    status = error.status_code
    reason = f"HTTP {status} {http.client.responses.get(status, '')}".strip()
    # of its text only the numbers and a name such as exceed_context_size_error are shown
    body = error.body if isinstance(error.body, dict) else {}
    if re.fullmatch("[a-z_]{3,60}", str(error.type)):
        reason += f" ({error.type})"
    sizes = [body.get("n_prompt_tokens"), body.get("n_ctx")]
    if all(type(size) is int for size in sizes):
        reason += ", {} tokens for a context of {}".format(*sizes)
    kind = "broken" if status == 429 else "5xx" if status >= 500 else "final"
    kind = "loading" if error.type == "unavailable_error" else kind
    after = error.response.headers.get("retry-after", "")
    wait = min(float(after), 60.0) if re.fullmatch("[0-9]{1,9}", after) else None
    called = f"{error.type} {error.code} {error.message}"
    return Failure(kind, redact(reason, key), called[:2000], wait)


def read_break(error, has_answered):
    """A connection that failed, or a body that is none -> Failure.

    Its reason is the system's or ours: other texts may repeat what the server sent.
    """
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError)):
        return Failure("broken", "timed out")
    if isinstance(error, (OSError, ValueError)):
        return Failure("broken", str(error))
    reason = type(error.__cause__ or error).__name__
    while error := error.__cause__ or error.__context__:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
            if isinstance(error, ConnectionRefusedError) and not has_answered:
                return Failure("refused", reason)
    return Failure("broken", reason)


def check_url(url):
    if not re.fullmatch(r"https?://[^\s?#@]+", url):
        shown = "" if "@" in url or "?" in url else f" {url}"  # it may hold a password
        raise ValueError(
            f"the address{shown} must begin with http:// or https:// and hold no white space, "
            "user, password or query"
        )


def is_loopback(url):
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(key_env):
    """The key in an environment variable, "" if there is none; ValueError for what no header holds.

    Without the check it would stand in a complaint about the header.
    """
    key = os.environ.get(key_env, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise ValueError(f"{key_env} holds white space or a character outside ASCII; set it again")
    return key


def redact(text, key):
    """The text without the key, should a server repeat it, be it in JSON's escapes."""
    if len(key) < SHORTEST_KEY:
        return text
    forms = (rf"(?:{re.escape(c)}|\\u{ord(c):04x}|\\{re.escape(c)})" for c in key)
    return re.sub("".join(forms), "[key]", text, flags=re.IGNORECASE)


def read_body(chunks, seconds):
    """The whole body; OSError for one that is too long, or takes longer however it trickles."""
    deadline, body = time.monotonic() + seconds, b""
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise OSError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
    return body


def read_reply(body):
    """A chat completion -> Reply with choices[0].message.content, a string or a list of parts."""
    try:
        choice = json.loads(body)["choices"][0]
        message, end = choice["message"], choice.get("finish_reason")
        content = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # not the body, which may repeat the key
        raise ValueError(
            f"it sent no chat completion, but {len(body)} bytes of something else; is this the "
            "address in front of /chat/completions?"
        ) from None
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if end == "length":
        return Reply("", CUT)
    if isinstance(content, str) and content.strip():
        return Reply(content)
    if message.get("refusal") or end == "content_filter":
        return Reply("", REFUSAL)
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    return Reply("", THOUGHTS if thoughts else EMPTY)
