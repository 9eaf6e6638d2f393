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
"""None switches a sampling rule off as an argument, and not in a GenerationConfig."""

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
torch.manual_seed(0)
LlamaForCausalLM(config).save_pretrained("model")
GenerationConfig(do_sample=True, min_p=0.9, top_k=0).save_pretrained("model")
model = LlamaForCausalLM.from_pretrained("model").eval()
prompts = torch.ones(2000, 4, dtype=torch.long)


def different_tokens(**kwargs):
    torch.manual_seed(1)
    ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), **kwargs)
    return len(set(ids[:, 4].tolist()))


def by_config(**kwargs):
    return different_tokens(
        generation_config=GenerationConfig(max_new_tokens=1, do_sample=True, **kwargs)
    )


seen = {
    "generate()": different_tokens(max_new_tokens=1),
    "generate(min_p=None)": different_tokens(max_new_tokens=1, min_p=None),
    "generate(GenerationConfig(temperature=1.0))": by_config(temperature=1.0),
    "generate(GenerationConfig(min_p=None))": by_config(min_p=None),
    "generate(GenerationConfig(min_p=0.0))": by_config(min_p=0.0),
}

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: a configuration of one's own is the whole of it, and None is off in both places")
print("different first tokens of 64 in 2,000 draws; the checkpoint's file says min_p = 0.9:")
for how, count in seen.items():
    print(f"    {how}: {count}")
print("why it matters: fields of a GenerationConfig that are None are filled from the")
print("checkpoint's. A trainer that builds one with min_p=None for its rollouts, as TRL 1.16")
print("does, draws from the cut distribution and scores the whole one: what the rule excludes")
print("is never sampled, and the estimate of the divergence is off. Remedy: give the neutral")
print("value (min_p=0.0, top_k=0, top_p=1.0), or clear model.generation_config.")

cut, off, inherited, none, neutral = seen.values()
assert cut == inherited == none < 20
assert off == neutral > 55
EOF
