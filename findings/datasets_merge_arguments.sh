#!/usr/bin/env bash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
venv=${FINDINGS_VENV:-$work/venv}
if [ -z "${FINDINGS_VENV:-}" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q datasets==5.2.0
fi
"$venv/bin/python" - <<'EOF'
"""Dataset.from_list gives every tool call the arguments of all the others."""

import json

import datasets
from datasets import Dataset, load_dataset


def row(tool, arguments):
    call = {"type": "function", "function": {"name": tool, "arguments": arguments}}
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}


def arguments(dataset):
    calls = [messages[0]["tool_calls"][0]["function"] for messages in dataset["messages"]]
    return [call["arguments"] for call in calls]


rows = [row("weather", {"city": "Rome"}), row("add", {"a": 1, "b": 2})]
clashing = [row("find", {"id": 7}), row("delete", {"id": "seven"})]
with open("data.jsonl", "w") as file:
    file.writelines(json.dumps(each) + "\n" for each in rows)

from_list = arguments(Dataset.from_list(rows))
from_file = arguments(
    load_dataset("json", data_files="data.jsonl", cache_dir="cache", split="train")
)
try:
    refused = Dataset.from_list(clashing) and None
except Exception as error:
    refused = f"{type(error).__name__}: {error}"

print(f"datasets {datasets.__version__}")
print("expected: the same rows from a list in memory and from a JSON lines file")
print("load_dataset('json'):", from_file)
print("Dataset.from_list:   ", from_list)
print("arguments of one name and two types, from_list:", refused)
print("why it matters: a template writes the arguments as JSON, so the model learns to call")
print("each tool with the arguments of all tools, set to null. Data that trains well from a")
print("file does not when a script filters it first and calls from_list. Remedy: write a file")
print("and load it, or keep the arguments as a JSON string.")

assert from_file == [{"city": "Rome"}, {"a": 1, "b": 2}]
assert from_list == [{"city": "Rome", "a": None, "b": None}, {"city": None, "a": 1, "b": 2}]
assert refused
EOF
