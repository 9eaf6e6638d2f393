#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 sdft-pytorch==0.0.10 x-transformers==2.31.10
fi
"$venv/bin/python" - <<'EOF'
"""sdft-pytorch's EMA teacher is an exact copy of the student, eleven times, before it averages."""

from importlib.metadata import version

import torch
from sdft_pytorch import SDFT
from x_transformers import Decoder, TransformerWrapper

RATE = 0.01
torch.manual_seed(0)
model = TransformerWrapper(
    num_tokens=16, max_seq_len=32, attn_layers=Decoder(dim=16, depth=1, heads=2, attn_dim_head=8)
)
trainer = SDFT(
    model,
    tokenizer_encode=lambda text: torch.zeros(2, dtype=torch.long),
    student_max_response_len=2,
    teacher_update_rate=RATE,
)
student = next(model.parameters()).detach()
teacher = next(trainer.teacher.ema_model.parameters()).detach()
moved, copies = {}, []

for update in range(1, 132):
    student.add_(1)
    before = teacher.clone()
    trainer.update_teacher_ema_()
    step = float(((teacher - before) / (student - before)).mean())
    if step > 1e-6:
        moved[update] = step
    if torch.equal(teacher, student):
        copies.append(update)

print(f"sdft-pytorch {version('sdft-pytorch')}, ema-pytorch {version('ema-pytorch')}")
print(f"expected: with teacher_update_rate={RATE} each update moves the teacher by {RATE:.0%}")
print("updates after which the teacher equals the student:", copies)
print("updates that moved it, and by how much of the distance:")
print("   ", {update: round(step, 3) for update, step in moved.items()})
print("why it matters: the rate is handed to an EMA that acts at each tenth update only, copies")
print("for the first 100 and starts averaging at a share of 20 %. A run of 100 updates or less")
print("never has an averaged teacher, and a comparison of rates with this package compares")
print("something else. Remedy: call an average of one's own in place of update_teacher_ema_.")

assert copies == list(range(1, 102, 10)), copies
assert 111 in moved and all(step < 0.5 for update, step in moved.items() if update > 101), moved
assert not [update for update in moved if update % 10 != 1]
EOF
