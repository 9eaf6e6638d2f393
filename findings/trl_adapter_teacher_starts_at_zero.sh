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
"""TRL's EMA teacher of a LoRA student follows with the square of the rate at first."""

import peft
import torch
import trl
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState
from trl.experimental.sdft.teacher_sync import PEFTAdapterEMACallback

RATE = 0.05
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2,
)  # fmt: skip
torch.manual_seed(0)
adapter = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
model = get_peft_model(LlamaForCausalLM(config), adapter)
callback = PEFTAdapterEMACallback(model, update_rate=RATE)
state = TrainerState()
layer = model.base_model.model.model.layers[0].self_attn.q_proj


def product(name):
    return layer.lora_B[name].weight.detach() @ layer.lora_A[name].weight.detach()


def share():
    """How far the teacher is on the way from the base to the student, which stays where it is."""
    student, teacher = product("default"), product("teacher")
    return float((teacher * student).sum() / (student * student).sum())


callback.on_train_begin(None, state, TrainerControl())
seen = {}
for step in range(1, 61):
    state.global_step = step
    callback.on_step_end(None, state, TrainerControl())
    if step in (1, 5, 20, 60):
        seen[step] = share()

print(f"trl {trl.__version__}, peft {peft.__version__}")
print(
    f"expected: after n updates of rate {RATE} towards a student that stands still, the teacher has"
)
print(f"gone 1 - {1 - RATE:g}^n of the way, as one of dense weights has")
for step, value in seen.items():
    print(f"after {step:2d} updates: seen {value:.2%}, expected {1 - (1 - RATE) ** step:.2%}")
print("why it matters: both factors of the teacher's adapter start at zero and are averaged one")
print("by one, so their product is the square of the expected share. A run with the same rate")
print("has another teacher with LoRA than without, one that stays near the base for tens of")
print("steps. Remedy: start the teacher's A as a copy of the student's.")

assert all(abs(seen[n] - (1 - 0.95**n) ** 2) < 1e-5 for n in seen), seen
EOF
