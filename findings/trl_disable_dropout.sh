#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0
fi
"$venv/bin/python" - <<'EOF'
"""TRL's disable_dropout keeps the model's attention dropout and drops the adapter's."""

import torch
import transformers
import trl
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import disable_dropout_in_model

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, attention_dropout=0.2, initializer_range=0.2,
)  # fmt: skip
torch.manual_seed(0)
dense = LlamaForCausalLM(config).train()
adapter = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.2)
adapted = get_peft_model(LlamaForCausalLM(config), adapter).train()
ids = torch.randint(0, 64, (4, 16))


def dropouts(model):
    return sorted({module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)})


@torch.no_grad()
def noise(model):
    """Largest difference between the logits of two passes over the same tokens."""
    return float((model(ids).logits - model(ids).logits).abs().max())


before, lora_before = noise(dense), dropouts(adapted)
disable_dropout_in_model(dense)
disable_dropout_in_model(adapted)
after, lora_after = noise(dense), dropouts(adapted)
for layer in dense.model.layers:
    layer.self_attn.attention_dropout = 0.0

print(f"trl {trl.__version__}, transformers {transformers.__version__}")
print("expected: the model's dropout is off, and two passes over the same tokens are equal")
print("attention_dropout 0.2, largest difference of two passes:")
print(f"    {before:.3f} before, {after:.3f} after the call,")
print(f"    {noise(dense):.3f} with each layer's attention_dropout set to 0 by hand")
print(f"lora_dropout 0.2, as asked for: {lora_before} before, {lora_after} after")
print("why it matters: only nn.Dropout modules are set to 0. Current models pass")
print("attention_dropout to the attention function as a number, so the student is scored with")
print("noise that it was not sampled with, while the dropout that somebody set for an adapter")
print("is gone without a word. Remedy: set attention_dropout to 0 in the config before the")
print("model is built.")

assert before > 0.1 and after > 0.1
assert noise(dense) == 0
assert lora_before == [0.2] and lora_after == [0]
EOF
