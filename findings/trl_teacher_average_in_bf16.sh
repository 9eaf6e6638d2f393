#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 trl==1.16.0
fi
"$venv/bin/python" - <<'EOF'
"""TRL's average of bfloat16 weights moves a teacher that is right and leaves one that is not."""

import copy

import torch
import transformers
import trl
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.callbacks import SyncRefModelCallback

RATE, UPDATES = 0.01, 300
Accelerator(cpu=True)  # the callback asks for its state
config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2,
)  # fmt: skip
torch.manual_seed(0)
start = LlamaForCausalLM(config).bfloat16()


def matrices(model):
    """All matrices in one vector; norms are ones and left out."""
    return torch.cat([p.detach().float().flatten() for p in model.parameters() if p.dim() == 2])


def average(student, teacher):
    SyncRefModelCallback.sync_target_model(student, teacher, RATE)


equal = copy.deepcopy(start)
average(start, equal)
moved = float((matrices(equal) != matrices(start)).float().mean())

shares = {}
for dtype in (torch.float32, torch.bfloat16):
    teacher = copy.deepcopy(start).to(dtype)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.03)  # what training changed, then it stands still
    way = matrices(student) - matrices(teacher)
    before = matrices(teacher)
    for _ in range(UPDATES):
        average(student, teacher)
    gone = matrices(teacher) - before
    shares[dtype] = float((gone @ way) / (way @ way))

print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: a teacher equal to its student stays; one that differs comes near it, if roughly")
print(f"one update of a teacher equal to the student, bfloat16: {moved:.1%} of its weights change")
print(f"{UPDATES} updates at rate {RATE} towards a student 3 % away, share of the way gone:")
print(f"    expected {1 - (1 - RATE) ** UPDATES:.0%}")
print(f"    seen {shares[torch.float32]:.0%} in float32, {shares[torch.bfloat16]:.0%} in bfloat16")
print("why it matters: each update rounds twice to 8 significant bits. A distance of a few per")
print("cent times the rate is less than half the last bit, so the average is decided by")
print("rounding: the 'EMA teacher' of a model loaded in bfloat16 is another one than its rate")
print("says. Remedy: keep the teacher's weights in float32 for the average.")

assert moved > 0.001
assert abs(shares[torch.float32] - 0.95) < 0.01 and shares[torch.bfloat16] < 0.2, shares
EOF
