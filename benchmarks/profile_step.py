"""Where the seconds of an SDFT step go: the batch, model and lengths of bench_step.py.

    python benchmarks/profile_step.py --json results/profile-step.json
    python benchmarks/profile_step.py --lora-rank 16    # adapters in place of all weights

The parts are the functions that sdft_step calls, timed from outside; the rest is the backward pass.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from bench_step import batches, load_ours, longest_row, our_config
from common import markdown_table, write_record

import sdft
from lora import add_adapters, share_base
from optim import AdamW, copy_model, prepare_for_training


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="hub id, folder or smollm2")
    parser.add_argument("--steps", type=int, default=2, help="counted steps, after one to warm up")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters; 0: all weights")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.divergence, args.seed, args.no_eos = "forward", 0, False
    student, tokenizer, stop = load_ours(args)
    if args.lora_rank:
        add_adapters(student, args.lora_rank, 2 * args.lora_rank)
    prepare_for_training(student)
    optimizer = AdamW(student)
    teacher = share_base(student) if args.lora_rank else copy_model(student)
    config = our_config(args, longest_row(tokenizer, args))

    spent = defaultdict(float)

    def timed(part, function):
        def call(*positional, **named):
            started = time.perf_counter()
            try:
                return function(*positional, **named)
            finally:
                name = part
                if part == "forward":
                    name = f"{'student' if torch.is_grad_enabled() else 'teacher'}'s forward pass"
                spent[name] += time.perf_counter() - started

        return call

    for part, name in [
        ("sampling", "sample_completions"),
        ("forward", "completion_hidden"),
        ("vocabulary and divergence, forward", "compare_completions"),
        ("clipping", "clip_gradients"),
        ("EMA", "update_ema"),
    ]:
        setattr(sdft, name, timed(part, getattr(sdft, name)))
    optimizer.step = timed("AdamW", optimizer.step)

    steps = []
    for batch in batches(tokenizer, stop, args):
        spent.clear()
        started = time.perf_counter()
        sdft.sdft_step(student, teacher, optimizer, batch, config)
        seconds = time.perf_counter() - started
        steps.append(
            dict(spent) | {"backward pass": seconds - sum(spent.values()), "whole step": seconds}
        )
    parts = {part: median(step[part] for step in steps[1:]) for part in steps[0]}
    print(
        markdown_table(
            ["part of a step", "s", "share"],
            [[part, f"{s:.2f}", f"{s / parts['whole step']:.0%}"] for part, s in parts.items()],
        )
    )
    if args.json:
        write_record(
            args.json,
            "profile_step",
            {"threads": torch.get_num_threads(), "steps_counted": args.steps, "seconds": parts},
        )


if __name__ == "__main__":
    main()
