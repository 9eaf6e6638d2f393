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
"""Activation checkpointing and train mode: generate sees one token of context after the first."""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
)  # fmt: skip
torch.manual_seed(0)
model = LlamaForCausalLM(config)
prompt = torch.randint(3, 64, (1, 8))
lengths = []
model.register_forward_pre_hook(
    lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
)


def greedy():
    lengths.clear()
    ids = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    return ids[0, prompt.shape[1] :].tolist()


model.activation_checkpointing_enable()
model.train()
training = greedy()
tokens_given, cached = list(lengths), model.config.use_cache
model.eval()
evaluating = greedy()
model.train()
model.activation_checkpointing_disable()
without = greedy()

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: the same greedy tokens, if slower, as the model has no dropout")
print("train mode, with checkpointing:   ", training)
print("train mode, without:              ", without)
print("eval mode, with checkpointing:    ", evaluating)
print("tokens given to each forward pass:", tokens_given)
print("why it matters: the layers drop the cache, while generate goes on to pass the last token")
print("alone. Whoever samples rollouts from the model in training learns from text that its own")
print("prompt had no part in; the log says only that caching is off. Remedy: model.eval() or")
print("activation_checkpointing_disable() around generate.")

assert cached and without == evaluating != training
assert tokens_given == [8] + 11 * [1]
EOF
