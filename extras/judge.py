"""Score answers with a judge model, as the paper does for medical and knowledge.

    OPENAI_API_KEY=... python sdft.py --task medical --data FOLDER \\
        --judge https://api.openai.com/v1 --judge-model gpt-5-mini
    python eval.py --model runs/knowledge/best --task knowledge --json answers.json
    python extras/judge.py answers.json --task knowledge --url http://127.0.0.1:8080/v1 --model NAME
    python extras/judge.py answers.json --task knowledge --local DIR

sdft.py, baselines.py and eval.py load this file for --judge; as a command it scores stored answers.
A judge is any OpenAI-compatible server, which sees questions, references and answers. With --local
a model judges in this process, greedily, and nothing leaves the machine. The key is read from
OPENAI_API_KEY and is written to no file, message or command line; redirects are refused, so that
the key goes to no other host. The command keeps replies in --cache: an interrupted run resumes, and
a second run costs nothing. It counts a reply without a verdict as unparsable, never as right. The
prompt is ours, after the paper's description; the paper's judge is GPT-5-mini.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of data.py

from data import Example, encode_prompt, load_task
from scoring import final_answer

INSTRUCTIONS = {
    "medical": """Compare a model's response to a medical question with the reference answer.

CORRECT: the response contains the key medical information of the reference answer, \
even if it is phrased differently or adds more correct detail.
INCORRECT: the response is wrong, or misses the main point of the reference answer.

Output ONLY one of: "CORRECT" or "INCORRECT".""",
    "knowledge": """Compare a model's response to a question with the reference answer.

CORRECT: the response contains all the key information of the reference answer, \
even if it is phrased differently, and nothing that contradicts it.
PARTIALLY_CORRECT: the response contains most of the key information of the reference answer, \
but misses some details.
INCORRECT: the response is wrong, or misses the main point of the reference answer.

