"""Tiny models and a tiny tokenizer, made here: no test but those marked `smollm2` loads anything from elsewhere."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

CHAT_TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
                 "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def tiny_llama(vocab_size=40, seed=0, tied=True, dtype=torch.float32, layers=2):
    """A random Llama of some thousand parameters; a large initializer makes its distributions far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, initializer_range=0.3,
                         bos_token_id=None, eos_token_id=1, pad_token_id=1)
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_tokenizer():
    """Bytes as tokens, with the chat markers of SmolLM2; pad is EOS, the common trap."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|im_start|>": 0, "<|im_end|>": 1} | {character: i for i, character in enumerate(alphabet, start=2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@pytest.fixture
def tiny():
    return tiny_llama()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A Hugging Face folder with a tiny byte-level chat model: what --model takes."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = tiny_tokenizer()
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gradients(model):
    """All gradients of a model in one vector, in float64."""
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])
