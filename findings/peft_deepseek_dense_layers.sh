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
"""peft adapts none of the dense MLP layers of DeepSeek V3, though they are named as targets."""

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

PREFIX = "base_model.model.model."
TARGETS = ["gate_proj", "up_proj", "down_proj", "o_proj"]


def model():
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
        num_hidden_layers=2, first_k_dense_replace=1, num_attention_heads=2,
        num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config)


def adapted(config):
    names = get_peft_model(model(), config).state_dict()
    return {name[len(PREFIX) :].split(".lora_")[0] for name in names if ".lora_" in name}


named = {
    name.removeprefix("model.")
    for name, module in model().named_modules()
    if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in TARGETS
}
got = adapted(LoraConfig(r=2, target_modules=TARGETS))
missing = sorted(named - got)

print(f"peft {peft.__version__}, transformers {transformers.__version__}")
print("expected: an adapter on each linear layer whose name ends in a target:", len(named))
print("seen: none on", *missing, sep="\n    ")
print("why it matters: the first layers of DeepSeek V3 are dense and each other layer has a")
print("shared expert. Their adapters are taken for those of the routed experts, which")
print("transformers 5 keeps in one tensor, so a part of the model that was to be trained stays")
print("frozen; the only warning speaks of patterns that nobody has set. Remedy: compare the")
print("names of what learns with the names that were asked for.")

assert missing == [
    f"layers.{place}.{name}"
    for place in ("0.mlp", "1.mlp.shared_experts")
    for name in ("down_proj", "gate_proj", "up_proj")
], missing
EOF
