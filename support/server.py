"""Ask a server with OpenAI's chat interface: requests, retries, and what a failure means.

    server = Server("http://127.0.0.1:8080/v1", "NAME")
    reply = server.ask([{"role": "user", "content": "Which organ makes bile?"}])
    reply.text, reply.lacks        # lacks: what the reply is if it has no text (CUT, …), else None

Needs the package `openai` (requirements-extras.txt). The key is read from an environment variable
and is written to no file and no message; a server may need none. Redirects are not followed, so
that the key goes to no other host. Loopback addresses are reached without a proxy.
"""

import http.client
import json
import os
import random
import re
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass

try:
    import httpx2
    import openai
except ImportError:  # optional: Server says what to install
    openai = None

MAX_REPLY_BYTES = 4 * 2**20
SHORTEST_KEY = 12  # anything shorter is a placeholder, such as EMPTY, and may be an ordinary word
LOOPBACK = r"https?://(localhost|127\.[\d.]+|\[::1\])(:|/|$)"
# seconds to wait for a server that starts, and for one that has answered before and starts again
STARTING = {"refused": 60, "loading": 600, "restarting": 60}
CUT = "cut at the server's length limit; raise it there (llama-server: -n and -c)"
THOUGHTS = "thoughts without an answer; switch them off (llama-server: --reasoning-budget 0)"
REFUSAL = "a refusal"
EMPTY = "no text"
ADVICE = {  # what servers call a failure: what it means, and what mends it
    "context.?(size|length|window)": "The prompt is longer than the server's context; enlarge it "
    "(llama-server: -c, which all -np slots share)",
    "HTTP 40[13]|api.?key": "The key is missing or wrong; set {key_env}",
    "HTTP 404|model.*(not.?found|not exist)": "There is no such address or model; check {url}, "
    "which must end before /chat/completions, and {model_flag} {model}",
    "HTTP 3": "A redirect might take the key along; name the address that it leads to",
    "insufficient_quota": "The account has no credit",
    "^timed out": "Raise {timeout_flag}, or ask a faster server",
}

Reply = namedtuple("Reply", "text lacks", defaults=[None])
# kind: final, broken, 5xx, temperature or a key of STARTING. called: what the server calls it; not
# shown, as it may repeat the key. wait: seconds, if the server names them
Failure = namedtuple("Failure", "kind reason called wait", defaults=["", None])


def sleep_about(seconds):
    """Sleep up to a quarter longer, so that requests that failed together come back apart."""
    time.sleep(seconds * random.uniform(1, 1.25))


