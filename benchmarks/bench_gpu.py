"""One whole SDFT step at the shape of Qwen2.5-7B on one CUDA GPU: time of its parts and peak memory, with random weights.

    export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True                       # 4 GB are left: holes between blocks must not cost them
    python benchmarks/bench_gpu.py --json results/bench-gpu.json                  # 7.62 B parameters, bfloat16, one H200
    python benchmarks/bench_gpu.py --layers 8 --batch 8 --new-tokens 256          # smaller
    python benchmarks/bench_gpu.py --device cpu --dtype float32 --layers 2 --hidden 64 --batch 2 --new-tokens 8 --prompt-tokens 16

Neither hub nor tokenizer: the weights and the prompts' tokens are random, so nearly every completion runs to the limit, and the
time is that of the longest possible step. The first step is a warm-up (it also creates what the allocator keeps).
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

from common import ROOT, markdown_table, number, write_record

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench_memory import make_plan
from config import Config
from models import checkpoint_layers, use_small_products
from optim import AdamW
from sdft import Batch, sdft_step


def shrink(config, layers, hidden):
    if layers is not None:
        config["num_hidden_layers"] = layers
    if hidden is not None:
        config |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}
    return config


def random_batch(step, vocabulary, args):
    generator = torch.Generator().manual_seed(step)

    def prompts(length):
        return torch.randint(vocabulary, (args.batch, length), generator=generator).tolist()
    uniforms_BT = torch.rand(args.batch, args.new_tokens, generator=generator, dtype=torch.float64)
    return Batch(step, [str(row) for row in range(args.batch)], prompts(args.prompt_tokens), prompts(2 * args.prompt_tokens), uniforms_BT, 1e-5,
                 {"eos_token_ids": [0], "pad_token_id": 0})


def timed_step(student, teacher, optimizer, batch, config, device):
    """sdft_step -> seconds of its parts, and each part's peak bytes on a GPU."""
    at, peak = {}, {}

    def mark(name):
        if device.type == "cuda":
            torch.cuda.synchronize()
            peak[name] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        at[name] = time.perf_counter()

    def step(learning_rate):
        mark("sampling and scoring")
        optimizer.step(learning_rate)
        mark("optimiser")
    mark("start")
    metrics, rollout = sdft_step(student, teacher, SimpleNamespace(step=step), batch, config)
    mark("EMA")
    seconds = {"sampling": metrics["sampling_seconds"], "scoring": at["sampling and scoring"] - at["start"] - metrics["sampling_seconds"],
               "optimiser": at["optimiser"] - at["sampling and scoring"], "EMA and metrics": at["EMA"] - at["optimiser"], "step": at["EMA"] - at["start"]}
    return {"seconds": seconds, "peak_bytes": {name: value for name, value in peak.items() if name != "start"},
            "completion_tokens": int(rollout.completion_mask_BT.sum())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "benchmarks" / "configs" / "qwen2.5-7b.json", help="a config.json: only the shape is taken")
    parser.add_argument("--repeats", type=int, default=1, help="counted steps after the warm-up")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=2048)
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of the student's prompts; the teacher's are twice as long")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--divergence", choices=["reverse", "forward", "jsd"], default="reverse")
    parser.add_argument("--layers", type=int, help="fewer layers than the configuration has")
    parser.add_argument("--hidden", type=int, help="a toy: this hidden size, a multiple of 8, and 1000 tokens of vocabulary")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: this needs a CUDA GPU and there is none; --device cpu --layers 2 --hidden 64 tries the script")
    device = torch.device(args.device)
    shape = AutoConfig.for_model(**shrink(json.loads(args.model.read_text(encoding="utf-8")), args.layers, args.hidden))
    card_bytes = torch.cuda.get_device_properties(0).total_memory if args.device == "cuda" else 0
    plan = make_plan(shape, args.dtype, card_bytes, args.batch, args.new_tokens, 2 * args.prompt_tokens, args.micro_batch)
    if args.device == "cuda" and not plan["fits"]:
        sys.exit(f"error: the plan is {plan['peak'] / 1e9:.1f} GB, the card has {card_bytes / 1e9:.1f}; see bench_memory.py --plan {args.model.name}")

    torch.manual_seed(0)
    with device:
        student = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, args.dtype)).eval()
    use_small_products(student)
    optimizer = AdamW(student)
    teacher = copy.deepcopy(student).requires_grad_(False)     # after AdamW, which gives bfloat16 weights their remainders
    checkpoint_layers(student)
    config = Config(divergence=args.divergence, batch_size=args.batch, micro_batch_size=args.micro_batch, micro_batch_tokens=10 ** 9,
                    max_new_tokens=args.new_tokens)
    steps = [timed_step(student, teacher, optimizer, random_batch(step, shape.vocab_size, args), config, device) for step in range(1 + args.repeats)][1:]

    seconds = {part: median(step["seconds"][part] for step in steps) for part in steps[0]["seconds"]}
    tokens = median(step["completion_tokens"] for step in steps)
    print(f"{args.model.stem}'s shape{' (shrunk)' if args.layers or args.hidden else ''}, {plan['parameters'] / 1e9:.2f} B parameters, random weights, {args.dtype}, "
          f"{args.device}; batch {args.batch}, micro-batch {args.micro_batch}, {args.prompt_tokens} + {args.new_tokens} tokens, median of {args.repeats}\n")
    print(markdown_table(["", "s", "share of the step"], [[part, number(s), f"{s / seconds['step']:.2f}"] for part, s in seconds.items()]))
    print(f"\n{tokens / seconds['step']:.0f} completion tokens a second of the step, {tokens / seconds['sampling']:.0f} of sampling")
    peak_bytes = max((value for step in steps for value in step["peak_bytes"].values()), default=None)
    if peak_bytes is not None:
        planned = plan["peak"] - plan["training"]["CUDA context"]       # the allocator does not count the context
        print(f"peak {peak_bytes / 1e9:.2f} GB allocated; planned {planned / 1e9:.2f}, ratio {peak_bytes / planned:.2f}")
    if args.json:
        write_record(args.json, "bench_gpu", {"median_seconds": seconds, "completion_tokens": tokens, "peak_bytes": peak_bytes, "plan": plan, "steps": steps})


if __name__ == "__main__":
    main()
