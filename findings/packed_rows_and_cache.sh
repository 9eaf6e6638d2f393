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
"""Packed texts are kept apart only if use_cache=False is passed and no attention mask is."""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
)  # fmt: skip
torch.manual_seed(0)
model = LlamaForCausalLM(config).train()
first, second = torch.randint(0, 64, (2, 1, 6))
packed = torch.cat([first, second], dim=1)
positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
CALLS = {
    "nothing more": {},
    "use_cache=False": {"use_cache": False},
    "use_cache=False and a mask of ones": {
        "use_cache": False, "attention_mask": torch.ones_like(packed),
    },
}  # fmt: skip


@torch.no_grad()
def logits(ids, **kwargs):
    return model(input_ids=ids, **kwargs).logits


alone = logits(second)
errors = {}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: positions that start again at 0 separate the texts, in each call or in none")
for name, kwargs in CALLS.items():
    together = logits(packed, position_ids=positions, **kwargs)[:, 6:]
    errors[name] = float((together - alone).abs().max())
    print(f"position_ids and {name}: the second text's logits are off by {errors[name]:.4f}")
print("why it matters: training packs texts and passes use_cache=False, a hand-written loop or")
print("an evaluation often does not, and there each text reads those before it. Loss and")
print("divergence are then computed on other contexts, without any message. Remedy:")
print("use_cache=False and no mask for packed rows, and a check like this one.")

assert errors["use_cache=False"] < 1e-5
assert errors["nothing more"] > 0.1
assert errors["use_cache=False and a mask of ones"] > 0.1
EOF