Output ONLY one of: "CORRECT", "PARTIALLY_CORRECT" or "INCORRECT".""",
}
VERDICTS = {
    "medical": ["CORRECT", "INCORRECT"],
    "knowledge": ["CORRECT", "PARTIALLY_CORRECT", "INCORRECT"],
}
QUESTION = {"medical": "[Medical Question]", "knowledge": "[Question]"}


# ---- the prompt and the verdict ----


def judge_prompt(task, example, answer):
    """What the judge reads, without the answer's thoughts.

    The reference is the example's `reference` or, without one, its demonstration.
    """
    reference = getattr(example, "reference", None) or example.demonstration
    if reference is None:
        raise ValueError(
            f'{example.source}: neither "reference" nor "demonstration"; a judge needs one to '
            "compare with"
        )
    # joined, never .format: answers contain curly braces
    return "\n\n".join(
        [
            INSTRUCTIONS[task],
            QUESTION[task] + "\n" + example.messages[-1]["content"],
            "[Reference Answer]\n" + reference,
            "[Model Response]\n" + final_answer(answer),
        ]
    )


def parse_verdict(reply, task):
    """The verdict that a reply has as a word of its own, in capitals.

    None if it has none, two different ones, or a qualified one. Thoughts are not read.
    Traps: INCORRECT ends with CORRECT, PARTIALLY_CORRECT contains it (neither has a word boundary
    before it), and "not CORRECT" or "PARTIALLY CORRECT" mean something else.
    """
    verdict, reply = "|".join(VERDICTS[task]), final_answer(reply)
    found = re.findall(rf"(?:([\w'’]+)[\s*\"'“-]+)?\b({verdict})\b", reply)
    qualified = any(
        before.casefold()
        in ("not", "never", "neither", "nor", "hardly", "partially", "partly", "mostly")
        or before.casefold().endswith(("n't", "n’t"))
        for before, _ in found
    )
    verdicts = {verdict for _, verdict in found}
    return verdicts.pop() if len(verdicts) == 1 and not qualified else None


def summarise(verdicts, task):
    """n, and the shares of correct (strict), lenient, incorrect and unparsable.

    Knowledge alone has lenient: CORRECT or PARTIALLY_CORRECT.
    """
    n = len(verdicts)
    share = {word: verdicts.count(word) / n for word in VERDICTS[task] + [None]}
    lenient = (
        {"lenient": share["CORRECT"] + share["PARTIALLY_CORRECT"]} if task == "knowledge" else {}
    )
    return {
        "n": n,
        "correct": share["CORRECT"],
        **lenient,
        "incorrect": share["INCORRECT"],
        "unparsable": share[None],
    }


# ---- the judge as a scorer, in training and in eval.py ----

WORKERS = 4  # requests at a time
ASKED = 3  # times for one answer, until a reply has a verdict
GIVE_UP = 4  # failed answers of one evaluation, each after retries: the others are not asked about
WAITING = {"timeout": 60, "attempts": 4, "remedy": "Is the judge's server running?"}


def judge_scorer(task, examples, url, model=None):
    """scorer(examples, answers) -> a dict of booleans for each answer, as scoring.py has them.

    {"correct", "not_judged": False}, of knowledge with "lenient"; {"not_judged": True} where the
    judge failed. Raises ValueError unless an example question shows that the judge can judge, and
    each example has a reference.
    """
    if task not in VERDICTS:
        judged = " and ".join(VERDICTS)
        raise ValueError(f"--judge scores {judged}, whose reference is text; --task is {task}")
    for example in examples:
        judge_prompt(task, example, "")
    check_judge(task, url, model)
    return partial(judge_answers, task, url, model, {})


def check_judge(task, url, model):
    """ValueError with a remedy unless the judge calls a right answer CORRECT."""
    turns = [{"role": "user", "content": "Which organ pumps blood through the body?"}]
    example = Example("probe", task, turns, reference="The heart pumps blood through the body.")
    prompt = judge_prompt(task, example, "It is the heart.")
    try:
        reply = ask_server(url, model, [{"role": "user", "content": prompt}], **WAITING)
    except ValueError as error:
        raise ValueError(f"--judge: {error}") from None
    if parse_verdict(reply, task) != "CORRECT":
        said = f"{url} was asked about a right answer and said {final_answer(reply)[-60:]!r}"
        raise ValueError(f"--judge: {said}, not CORRECT. Name another --judge-model")


def judge_answers(task, url, model, verdicts, examples, answers):
    """The scorer itself; it keeps verdicts {prompt: verdict}, and asks about no answer twice."""
    pairs = zip(examples, answers, strict=True)
    prompts = [judge_prompt(task, example, answer.text) for example, answer in pairs]
    new, failures = [prompt for prompt in dict.fromkeys(prompts) if prompt not in verdicts], []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        asked = pool.map(partial(ask_verdict, task, url, model, failures), new)
        found = list(tqdm(asked, total=len(new), desc="judging", leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits only for what was asked already
    verdicts |= {prompt: verdict for prompt, verdict in zip(new, found, strict=True) if verdict}
    if None in found:
        why = failures[0] if failures else f"its replies have no verdict, {ASKED} times each"
        tqdm.write(f"judge: {found.count(None)} of {len(new)} answers not judged: {why}")
    return [verdict_scores(task, verdicts.get(prompt)) for prompt in prompts]


def ask_verdict(task, url, model, failures, prompt):
    """A verdict, or None; failures is where all requests of an evaluation note their errors."""
    for _ in range(ASKED):
        if len(failures) >= GIVE_UP:
            return None
        try:
            reply = ask_server(url, model, [{"role": "user", "content": prompt}], **WAITING)
        except ValueError as error:
            failures.append(str(error))
            return None
        if verdict := parse_verdict(reply, task):
            return verdict
    return None


def verdict_scores(task, verdict):
    if verdict is None:
        return {"not_judged": True}
    scores = {"correct": verdict == "CORRECT"}
    if task == "knowledge":
        scores["lenient"] = verdict != "INCORRECT"
    return scores | {"not_judged": False}


# ---- asking a server ----


MAX_REPLY_BYTES = 4 * 2**20
SHORTEST_KEY = 12  # anything shorter is a placeholder, such as EMPTY, and may be an ordinary word


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # an error: urllib would send the key to the new host


def ask_server(
    url,
    model,
    messages,
    timeout=120,
    attempts=6,
    sleep=time.sleep,
    key_env="OPENAI_API_KEY",
    remedy="Run the same command again later: what was answered already is kept",
):
    """The reply of an OpenAI-compatible server to chat turns -> str, "" if it is cut or no text.

    429, 5xx, timeouts, broken connections and bodies that are no chat completion are tried again
    after 1, 2, 4, … seconds, or after the server's Retry-After, of at most a minute. No temperature
    is sent: reasoning models refuse one. model None is for servers with a single model. Raises
    ValueError that says what to check; no key is in it, and none in the reply.
    """
    check_url(url)
    key = read_key(key_env)
    named = {} if model is None else {"model": model}
    body = json.dumps(named | {"messages": messages}).encode()
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Bearer " + key
    request = urllib.request.Request(
        url.rstrip("/") + "/chat/completions", data=body, headers=headers
    )
    opener = urllib.request.build_opener(NoRedirects)
    for attempt in range(attempts):
        wait = 2.0**attempt
        try:
            with opener.open(request, timeout=timeout) as response:
                reply = read_reply(read_body(response, timeout))
            return redact(reply, key)
        except urllib.error.HTTPError as error:
            error.close()
            # neither its phrase nor its body, which may repeat the key
            reason = f"HTTP {error.code} {http.client.responses.get(error.code, '')}".strip()
            if error.code != 429 and error.code < 500:
                raise ValueError(
                    f"{url} refused the request: {reason}. Check the address, the name of the "
                    f"model ({model}) and the key in {key_env}"
                ) from None
            if re.fullmatch("[0-9]{1,9}", error.headers.get("Retry-After") or ""):
                wait = min(float(error.headers["Retry-After"]), 60.0)
        except http.client.HTTPException as error:
            reason = type(error).__name__  # its text may be what the server sent
        except (OSError, ValueError) as error:  # URLError and TimeoutError are OSErrors
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt + 1 < attempts:
            sleep(wait)
    what = f"{url} gave no answer in {attempts} attempts; the last one: {reason}"
    raise ValueError(f"{what}. {remedy}")


def check_url(url):
    if not re.fullmatch(r"https?://[^\s?#@]+", url):
        shown = "" if "@" in url or "?" in url else f" {url}"  # it may hold a password
        raise ValueError(
            f"the address{shown} must begin with http:// or https:// and hold no white space, "
            "user, password or query"
        )


def read_key(key_env):
    """The key in an environment variable, "" if there is none; ValueError for what no header holds.

    http.client would print such a key whole in its own complaint.
    """
    key = os.environ.get(key_env, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise ValueError(f"{key_env} holds white space or a character outside ASCII; set it again")
    return key


def redact(reply, key):
    """The reply without the key, should a server repeat it, be it in JSON's escapes."""
    if len(key) < SHORTEST_KEY:
        return reply
    forms = (rf"(?:{re.escape(c)}|\\u{ord(c):04x}|\\{re.escape(c)})" for c in key)
    return re.sub("".join(forms), "[key]", reply, flags=re.IGNORECASE)


