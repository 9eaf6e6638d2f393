#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q transformers==5.23.0 jinja2==3.1.6 pandas==3.1.1 pyarrow==26.0.1
fi
"$venv/bin/python" - <<'EOF'
"""Conversations read from Parquet by pandas are rendered as the word <ndarray>."""

import pandas as pd
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATE = """{% for message in messages %}
<|{{ message.role }}|>
{% if message.content is string %}{{ message.content }}
{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}
{% endfor %}"""
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
tokenizer.chat_template = TEMPLATE


def render(messages):
    return tokenizer.apply_chat_template(messages, tokenize=False)


def through_parquet(messages):
    pd.DataFrame({"messages": [messages]}).to_parquet("data.parquet")
    return pd.read_parquet("data.parquet")["messages"][0]


parts = [{"role": "user", "content": [{"type": "text", "text": "Is it raining?"}]}]
calls = [
    {"role": "user", "content": "Is it raining?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
]

print(f"transformers {transformers.__version__}, pandas {pd.__version__}")
print("expected: the same text from a list and from what pandas read back, or an error")
for messages in (parts, calls):
    print("from lists:  ", render(messages).split())
    print("from Parquet:", render(through_parquet(messages)).split())
print("why it matters: pandas reads each nested list as an array, apply_chat_template replaces")
print("an array inside a message by its type's name, and the model is trained on '<ndarray>'")
print("with no error or warning. Remedy: read with datasets, or turn the arrays into lists.")

assert "<ndarray>" not in render(parts) and "Is it raining?" in render(parts)
assert "<ndarray>" in render(through_parquet(parts))
assert "raining" not in render(through_parquet(parts))
assert "weather" in render(calls) and "weather" not in render(through_parquet(calls))
EOF
