"""One GPU, random weights in the shape of a model: decoding, parts of a step, memory, offloading.

    export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True          # memory is tight: no holes
    python benchmarks/bench_gpu.py --json results/bench-gpu.json     # 7.62 B parameters, bfloat16
    python benchmarks/bench_gpu.py --layers 8 --batch-size 8 --max-new-tokens 256        # smaller
    python benchmarks/bench_gpu.py --device cpu --hidden 64 --layers 2 --batch-size 2 \\
        --max-new-tokens 8 --max-prompt-tokens 16 --max-teacher-prompt-tokens 32    # try the script

Measures tokens a second of our sampler and of Hugging Face's generate, then whole steps with the
optimiser's state on the card and in host memory (each where the plan fits), and their peak memory
against the plan. Weights and prompts are random and no completion ends early: the longest step.
The first step and the first decoding warm up and do not count.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
from bench_memory import FIELDS
from common import ROOT, markdown_table, number, random_batch, timed_step, write_record
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from config import Config
from optim import AdamW, copy_model, prepare_for_training
from sampling import sample_completions
from support.models import checkpoint_layers
from support.plan import fits, plan_run


def read_shape(args):
    shape = json.loads(args.model.read_text(encoding="utf-8"))
    if args.layers:
        shape["num_hidden_layers"] = args.layers
    if args.hidden:
        shape |= {"hidden_size": args.hidden, "intermediate_size": 4 * args.hidden}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}
    return AutoConfig.for_model(**shape)


def build_student(shape, args):
    torch.manual_seed(0)
    with torch.device(args.device):
        student = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, args.dtype)).eval()
    return student


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


def free_memory(args):
    """After the last reference to a model is gone."""
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()


# ---- decoding ----


def sample_ours(model, batch, args):
    sample_completions(
        model,
        [pair.student_prompt for pair in batch.pairs],
        max_new_tokens=args.max_new_tokens,
        uniforms_BT=batch.uniforms_BT,
        **batch.stop_tokens,
    )


@torch.no_grad()
def sample_generate(model, batch, args):
    prompts = [pair.student_prompt for pair in batch.pairs]
    ids_BP = torch.tensor(prompts, device=model.device)
    config = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, max_new_tokens=args.max_new_tokens, pad_token_id=0
    )
    model.generate(
        input_ids=ids_BP, attention_mask=torch.ones_like(ids_BP), generation_config=config
    )


def measure_decoding(shape, args):
    """{"ours", "generate"}: tokens a second, both of args.batch_size rows to the limit."""
    model, found = build_student(shape, args), {"ours": [], "generate": []}
    model.generation_config.eos_token_id = None  # generate would stop at it
    for repeat in range(1 + args.repeats):
        batch = random_batch(repeat, shape.vocab_size, args)
        for name, sample in (("ours", sample_ours), ("generate", sample_generate)):
            synchronize(args)
            started = time.perf_counter()
            sample(model, batch, args)
            synchronize(args)
            seconds = time.perf_counter() - started
            found[name].append(args.batch_size * args.max_new_tokens / seconds)
    return {name: median(speeds[1:]) for name, speeds in found.items()}


# ---- whole steps ----


def measure_steps(shape, args, offload):
    """{"seconds": {part: median}, "peak_bytes": the largest, None on a CPU}."""
    student = build_student(shape, args)
    prepare_for_training(student, offload)
    optimizer = AdamW(student)
    teacher = copy_model(student).requires_grad_(False)
    if args.gradient_checkpointing:
        checkpoint_layers(student)
    config = Config(**{name: getattr(args, name) for name in FIELDS})
    peaks = []

    def clock():
        synchronize(args)
        if args.device == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        return time.perf_counter()

    steps = []
    for step in range(1 + args.repeats):
        peaks.clear()
        batch = random_batch(step, shape.vocab_size, args)
        steps.append(timed_step(student, teacher, optimizer, batch, config, clock))
    del steps[0]  # it warms up
    parts = {part: median(seconds[part] for seconds in steps) for part in steps[0]}
    # the first peak of a step is of what came before it
    return {"seconds": parts, "peak_bytes": max(peaks[1:], default=None)}


def measure_all(shape, args):
    """{"decoding": …, "on the card": …, "in host memory": …} and a line about each."""
    found = {"decoding": measure_decoding(shape, args)}
    free_memory(args)
    ours, generate = found["decoding"].values()
    print(f"decoding, tokens a second: ours {ours:.0f}, generate {generate:.0f}\n", flush=True)
    for offload, place in ((False, "on the card"), (True, "in host memory")):
        run = Config(**{name: getattr(args, name) for name in FIELDS})
        run.offload_optimizer = offload
        plan = plan_run(shape, run, args.device)
        if args.device == "cuda":
            free = {"card": torch.cuda.get_device_properties(0).total_memory}
            if not fits(plan, free):
                needs = plan["needs"]["card"] / 1e9
                print(f"state {place}: left out, the plan is {needs:.1f} GB", flush=True)
                continue
        found[place] = measure_steps(shape, args, offload) | {"plan": plan}
        free_memory(args)
        seconds, peak = found[place]["seconds"], found[place]["peak_bytes"]
        rows = [[part, number(s), f"{s / seconds['step']:.2f}"] for part, s in seconds.items()]
        print(markdown_table([f"state {place}", "s", "share of the step"], rows), flush=True)
        if peak is not None:
            # the allocator does not count the context
            planned = plan["needs"]["card"] - plan["training"]["CUDA context"]
            ratio = f"plan / peak {planned / peak:.2f}"
            print(f"peak {peak / 1e9:.2f} GB, planned {planned / 1e9:.2f}, {ratio}\n", flush=True)
    if "on the card" in found and "in host memory" in found:
        on_card, on_host = (
            found[place]["seconds"]["step"] for place in ("on the card", "in host memory")
        )
        print(f"offloading: a step takes {on_host / on_card:.3f} times as long")
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default_model = ROOT / "benchmarks" / "configs" / "qwen2.5-7b.json"
    add("--model", type=Path, default=default_model, help="a config.json: only the shape is taken")
    add("--repeats", type=int, default=1, help="counted steps, after the one that warms up")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--layers", type=int, help="fewer layers than the configuration has")
    add("--hidden", type=int, help="a toy: a multiple of 8, with a vocabulary of 1000")
    for name in FIELDS:
        field = Config.__dataclass_fields__[name]
        if name in ("offload_optimizer", "teacher", "keep_last"):
            continue
        flag, kind = "--" + name.replace("_", "-"), type(field.default)
        if kind is bool:
            add(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            add(flag, type=kind, default=field.default)
    add("--json", type=Path)
    parser.set_defaults(
        offload_optimizer=False,
        teacher="ema",
        keep_last=1,
        max_prompt_tokens=256,
        max_teacher_prompt_tokens=512,
        general_tokens=0,
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: needs a CUDA GPU, and there is none; --device cpu --hidden 64 tries it")
    found = measure_all(read_shape(args), args)
    if args.json:
        write_record(args.json, "bench_gpu", found)


if __name__ == "__main__":
    main()