def read_body(response, seconds):
    """The whole body; OSError for one that is too long, or takes longer however it trickles."""
    deadline, body = time.monotonic() + seconds, b""
    while chunk := response.read1(65536):
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise OSError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
    return body


def read_reply(body):
    """choices[0].message.content of a chat completion; "" if it is null (a refusal) or was cut."""
    try:
        choice = json.loads(body)["choices"][0]
        content, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # not the body, which may repeat the key
        raise ValueError(
            f"it sent no chat completion, but {len(body)} bytes of something else; is this the "
            "address in front of /chat/completions?"
        ) from None
    return content if isinstance(content, str) and not cut else ""


# ---- the cache: one JSON object a line ----


def cache_key(asked, prompt):
    return hashlib.sha256(json.dumps([asked, prompt]).encode()).hexdigest()


def read_cache(file):
    """{key: reply}. A last line without an end, left by a killed run, is cut off the file."""
    if not file.exists():
        return {}
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(file, len(whole))  # writing it anew could be killed half-way
    replies = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            replies[record["key"]] = record["reply"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(
                f"{file}:{number}: not a line of a cache of replies; remove the line, or the file"
            ) from None
    return replies


def ask_all(prompts, asked, ask, cache_file, workers=1, description=None):
    """Replies to the prompts, from the cache or by ask(prompt) -> list of str.

    Each different prompt, a string or a list of chat turns, is asked once. `asked` names who
    answers, so that the cache never gives one judge's replies for another's. description stands
    before a progress bar; None: no bar.
    """
    replies = read_cache(cache_file)
    keys = [cache_key(asked, prompt) for prompt in prompts]
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in replies}
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(missing), desc=description, disable=description is None, leave=False)
    pool = ThreadPoolExecutor(workers)
    key_of = {pool.submit(ask, prompt): key for key, prompt in missing.items()}
    with bar, open(cache_file, "a", encoding="utf-8", buffering=1) as cache:
        try:
            for future in as_completed(key_of):
                future.result()  # an error in one stops them all
                _keep(future, key_of, asked, replies, cache)
                bar.update()
        finally:
            # those under way are waited for: what was answered is never lost
            pool.shutdown(cancel_futures=True)
            for future in key_of:
                if not future.cancelled() and future.exception() is None:
                    _keep(future, key_of, asked, replies, cache)
    return [replies[key] for key in keys]


