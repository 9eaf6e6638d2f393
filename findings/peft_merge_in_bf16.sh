#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2
fi
"$venv/bin/python" - <<'EOF'
"""Merging a shortly trained adapter into bfloat16 weights gives back the base model."""

import copy

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, RATE = 10, 1e-5
config = LlamaConfig(
    vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.05,
)  # fmt: skip
torch.manual_seed(0)
base = LlamaForCausalLM(config).bfloat16()
adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
model = get_peft_model(copy.deepcopy(base), adapter)
ids = torch.randint(0, 64, (4, 32))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
for _ in range(STEPS):
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

layers = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]
learned = {name: module.get_delta_weight("default").float() for name, module in layers}
old = {name: module.base_layer.weight.detach().float() for name, module in layers}
merged = model.merge_and_unload()
new = {
    name: merged.get_submodule(name.removeprefix("base_model.model.")).weight.detach().float()
    for name, _ in layers
}
update = sum(delta.square().sum() for delta in learned.values()).sqrt()
error = sum((new[n] - old[n] - learned[n]).square().sum() for n in learned).sqrt()
unchanged = sum(int((new[n] == old[n]).sum()) for n in new) / sum(w.numel() for w in new.values())
lost = float(error / update)

print(
    f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
)
print("expected: merge_and_unload gives the model that was trained, up to small rounding errors")
print(f"after {STEPS} steps at rate {RATE:g}, rank 16, into bfloat16 weights:")
print(f"{unchanged:.1%} of the weights are unchanged, |merged - exact| is {lost:.0%} of |update|")
print("why it matters: a bfloat16 weight keeps 8 significant bits, an update of less than half")
print("the last one vanishes, and small rates make only such updates. The merged folder that is")
print("evaluated or served lacks most of the update, and nothing says so. Remedy: merge into")
print("float32, or serve the adapter by itself.")

assert unchanged > 0.8 and lost > 0.8, (unchanged, lost)
EOF
