#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
fi
"$venv/bin/python" - <<'EOF'
"""A model that transformers read from a GGUF file of plain float32 weights cannot be saved."""

from importlib.metadata import version

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.0.": "blk.0.", "self_attn.o_proj": "attn_output", "self_attn.": "attn_",
    "mlp.": "ffn_", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    "_proj": "",
}  # fmt: skip


def write_gguf(model, path):
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    for name, weight in model.state_dict().items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        if heads:  # llama.cpp rotates neighbouring components, Llama the two halves of a head
            halves = weight.view(heads, 2, -1, config.hidden_size)
            weight = halves.transpose(1, 2).reshape(weight.shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def difference(a, b):
    ids = torch.arange(8)[None]
    return float((a(ids).logits - b(ids).logits).abs().max())


config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
)  # fmt: skip
torch.manual_seed(0)
original = LlamaForCausalLM(config)
write_gguf(original, "model.gguf")
model = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32)
same = difference(original, model)
try:
    model.save_pretrained("saved")
    refused = None
except ValueError as error:
    refused = str(error)
model.hf_quantizer = None
del model.is_quantized, model.config.quantization_config
model.save_pretrained("saved")
read_back = difference(original, AutoModelForCausalLM.from_pretrained("saved"))

print(f"transformers {transformers.__version__}, gguf {version('gguf')}")
print("expected: GGUF weights are turned into an ordinary model, which can be trained and saved")
print(f"loaded from GGUF: {model.dtype}, logits differ from the original's by {same}")
print("save_pretrained:", refused)
print("with hf_quantizer, is_quantized and config.quantization_config cleared: saved, and logits")
print(f"differ by {read_back}")
print("why it matters: a fine-tuning that starts from a GGUF file trains, and fails at its")
print("first checkpoint. Remedy: clear the three attributes after loading, and save once before")
print("the first step.")

assert same < 1e-5 and read_back < 1e-5
assert refused and "not serializable" in refused
EOF
