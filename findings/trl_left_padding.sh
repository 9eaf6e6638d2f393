#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 datasets==5.2.0 trl==1.16.0
fi
"$venv/bin/python" - <<'EOF'
"""TRL's SDFT samples from GPT-2 with one set of positions and scores it with another."""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

WORDS = ["<pad>", "<end>", *"user assistant a b c d e f g h".split()]
backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", padding_side="left"
)
tokenizer.chat_template = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
config = GPT2Config(
    vocab_size=len(WORDS), n_embd=32, n_layer=1, n_head=2, n_positions=64, initializer_range=0.3,
    bos_token_id=None, eos_token_id=1, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
)  # fmt: skip
torch.manual_seed(0)
GPT2LMHeadModel(config).save_pretrained("model")
prompts = ["a", "a b c d e f g h"]
rows = [
    {"prompt": [{"role": "user", "content": text}], "privileged_context": "h"} for text in prompts
]
settings = SDFTConfig(
    output_dir="run", per_device_train_batch_size=2, num_generations=1, max_completion_length=6,
    max_steps=1, learning_rate=0, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
    distillation_mode="full_logits",
)  # fmt: skip
trainer = SDFTTrainer(
    GPT2LMHeadModel.from_pretrained("model"), settings, Dataset.from_list(rows),
    processing_class=tokenizer,
)  # fmt: skip
calls = []
trainer.model.register_forward_pre_hook(
    lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
)
trainer.train()
rollout, scoring = calls[0], calls[-1]
ids, mask = scoring["input_ids"], scoring["attention_mask"]
row = int(mask.sum(1).argmin())  # the shorter prompt has padding on its left
padding = int(mask[row].argmax())
kept = mask[row].bool()


@torch.no_grad()
def logits(**kwargs):
    return trainer.model.eval()(**kwargs).logits


as_scored = logits(input_ids=ids, attention_mask=mask)[row, kept]
positions = (mask.cumsum(1) - 1).clamp(min=0)
as_sampled = logits(input_ids=ids, attention_mask=mask, position_ids=positions)[row, kept]
alone = logits(input_ids=ids[row : row + 1, kept])[0]

print(f"trl {trl.__version__}, transformers {transformers.__version__}")
print("expected: the loss scores each completion as the model that drew it")
print("position_ids when sampling:", rollout["position_ids"][row].tolist())
print("position_ids when scoring: ", scoring.get("position_ids"))
print("pad tokens on the left:", padding)
print(f"largest error of the logits, without position_ids: {(as_scored - alone).abs().max():.3f}")
print(f"largest error of the logits, with position_ids:    {(as_sampled - alone).abs().max():.6f}")
print("why it matters: generate counts positions from the mask, the loss passes none, and a")
print("model with learned positions (GPT-2, GPT-Neo) then sees the shorter prompts of a batch")
print("shifted, student and teacher by amounts of their own, and the loss of an example depends")
print("on the batch that it is in. Rotary positions hide it, as they count distances only.")
print("Remedy: one prompt length a batch, or a model with rotary positions.")

assert padding > 0 and "position_ids" not in scoring
assert (as_scored - alone).abs().max() > 0.1
assert (as_sampled - alone).abs().max() < 1e-4
assert rollout["position_ids"][row].max() < ids.shape[1] - padding
EOF
