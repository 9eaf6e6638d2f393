#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
fi
"$venv/bin/python" - <<'EOF'
"""A checkpoint that is tied by its config and has two matrices: later calls drop one of them."""

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
)  # fmt: skip
torch.manual_seed(0)
LlamaForCausalLM(config).save_pretrained("tied")
weights = load_file("tied/model.safetensors")
weights["lm_head.weight"] = 0.2 * torch.randn(64, 32)  # as a trainer writes that untied the head
save_file(weights, "tied/model.safetensors", metadata={"format": "pt"})


def load(folder="tied"):
    return LlamaForCausalLM.from_pretrained(folder)


def is_tied(model):
    return model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
def largest_difference(a, b):
    ids = torch.arange(8)[None]
    return float((a(ids).logits[..., :64] - b(ids).logits[..., :64]).abs().max())


loaded = load()
loaded.save_pretrained("again")
by_state_dict = LlamaForCausalLM(loaded.config)
by_state_dict.load_state_dict(load_file("again/model.safetensors"))
resized = load()
resized.resize_token_embeddings(65)

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: what from_pretrained gave stays that model when it is saved or gets a new token")
print("loaded: tied", is_tied(loaded), "| its config says tied", loaded.config.tie_word_embeddings)
print("saved, read back by from_pretrained: tied", is_tied(load("again")))
print("saved, read back by load_state_dict: tied", is_tied(by_state_dict))
print(f"    logits differ by up to {largest_difference(loaded, by_state_dict):.2f}")
print("one token more by resize_token_embeddings: tied", is_tied(resized))
print(f"    logits of the old tokens differ by up to {largest_difference(loaded, resized):.2f}")
print("why it matters: such a folder is what a trainer leaves that unties the head. It is")
print("trained untied, and then adding a pad token, or a reader that trusts the config, gives")
print("another model. Remedy: set config.tie_word_embeddings = False before saving or resizing.")

assert not is_tied(loaded) and loaded.config.tie_word_embeddings
assert largest_difference(loaded, load("again")) == 0
assert is_tied(by_state_dict) and largest_difference(loaded, by_state_dict) > 1
assert is_tied(resized) and largest_difference(loaded, resized) > 1
EOF
