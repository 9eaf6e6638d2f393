"""Sampling speed: sample_completions beside Hugging Face's generate, in pairs in one process, on the same prompts.

    python benchmarks/bench_sampling.py --json results/sampling.json

64 prompts of our science samples, up to 64 new tokens at temperature 1, natural ends. Both draw from the same softmax, but not the
same tokens, so what is compared is tokens a second; --rows is how many prompts go together. generate gets the model as
from_pretrained loads it, ours what models.load_model makes of it.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import encode_prompt, load_task  # noqa: E402
from models import builtin_smollm2, describe_machine, keep_freed_memory, load_model, stop_tokens  # noqa: E402
from sampling import sample_completions  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()             # for both: they share the process
    folder = builtin_smollm2() if args.model == "smollm2" else args.model
    model, tokenizer = load_model(str(folder))
    untouched = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [encode_prompt(tokenizer, example.messages) for example in load_task("science", "train")[:args.prompts]]
    stop = stop_tokens(model, tokenizer)

    def ours(part, seed):
        uniforms_BT = torch.from_numpy(np.random.default_rng(seed).random((len(part), args.new_tokens)))
        return int(sample_completions(model, part, max_new_tokens=args.new_tokens, uniforms_BT=uniforms_BT, **stop).completion_mask_BT.sum())

    def generate(part, seed):
        torch.manual_seed(seed)
        P = max(map(len, part))
        ids_BP = torch.tensor([[stop["pad_token_id"]] * (P - len(prompt)) + prompt for prompt in part])
        mask_BP = torch.tensor([[0] * (P - len(prompt)) + [1] * len(prompt) for prompt in part])
        with torch.no_grad():
            output_BL = untouched.generate(input_ids=ids_BP, attention_mask=mask_BP, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                           max_new_tokens=args.new_tokens, eos_token_id=stop["eos_token_ids"], pad_token_id=stop["pad_token_id"])
        ended_BT = torch.isin(output_BL[:, P:], torch.tensor(stop["eos_token_ids"]))
        return int((ended_BT.cumsum(1) - ended_BT.int() == 0).sum())     # through the first EOS

    record = {"command": "python benchmarks/bench_sampling.py", "machine": describe_machine(), "new_tokens": args.new_tokens,
              "prompts": len(prompts), "prompt_tokens": statistics.mean(map(len, prompts)), "rows": []}
    print(f"{'rows':>5} {'ours':>10} {'generate':>10} {'ratio':>7}    tokens/s, medians of {args.repeats}")
    for rows in args.rows:
        parts = [prompts[i:i + rows] for i in range(0, len(prompts), rows)]
        speeds = {ours: [], generate: []}
        for function in speeds:                                          # warm up on a few
            function(prompts[:rows], 0)
        for repeat in range(args.repeats):
            for function in speeds:
                started = time.perf_counter()
                tokens = sum(function(part, repeat) for part in parts)
                speeds[function].append(tokens / (time.perf_counter() - started))
        ratio = statistics.median(a / b for a, b in zip(speeds[ours], speeds[generate]))
        print(f"{rows:>5} {statistics.median(speeds[ours]):>10.1f} {statistics.median(speeds[generate]):>10.1f} {ratio:>7.2f}", flush=True)
        record["rows"].append({"rows": rows, "ours_tokens_per_s": speeds[ours], "generate_tokens_per_s": speeds[generate], "ratio": ratio})
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
