"""Ask a model many prompts, on a server or in this process; its replies are kept in a journal.

The journal has one JSON object a line: {"key": hash of who is asked and the prompt, "asked",
"reply"}. An interrupted command continues from it, and asks nothing twice. A reply without text,
such as one cut at the server's length limit, is not kept: the next run asks again.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of data.py

from support.chat import encode_prompt
from support.server import Reply, Server

KEY_ENV = "OPENAI_API_KEY"


def read_journal(file):
    """{key: text}. A last line without an end, left by a killed run, is cut off the file."""
    if not file.exists():
        return {}
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(file, len(whole))  # writing it anew could be killed half-way
    texts = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            texts[record["key"]] = record["reply"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(
                f"{file}:{number}: not a line of a journal of replies; remove the line, or the file"
            ) from None
    return {key: text for key, text in texts.items() if text}


def ask_all(prompts, asked, ask, file, workers=1, description=None):
    """Replies to the prompts, from the journal or by ask(prompt) -> list of Reply.

    Each different prompt, a string or a list of chat turns, is asked once. `asked` names who
    answers, so that one judge's replies are never given for another's. description stands before
    a progress bar; None: no bar.
    """
    replies = {key: Reply(text) for key, text in read_journal(file).items()}
    keys = [hashlib.sha256(json.dumps([asked, p]).encode()).hexdigest() for p in prompts]
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in replies}
    lock, pool = threading.Lock(), ThreadPoolExecutor(workers)
    bar = tqdm(total=len(missing), desc=description, disable=description is None, leave=False)

    def ask_one(key, prompt):
        reply = ask(prompt)
        with lock:
            replies[key] = reply
            if not reply.lacks:
                journal.write(json.dumps({"key": key, "asked": asked, "reply": reply.text}) + "\n")
            bar.update()

    file.parent.mkdir(parents=True, exist_ok=True)
    with bar, open(file, "a", encoding="utf-8", buffering=1) as journal:
        try:
            for key in list(missing)[:1]:
                # in this thread, where Ctrl-C ends the wait for a server that starts
                ask_one(key, missing.pop(key))
            futures = [pool.submit(ask_one, key, prompt) for key, prompt in missing.items()]
            for future in as_completed(futures):
                future.result()  # an error in one stops them all
        finally:
            # those under way are waited for: what was answered is never lost
            pool.shutdown(cancel_futures=True)
    replies = [replies[key] for key in keys]
    for lacks, n in Counter(reply.lacks for reply in replies if reply.lacks).items():
        print(f"{n} of {len(replies)} replies: {lacks}", flush=True)
    return replies


# ---- a model in this process ----


def load_to_sample(name):
    """(model, tokenizer) for sampling alone: in bfloat16 on a GPU, in float32 on a CPU."""
    from support.models import best_device, load_model  # here: a server needs neither

    device = best_device()
    return load_model(name, device, "bfloat16" if device == "cuda" else "float32")


def local_model(name, max_new_tokens):
    """(name for the journal, ask); the name changes when the weights in its folder do."""
    from eval import answer_greedily  # here: a server needs none of it

    model, tokenizer = load_to_sample(name)
    changed = max((file.stat().st_mtime_ns for file in Path(name).glob("*.safetensors")), default=0)

    def ask(turns):
        ids = encode_prompt(tokenizer, turns)
        return Reply(answer_greedily(model, tokenizer, [ids], max_new_tokens)[0].text)

    return f"{Path(name).resolve() if changed else name} {changed} greedy {max_new_tokens}", ask


# ---- the commands around them ----


def make_parser(description):
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=formatter)


def run_command(work, *args, is_kept=True):
    """work(*args); what stops it is one line. is_kept: a journal has what was done so far."""
    try:
        return work(*args)
    except KeyboardInterrupt:
        goes_on = "the same command goes on from here"
        sys.exit(f"\nstopped; {goes_on if is_kept else 'nothing was written'}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def path(text):
    return Path(text).expanduser()


def check_writable(file):
    """Make the folder of a file; OSError before the work if the file cannot be written after it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not file.exists()
    open(file, "a").close()
    if is_new:
        file.unlink()


def add_model_flags(parser):
    add, where = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="address of an OpenAI-compatible server, up to /v1")
    local = "folder, hub id or smollm2: asked in this process"
    where.add_argument("--local", type=os.path.expanduser, metavar="MODEL", help=local)
    add("--model", help="name of the model on the server; only with --url")
    add("--concurrency", type=int, default=4, help="requests at a time (default: 4)")
    add("--timeout", type=float, default=600, help="seconds for a reply (default: %(default)s)")
    add("--key-env", default=KEY_ENV, help="variable with the key (default: %(default)s)")


def check_model_flags(parser, args):
    if (args.url is None) != (args.model is None):
        parser.error("--url and --model go together: a server, and the name of the model there")
    if min(args.concurrency, args.timeout) <= 0:
        parser.error("--concurrency and --timeout must be above 0")
    check_key_env(parser, args.key_env)


def check_key_env(parser, name):
    if name != KEY_ENV and not os.environ.get(name):
        # without the name: someone may have given the key itself
        parser.error("--key-env must name an environment variable that is set")


def chosen_model(args, max_new_tokens, **how):
    """(name for the journal, ask, how many may be asked at a time)"""
    if args.local:
        return *local_model(args.local, max_new_tokens), 1
    how |= {"timeout": args.timeout, "concurrency": args.concurrency, "key_env": args.key_env}
    return f"{args.url} {args.model}", Server(args.url, args.model, **how).ask, args.concurrency
