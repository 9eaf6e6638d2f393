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
"""Two peft adapters as student and teacher: switching before backward loses every gradient."""

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2,
)  # fmt: skip
torch.manual_seed(0)
adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
model = get_peft_model(LlamaForCausalLM(config), adapter, adapter_name="student")
model.add_adapter("teacher", adapter)
ids = torch.randint(0, 64, (2, 8))


def gradients(switch_back):
    """Return the loss and how many of the student's tensors got a gradient."""
    model.zero_grad(set_to_none=True)
    model.set_adapter("student")
    student = model(ids).logits.log_softmax(-1)
    model.set_adapter("teacher")
    with torch.no_grad():
        teacher = model(ids).logits.log_softmax(-1)
    if switch_back:
        model.set_adapter("student")
    loss = (student.exp() * (student - teacher)).sum(-1).mean()
    loss.backward()
    learns = [name for name, tensor in model.named_parameters() if tensor.grad is not None]
    assert all("student" in name for name in learns)
    return loss.item(), len(learns)


(right, with_gradient), (wrong, without) = gradients(True), gradients(False)
print(
    f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
)
print("expected: the graph of the student's pass is complete, so backward fills its gradients")
print(f"switched back before backward: loss {right:.4f}, tensors with a gradient {with_gradient}")
print(f"not switched back:             loss {wrong:.4f}, tensors with a gradient {without}")
print("why it matters: set_adapter sets requires_grad of the adapters that it leaves to False,")
print("and autograd drops a gradient at a leaf that no longer wants one. The loss is right,")
print("backward raises nothing, the optimiser skips all parameters, and the student stays as it")
print("was. Remedy: set_adapter('student') before backward, or stop when the gradient norm is")
print("0.")

assert right == wrong > 0
assert with_gradient == 8 and without == 0
EOF
