"""Tiny models, a tiny tokenizer and a chat server, made here.

No test but those marked `smollm2` loads a model from elsewhere.
"""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KEY = "sk-not-a-real-key"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # large: the distributions are far from uniform
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def tiny_llama(vocab_size=40, seed=0, tied=True, dtype=torch.float32, layers=2):
    """A random Llama of some thousand parameters."""
    more = {"vocab_size": vocab_size, "tie_word_embeddings": tied, "num_hidden_layers": layers}
    return tiny_model(LlamaConfig, seed, dtype, **more)


def tiny_model(config_class, seed=0, dtype=torch.float32, **more):
    """The same for another architecture; more are fields of its configuration."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_class(**SIZES | more)).to(dtype).eval()


def tiny_tokenizer():
    """Bytes as tokens, with the chat markers of SmolLM2; pad is EOS, the common trap."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|im_start|>": 0, "<|im_end|>": 1}
    vocab |= {character: i for i, character in enumerate(alphabet, start=2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def run_generator(task, folder):
    """Runs a copy of samples/make/TASK.py in folder/make, so that it writes into folder."""
    (folder / "make").mkdir()
    shutil.copy(ROOT / "samples" / "make" / f"{task}.py", folder / "make")
    command = [sys.executable, folder / "make" / f"{task}.py"]
    subprocess.run(command, check=True, capture_output=True)


def gradients(model):
    """All gradients of a model in one vector, in float64."""
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])


@pytest.fixture
def tiny():
    return tiny_llama()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_llama(vocab_size=len(tokenizer))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A Hugging Face folder with a tiny byte-level chat model: what --model takes."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = tiny_tokenizer()
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serving(server):
    """Let a server of http.server answer in a thread; at the end both are gone."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(monkeypatch):
    """A server that takes its next answers from server.script, from server.reply(prompt) when that
    is empty, which is CORRECT if a test does not replace it.

    An answer is (status, headers, text), (status, headers, body in bytes) or "hang up".
    """
    pytest.importorskip("openai", reason="needs: pip install openai")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.asked.append((self.path, self.headers["Authorization"], asked))
            prompt = asked["messages"][-1]["content"]
            answer = here.script.pop(0) if here.script else here.reply(prompt)
            if answer == "hang up":
                self.close_connection = True
                return
            status, headers, text = answer
            if isinstance(text, bytes):
                body = text
            else:
                body = {"choices": [{"message": {"content": text}}]}
                body = json.dumps(body | {"key": self.headers["Authorization"]}).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    here = HTTPServer(("127.0.0.1", 0), Handler)
    here.reply = lambda prompt: (200, {}, "CORRECT")
    here.script, here.asked, here.url = [], [], f"http://127.0.0.1:{here.server_port}/v1"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(here):
        yield here
