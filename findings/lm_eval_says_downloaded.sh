#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q "lm-eval[ifeval]==0.4.13" nltk==3.10.4 torch==2.13.0 transformers==5.23.0
fi
# a machine without a network: nothing listens at the proxy, and no data of NLTK's are there
export HOME=$work NLTK_DATA=$work/none https_proxy=http://127.0.0.1:9 http_proxy=http://127.0.0.1:9
"$venv/bin/python" - <<'EOF'
"""lm-eval says that it has downloaded what IFEval needs, and fails once all answers are written."""

import contextlib
import io
from importlib.metadata import version

printed = io.StringIO()
with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    from lm_eval.tasks.ifeval import utils  # what lm-eval does when it reads the task

PROMPT = "Write at least three sentences."
doc = {
    "key": 0,
    "prompt": PROMPT,
    "instruction_id_list": ["length_constraints:number_sentences"],
    "kwargs": [{"num_sentences": 3, "relation": "at least"}],
}
try:
    utils.process_results(doc, ["The answers of hours. Are here."])
    scored = "the answer is scored"
except LookupError as error:
    scored = "LookupError: " + next(line.strip() for line in str(error).splitlines() if "not" in line)

failed = [line for line in printed.getvalue().splitlines() if "Error loading" in line]
said = [line for line in printed.getvalue().splitlines() if line.startswith("Downloaded")]
print(f"lm-eval {version('lm-eval')}, nltk {version('nltk')}, no network")
print("expected: without NLTK's punkt_tab the task stops when it is read, before the model runs")
print(f"    NLTK, when the task is read: {failed[0][:60]}…")
print(f"    lm-eval, then: {said[0]}")
print(f"    when the answers are scored: {scored}")
print("why it matters: nltk.download returns False instead of raising, and lm-eval does not look.")
print("IFEval writes up to 1,280 tokens for each of 541 prompts before the first is scored; then")
print("all of them are lost. Remedy: look for tokenizers/punkt_tab first, or set NLTK_DATA.")

assert said == ["Downloaded punkt_tab on rank 0"], said
assert scored.startswith("LookupError: Resource"), scored
EOF