@dataclass
class Server:
    """A server and how it is asked; ValueError for an address or a key that cannot be one."""

    url: str  # up to /v1
    model: str | None = None  # None: the server has a single one
    timeout: float = 120  # seconds for a whole reply
    attempts: int = 6  # of a request, after 1, 2, 4, … seconds, or after the server's Retry-After
    concurrency: int = 4  # most requests under way; each 5xx lowers it
    temperature: float | None = None  # None leaves it to the server
    key_env: str = "OPENAI_API_KEY"
    remedy: str = "Run the same command again later: what was answered already is kept"
    flags: tuple = ("--model", "--timeout")  # which messages name
    sleep: Callable = sleep_about

    def __post_init__(self):
        if openai is None:
            raise ValueError("a server is asked through the package openai; pip install -U openai")
        if not re.fullmatch(r"https?://[^\s?#@]+", self.url):
            shown = "" if "@" in self.url or "?" in self.url else f" {self.url}"  # a password?
            raise ValueError(
                f"the address{shown} must begin with http:// or https:// and hold no white space, "
                "user, password or query"
            )
        self.key = read_key(self.key_env)
        self.places, self.lock = threading.Semaphore(self.concurrency), threading.Lock()
        self.has_answered = False
        direct = re.match(LOOPBACK, self.url) is not None
        try:
            self.client = openai.OpenAI(
                base_url=self.url,
                api_key=self.key or "none",  # without a key no header is sent
                timeout=self.timeout,
                max_retries=0,
                http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=not direct),
            )
        except httpx2.InvalidURL as error:
            raise ValueError(f"the address {self.url} or that of a proxy: {error}") from None

    def ask(self, messages):
        """Chat turns -> Reply; ValueError with the cause and what mends it.

        Asks again after 429, 5xx, timeouts, broken connections and bodies that are no chat
        completion. Waits for a server that starts: it refuses connections, then loads its model.
        """
        attempt, waited = 0, 0
        while True:
            with self.places:
                result = self._request(messages)
            if isinstance(result, Reply):
                return result
            kind = result.kind
            if kind == "temperature":
                self.temperature = None  # reasoning models refuse one
            elif kind == "final":
                raise self._error("refused the request", result)
            elif kind in STARTING:
                if waited >= STARTING[kind]:
                    raise self._error(f"gave no answer in {waited} seconds", result)
                if waited == 0:
                    print(f"waiting for {self.url}: {result.reason}", file=sys.stderr)
                self.sleep(2)
                waited += 2
            else:
                attempt += 1
                if kind == "5xx":
                    self._lower_concurrency(result.reason)
                if attempt == self.attempts:
                    raise self._error(f"gave no answer in {attempt} attempts; the last one", result)
                self.sleep(result.wait or 2.0 ** (attempt - 1))

    def _request(self, messages):
        """One request -> Reply or Failure."""
        temperature = self.temperature
        try:
            with self.client.chat.completions.with_streaming_response.create(
                messages=messages,
                model=self.model or openai.omit,
                temperature=openai.omit if temperature is None else temperature,
                extra_headers={} if self.key else {"Authorization": openai.omit},
            ) as response:
                reply = read_reply(read_body(response.iter_bytes(), self.timeout))
        except openai.APIStatusError as error:
            if temperature is not None and "temperature" in str(error.body):
                return Failure("temperature", "")
            return read_status(error, self.key, self.has_answered)
        except (openai.APIConnectionError, httpx2.HTTPError, OSError, ValueError) as error:
            return read_break(error, self.has_answered)
        self.has_answered = True
        return reply._replace(text=redact(reply.text, self.key))

    def _lower_concurrency(self, reason):
        """Take a place away for good: some servers share their context among all requests."""
        with self.lock:
            if self.concurrency == 1:
                return
            self.concurrency -= 1
            message = f"{self.url}: {reason}; asking at most {self.concurrency} at a time"
            print(message, file=sys.stderr)
        self.places.acquire()

    def _error(self, what, failure):
        advice = self.remedy
        if failure.kind == "final":
            advice = "Check {url}, {model_flag} {model} and the key in {key_env}"
        for called, words in ADVICE.items():
            if re.search(called, f"{failure.reason} {failure.called}", re.IGNORECASE):
                advice = words
                break
        names = {"url": self.url, "model": self.model or "", "key_env": self.key_env}
        names |= {"model_flag": self.flags[0], "timeout_flag": self.flags[1]}
        message = f"{self.url} {what}: {failure.reason}. {advice.format(**names)}"
        return ValueError(redact(message, self.key))


def read_status(error, key, has_answered):
    """An openai.APIStatusError -> Failure."""
    status = error.status_code
    reason = f"HTTP {status} {http.client.responses.get(status, '')}".strip()
    if re.fullmatch("[a-z_]{3,60}", str(error.type)):  # such as exceed_context_size_error
        reason += f" ({error.type})"
    if isinstance(error.body, dict) and {"n_prompt_tokens", "n_ctx"} <= error.body.keys():
        reason += ", {n_prompt_tokens} tokens for a context of {n_ctx}".format(**error.body)
    kind = "5xx" if status >= 500 else "broken" if status == 429 else "final"
    if error.type == "unavailable_error":
        kind = "restarting" if has_answered else "loading"
    after = error.response.headers.get("retry-after", "")
    wait = min(float(after), 60.0) if re.fullmatch("[0-9]{1,9}", after) else None
    return Failure(kind, redact(reason, key), str(error.body)[:2000], wait)


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
        if isinstance(error, ConnectionRefusedError) and not has_answered:
            return Failure("refused", error.strerror)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
    return Failure("broken", reason)


def read_key(key_env):
    """The key in an environment variable, "" if there is none; ValueError for what no header holds.

    Without this check it would stand in a complaint about the header.
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
