#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q transformers==5.23.0
fi
"$venv/bin/python" - <<'EOF'
"""A tokenizer that was once called with truncation truncates for whoever reads its file."""

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXT = "a b c d e f g h"
vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *TEXT.split()])}
backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=512
)


def read_elsewhere(folder, text):
    """Encode as a server in Rust or a script without transformers does."""
    tokenizer.save_pretrained(folder)
    return Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).tokens


before, before_short = read_elsewhere("before", TEXT), read_elsewhere("before", "a")
tokenizer(["a b", TEXT], truncation=True, max_length=4, padding="max_length")
after, after_short = read_elsewhere("after", TEXT), read_elsewhere("after", "a")
by_transformers = AutoTokenizer.from_pretrained("after").tokenize(TEXT)

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
print("expected: how a batch was encoded is no part of the saved tokenizer")
print("saved before the batch, read by tokenizers:", before, "and", before_short)
print("saved after the batch, read by tokenizers: ", after, "and", after_short)
print("saved after the batch, by transformers:    ", by_transformers)
print("why it matters: tokenizer.json stores the truncation and padding of the last call. After")
print("training with a cut at max_length, whatever reads the file without transformers cuts or")
print("pads each prompt there, while a check with transformers, which sets both at each call,")
print("sees nothing. Remedy: save the tokenizer as it was loaded, or call backend_tokenizer.")
print("no_truncation() and no_padding() first.")

assert before == by_transformers == TEXT.split() and before_short == ["a"]
assert after == ["a", "b", "c", "d"]
assert after_short == ["a", "<pad>", "<pad>", "<pad>"]
EOF
