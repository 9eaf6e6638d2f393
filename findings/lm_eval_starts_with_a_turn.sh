#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 lm-eval==0.4.13 accelerate==1.15.0
fi
"$venv/bin/python" - <<'EOF'
"""lm-eval opens texts without a context by <|im_start|> where that is the tokenizer's bos."""

from importlib.metadata import version

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "the", "sky", "is", "blue"]
backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0]))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token=WORDS[0]
)
config = LlamaConfig(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
torch.manual_seed(0)
model = LlamaForCausalLM(config)
inputs = []
model.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))


def first_token(kind, arguments, **kwargs):
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", **kwargs)
    inputs.clear()
    getattr(harness, kind)([Instance(kind, {}, arguments, 0)], disable_tqdm=True)
    return tokenizer.convert_ids_to_tokens(int(inputs[-1][0, 0]))


TEXT = "the sky is blue"
seen = {
    "the tokenizer's own encoding": tokenizer.tokenize(TEXT, add_special_tokens=True)[0],
    "loglikelihood_rolling (perplexity)": first_token("loglikelihood_rolling", (TEXT,)),
    "loglikelihood, empty context": first_token("loglikelihood", ("", TEXT)),
    "the same, prefix_token_id=0": first_token("loglikelihood", ("", TEXT), prefix_token_id=0),
}

print(f"lm-eval {version('lm-eval')}")
print("expected: a text is scored after a neutral start, as in pretraining")
for how, token in seen.items():
    print(f"    {how}: {token}")
print("why it matters: ChatML tokenizers such as SmolLM2's name <|im_start|> as bos and never")
print("write it themselves. lm-eval puts it before each text that has no context, where a chat")
print("model expects a role. With SmolLM2-135M short plain sentences then cost 6.3 instead of")
print("4.5 nats a token, so drift in perplexity is partly drift in a role's name. Remedy: pass")
print("the end of text as prefix_token_id.")

assert list(seen.values()) == ["the", "<|im_start|>", "<|im_start|>", "<|endoftext|>"], seen
EOF
