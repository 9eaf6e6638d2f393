"""What a step costs: its parts, and an SDFT step beside an SFT step of ours on completions of the same length.

    python benchmarks/bench_step.py --json results/step.json

The laptop preset of a task, real prompts, the built-in model. Both steps alternate; the SFT step fits the completions that the SDFT
step before it has sampled, so both see the same tokens. The first pair warms up and is not counted.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdft  # noqa: E402
from config import Config, preset_values  # noqa: E402
from data import encode_pairs, load_task  # noqa: E402
from models import describe_machine, keep_freed_memory, load_model, stop_tokens  # noqa: E402
from optim import AdamW  # noqa: E402

PARTS = ["sample_completions", "completion_hidden", "compare_completions", "clip_gradients", "update_ema", "relative_distance"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="science")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    config = Config(preset="laptop", task=args.task, **(preset_values("laptop", args.task) | {"teacher": "ema"}))
    student, tokenizer = load_model(args.model)
    pairs, _ = encode_pairs(tokenizer, load_task(args.task, "train"), config.teacher_context, config.max_prompt_tokens, config.max_teacher_prompt_tokens)
    optimizer, stop = AdamW(student), stop_tokens(student, tokenizer)
    teacher = copy.deepcopy(student)
    spent = dict.fromkeys(PARTS, 0.0)
    for name in PARTS:
        setattr(sdft, name, timed(getattr(sdft, name), spent, name))
    optimizer.step = timed(optimizer.step, spent, "optimizer.step")

    rows = []
    for repeat in range(args.repeats + 1):
        batch = sdft.make_batch(pairs, repeat, config, stop)
        spent.update(dict.fromkeys([*PARTS, "optimizer.step"], 0.0))
        seconds, (metrics, rollout) = clock(sdft.sdft_step, student, teacher, optimizer, batch, config)
        parts = dict(spent)
        parts["backward and the rest"] = seconds - sum(parts.values())
        sft_seconds, _ = clock(sdft.likelihood_step, student, student, optimizer, dataclasses.replace(batch, given=rollout),
                               dataclasses.replace(config, method="sft", teacher="student"))
        if repeat:
            rows.append({"sdft_seconds": seconds, "sft_seconds": sft_seconds, "ratio": seconds / sft_seconds,
                         "completion_tokens": metrics["completion_tokens"], "parts": parts})
            print(f"SDFT {seconds:6.2f} s   SFT {sft_seconds:6.2f} s   ratio {seconds / sft_seconds:.2f}", flush=True)
    summary = {name: statistics.median(row[name] for row in rows) for name in ("sdft_seconds", "sft_seconds", "ratio", "completion_tokens")}
    summary["parts"] = {name: statistics.median(row["parts"][name] for row in rows) for name in rows[0]["parts"]}
    print(json.dumps(summary, indent=1))
    if args.json:
        record = {"command": f"python benchmarks/bench_step.py --task {args.task}", "batch": config.batch_size, "machine": describe_machine(),
                  "medians": summary, "steps": rows}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def timed(function, spent, name):
    def wrapped(*arguments, **options):
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - started
    return wrapped


def clock(function, *arguments):
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
