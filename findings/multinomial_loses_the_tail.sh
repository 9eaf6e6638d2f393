#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
fi
"$venv/bin/python" - <<'EOF'
"""Drawing many float32 samples from one distribution never draws its tail."""

import torch

DRAWS = 1_000_000
probabilities = torch.full((100_001,), 1e-8)
probabilities[0] = 0.999  # the other 100,000 tokens have 0.001 together
torch.manual_seed(0)


def share_of_tail(drawn):
    return float((drawn > 0).double().mean())


many = share_of_tail(torch.multinomial(probabilities, DRAWS, replacement=True))
distribution = torch.distributions.Categorical(probs=probabilities)
categorical = share_of_tail(distribution.sample((DRAWS,)))
double = share_of_tail(torch.multinomial(probabilities.double(), DRAWS, replacement=True))
one_each = [torch.multinomial(probabilities.expand(100, -1), 1) for _ in range(100)]
single = share_of_tail(torch.cat(one_each))

print(f"torch {torch.__version__}, on a CPU")
print("expected: the tail, 1e-8 for each token and 0.001 in all, is drawn once in 1,000")
print(f"torch.multinomial(p, {DRAWS}, replacement=True), float32: {many}")
print(f"Categorical(p).sample(({DRAWS},)), float32:               {categorical}")
print(f"torch.multinomial, float64:                               {double}")
print(f"torch.multinomial(p, 1), float32, 10,000 rows:            {single}")
print("why it matters: with replacement the probabilities are summed in float32, and 0.999 +")
print("1e-8 is 0.999. Whoever checks an estimator of a divergence, or draws tokens in")
print("distillation, by many samples a row gets none of the tail that a reverse KL is about,")
print("while generate, which draws one a row by another method, gets it. Remedy: float64, or")
print("one draw a row.")

assert many == categorical == 0
assert 0.0009 < double < 0.0011
assert single > 0
EOF
