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
"""model.to(bfloat16) rounds the rotary frequencies, from_pretrained(dtype=bfloat16) does not."""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
)  # fmt: skip
torch.manual_seed(0)
exact = LlamaForCausalLM(config).eval()
exact.save_pretrained("model")
loaded = LlamaForCausalLM.from_pretrained("model", dtype=torch.bfloat16).eval()
cast = LlamaForCausalLM.from_pretrained("model", dtype=torch.float32).to(torch.bfloat16).eval()
ids = torch.randint(0, 64, (1, 2048))


@torch.no_grad()
def logprobs(model):
    return model(ids).logits.float().log_softmax(-1)


def divergence(p, q, end):
    """KL(p || q), averaged over the 64 positions before `end`."""
    return float((p.exp() * (p - q)).sum(-1)[:, end - 64 : end].mean())


p, by_loading, by_cast = logprobs(exact), logprobs(loaded), logprobs(cast)
same_weights = all(map(torch.equal, loaded.parameters(), cast.parameters()))
ratios = []

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: two ways to the same model; the weights are equal:", same_weights)
print("inv_freq, loaded:", loaded.model.rotary_emb.inv_freq.dtype)
print("inv_freq, cast:  ", cast.model.rotary_emb.inv_freq.dtype)
for end in (64, 512, 2048):
    a, b = divergence(p, by_loading, end), divergence(p, by_cast, end)
    ratios.append(b / a)
    print(f"positions to {end}: KL(float32 || loaded) {a:.5f}, KL(float32 || cast) {b:.5f}")
print("why it matters: the frequencies are a buffer and no part of the file. A student that was")
print("cast and is served from its folder is another model on long texts, and of two copies of")
print("the same weights, one cast and one loaded, the KL is not zero. Remedy: load in the")
print("dtype.")

assert same_weights
assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
assert cast.model.rotary_emb.inv_freq.dtype == torch.bfloat16
assert ratios[0] < 3 and ratios[2] > 10, ratios
EOF