def _keep(future, key_of, asked, replies, cache):
    """Append an answer to the cache, once."""
    key = key_of[future]
    if key not in replies:
        replies[key] = future.result()
        cache.write(json.dumps({"key": key, "asked": asked, "reply": replies[key]}) + "\n")


# ---- asking a model in this process ----


def load_to_sample(name):
    """(model, tokenizer) for sampling alone: in bfloat16 on a GPU, in float32 on a CPU."""
    from models import best_device, load_model  # here: a judge on a server needs neither

    device = best_device()
    return load_model(name, device, "bfloat16" if device == "cuda" else "float32")


def local_model(name, max_new_tokens):
    """(name for the cache, ask) for a model; the name changes when the weights in its folder are
    written anew. ask takes a string or a list of chat turns.
    """
    # imported here: a server needs none of it
    from eval import answer_greedily

    model, tokenizer = load_to_sample(name)
    changed = max((file.stat().st_mtime_ns for file in Path(name).glob("*.safetensors")), default=0)

    def ask(prompt):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = encode_prompt(tokenizer, turns)
        return answer_greedily(model, tokenizer, [ids], max_new_tokens)[0].text

    return f"{Path(name).resolve() if changed else name} {changed} greedy {max_new_tokens}", ask


# ---- the command ----


def read_answers(file, examples):
    """[(example, answer)] from what `python eval.py --json FILE` wrote."""
    try:
        answers = [
            (record["id"], record["answer"])
            for record in json.loads(file.read_text(encoding="utf-8"))["answers"]
        ]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(
            f'{file} has no "answers"; write it with: python eval.py --model DIR --task NAME '
            f"--json {file}"
        ) from None
    by_id = {example.id: example for example in examples}
    for id, _ in answers:
        if id not in by_id:
            raise ValueError(
                f'{file}: id "{id}" is no example of this --task, --split and --data; give '
                "those that eval.py had"
            )
    if not answers:
        raise ValueError(f"{file}: there is no answer in it")
    return [(by_id[id], answer) for id, answer in answers]


def main(argv=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("answers", type=Path, help="file that eval.py --json wrote")
    add("--task", required=True, choices=VERDICTS)
    add("--split", default="test", help="as given to eval.py (default: %(default)s)")
    add("--data", help="as given to eval.py")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="address of an OpenAI-compatible server, up to /v1")
    where.add_argument("--local", metavar="MODEL", help="folder, hub id or smollm2: judges here")
    add("--model", help="name of the judge on the server; only with --url")
    add(
        "--workers",
        type=int,
        default=4,
        help="requests at a time; a local judge has one (default: %(default)s)",
    )
    add("--cache", type=Path, default=Path("runs/judge-cache.jsonl"), help="(default: %(default)s)")
    add("--json", type=Path, help="also write summary, verdicts and replies to this file")
    args = parser.parse_args(argv)
    if (args.url is None) != (args.model is None):
        parser.error("--url and --model go together: a server, and the name of the judge there")
    try:
        pairs = read_answers(args.answers, load_task(args.task, args.split, args.data))
        prompts = [judge_prompt(args.task, example, answer) for example, answer in pairs]
        if args.url:
            judge, workers = f"{args.url} {args.model}", args.workers

            def ask(prompt):
                return ask_server(args.url, args.model, [{"role": "user", "content": prompt}])
        else:
            (judge, ask), workers = local_model(args.local, max_new_tokens=16), 1
        replies = ask_all(prompts, judge, ask, args.cache, workers)
    except ValueError as error:
        sys.exit(f"error: {error}")
    verdicts = [parse_verdict(reply, args.task) for reply in replies]
    summary = summarise(verdicts, args.task)
    print(f"{args.task} {args.split}, judged by {args.model or args.local}")
    print(
        "     n"
        + "".join(
            f"{'strict' if name == 'correct' else name:>12}" for name in summary if name != "n"
        )
    )
    print(
        f"{summary['n']:>6}"
        + "".join(f"{share:>12.1%}" for name, share in summary.items() if name != "n")
    )
    if args.json:
        rows = [
            {"id": example.id, "verdict": verdict, "reply": reply}
            for (example, _), verdict, reply in zip(pairs, verdicts, replies, strict=True)
        ]
        record = {
            "judge": args.model or args.local,
            "task": args.task,
            "split": args.split,
            "summary": summary,
            "verdicts": rows,
        }
        args.json.write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
