"""Memory: what the chunked loss saves, whether a run fits, plan against peak, offload's cost.

    python benchmarks/bench_memory.py --json results/bench-memory.json  # the loss, chunked or dense
    python benchmarks/bench_memory.py --plan benchmarks/configs/qwen2.5-7b.json  # one H200
    python benchmarks/bench_memory.py --plan FILE.json --gpu-mib 81559 --offload-optimizer
    python benchmarks/bench_memory.py --table                           # what fits which card
    python benchmarks/bench_memory.py --steps --json results/memory-plan.json  # plan and peak, CPU
    python benchmarks/bench_memory.py --offload --json results/offload.json  # its cost on a CPU

--plan takes a hub id, a folder, a config.json or smollm2, loads no weights, and exits with status 1
if the run does not fit.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from common import ROOT, markdown_table, number, random_batch, timed_step, write_record

from config import ADAPTERS, OFFLOAD, Config
from kl_estimators import DIVERGENCES, compare_completions
from optim import relative_distance
from support.plan import fits, plan_run, what_would_fit


def in_child(*words):
    """What a measurement in a process of its own prints, MiB."""
    # without this, small chunks would leave holes in glibc's heap, which it keeps
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"}
    command = [sys.executable, __file__, "--worker", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        what = " ".join(map(str, words))
        sys.exit(f"error: {what} ended with status {done.returncode}:\n{done.stderr[-1000:]}")
    return float(done.stdout)


# ---- the loss: forward and backward, in a process of its own ----


def dense_loss(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head):
    """The same sum, without chunks: both models' log-probabilities stand whole."""
    with torch.no_grad():
        teacher_logprobs_BTV = teacher_head(teacher_hidden_BTD).log_softmax(-1)
    return DIVERGENCES["reverse"](
        student_head(student_hidden_BTD).log_softmax(-1), teacher_logprobs_BTV
    ).sum()


def chunked_loss(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head):
    ids_BT = torch.zeros(student_hidden_BTD.shape[:2], dtype=torch.long)
    return compare_completions(
        student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head, ids_BT, "reverse"
    )[0].sum()


def measure_loss(form, T, V, D=64):
    """Peak memory of one forward and backward above what stood before it, in MiB."""
    student_head, teacher_head = (torch.nn.Linear(D, V, bias=False) for _ in range(2))
    student_hidden_BTD, teacher_hidden_BTD = (
        torch.randn(1, T, D, requires_grad=True),
        torch.randn(1, T, D),
    )
    loss = {"chunked": chunked_loss, "dense": dense_loss}[form]
    # the libraries' own buffers, and .grad
    loss(
        student_hidden_BTD[:, :1], student_head, teacher_hidden_BTD[:, :1], teacher_head
    ).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head).backward()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return kilobytes / (1024 if sys.platform != "darwin" else 1024**2)


def bench_loss(args):
    measured = []
    for V in args.vocabularies:
        for T in args.lengths:
            peaks = {"dense": [], "chunked": []}
            for _ in range(args.repeats):
                for form in peaks:
                    peaks[form].append(in_child("loss", form, T, V))
            medians = {form: median(found) for form, found in peaks.items()}
            ratio = medians["dense"] / max(medians["chunked"], 1e-9)
            measured.append({"positions": T, "vocabulary": V} | medians | {"ratio": ratio})
    print(
        "peak of the loss above its inputs, forward and backward, float32, one sequence, "
        f"hidden size 64, MiB; medians of {args.repeats}\n"
    )
    header = ["vocabulary", "positions", "dense", "chunked", "dense / chunked"]
    columns = ["vocabulary", "positions", "dense", "chunked"]
    rows = [[f"{m[name]:.0f}" for name in columns] + [f"{m['ratio']:.1f}"] for m in measured]
    print(markdown_table(header, rows))
    return measured


# ---- the plan ----


# the fields of Config that decide a run's memory, and are flags here too
FIELDS = """dtype teacher offload_optimizer gradient_checkpointing batch_size micro_batch_tokens
    max_new_tokens max_prompt_tokens max_teacher_prompt_tokens general_tokens
    keep_last lora_rank""".split()


def read_config(name):
    """The configuration of a config.json, or of what --model takes."""
    # here: a process that measures the loss must not have the memory of transformers
    from transformers import AutoConfig

    from support.models import read_config

    if Path(name).is_file():
        return AutoConfig.for_model(**json.loads(Path(name).read_text(encoding="utf-8")))
    return read_config(name)


def print_plan(args):
    model_config = read_config(args.plan)
    run = Config(**{name: getattr(args, name) for name in FIELDS})
    free = {"card": args.gpu_mib * 2**20}
    if args.host_mib:
        free["host"] = args.host_mib * 2**20
    if args.disk_mib:
        free["disk"] = args.disk_mib * 2**20
    plan = plan_run(model_config, run)
    where = "offloaded" if run.offload_optimizer else "on the card"
    print(
        f"{Path(args.plan).stem}: {plan['parameters'] / 1e9:.2f} B parameters, {run.dtype}, "
        f"optimiser {where}\n"
    )
    for part in ("training", "sampling", "host", "disk"):
        rows = [[name, f"{bytes_ / 1e9:.2f}"] for name, bytes_ in plan[part].items()]
        rows.append(["**sum**", f"**{sum(plan[part].values()) / 1e9:.2f}**"])
        print(markdown_table([part, "GB"], rows) + "\n")
    plan["free"], plan["fits"] = free, fits(plan, free)
    for place, bytes_ in free.items():
        needs = plan["needs"][place]
        verb = "fits" if needs <= bytes_ else "does not fit"
        print(
            f"{verb}: {needs / 1e9:.1f} GB on the {place}, which has {bytes_ / 1e9:.1f} "
            f"({abs(bytes_ - needs) / 1e9:.1f} {'left' if needs <= bytes_ else 'too much'})"
        )
    if not plan["fits"]:
        print(f"what would fit: {what_would_fit(model_config, run, 'cuda', free)}")
    return plan


# ---- the plan against measured steps, on a CPU ----

SHAPES = {  # vocabulary, hidden, layers, heads, key-value heads, MLP
    "10M": (8192, 256, 8, 4, 2, 768),
    "40M": (16384, 512, 10, 8, 4, 1536),
    "135M": (49152, 576, 30, 9, 3, 1536),
}
STEP = Config(
    batch_size=4,
    micro_batch_tokens=192,  # two rows
    max_new_tokens=32,
    max_prompt_tokens=64,
    max_teacher_prompt_tokens=64,
    general_tokens=0,
)


def llama_config(V, D, layers, heads, kv_heads, mlp):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        tie_word_embeddings=True,
    )


def build_run(shape, dtype, checkpointing=False, offload=False):
    """A random model -> (student, teacher, optimizer), the arguments of sdft_step."""
    from transformers import AutoModelForCausalLM

    from optim import AdamW, copy_model, prepare_for_training
    from support.models import checkpoint_layers

    torch.manual_seed(0)
    student = AutoModelForCausalLM.from_config(llama_config(*shape), dtype=getattr(torch, dtype))
    prepare_for_training(student.eval(), offload)
    optimizer = AdamW(student)
    teacher = copy_model(student).requires_grad_(False)
    if checkpointing:
        checkpoint_layers(student)
    return student, teacher, optimizer


def take_second_step(shape, dtype, checkpointing, offload):
    """A step that finds the state where a first one would have left it."""
    from sdft import sdft_step

    student, teacher, optimizer = build_run(shape, dtype, checkpointing, offload)
    owned = [optimizer.moments, *(getattr(m, "remainders", {}) for m in (student, teacher))]
    for state in [tensor for tensors in owned for tensor in tensors.values()]:
        state.zero_()  # zeros that nobody has written take no memory yet
    sdft_step(student, teacher, optimizer, random_batch(0, shape[0], STEP), STEP)


def measure_step(name, dtype, checkpointing, offload):
    """Peak resident memory of a step above that of the libraries after a tiny one, MiB."""
    take_second_step((512, 64, 2, 4, 2, 128), dtype, False, False)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    take_second_step(SHAPES[name], dtype, checkpointing == "True", offload == "True")
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak - pages * resource.getpagesize()) / 2**20


def bench_steps(args):
    measured = []
    for name, shape in SHAPES.items():
        for dtype, checkpointing, offload in [
            ("float32", False, False),
            ("float32", True, True),
            ("bfloat16", False, False),
        ]:
            run = replace(STEP, dtype=dtype, gradient_checkpointing=checkpointing)
            run.offload_optimizer = offload
            plan = plan_run(llama_config(*shape), run, device="cpu")
            planned = (plan["needs"]["host"] - plan["host"]["libraries"]) / 2**20
            peak = median(
                in_child("step", name, dtype, checkpointing, offload) for _ in range(args.repeats)
            )
            row = dict(model=name, dtype=dtype, checkpointing=checkpointing, offload=offload)
            measured.append(row | dict(planned=planned, peak=peak, ratio=planned / peak))
            print(measured[-1], file=sys.stderr, flush=True)
    rows = [
        [*list(m.values())[:4], f"{m['planned']:.0f}", f"{m['peak']:.0f}", f"{m['ratio']:.2f}"]
        for m in measured
    ]
    print(markdown_table([*list(measured[0])[:4], "plan, MiB", "peak, MiB", "plan / peak"], rows))
    return measured


# ---- what offloading costs on a CPU, where it copies and nothing overlaps ----


def bench_offload(args):
    """CPU seconds of steps with the state beside the weights and offloaded, in turn; same bits."""
    measured = []
    for dtype in ("float32", "bfloat16"):
        runs = {offload: build_run(SHAPES["40M"], dtype, offload=offload) for offload in (0, 1)}
        seconds = {"a step": {0: [], 1: []}, "its AdamW and EMA": {0: [], 1: []}}
        for step in range(1 + args.repeats):
            for offload in (0, 1) if step % 2 else (1, 0):
                whole, update = timed_update(step, *runs[offload])
                seconds["a step"][offload].append(whole)
                seconds["its AdamW and EMA"][offload].append(update)
        student, teacher = ([run[model] for run in runs.values()] for model in (0, 1))
        distance = max(relative_distance(*student), relative_distance(*teacher))
        for part, found in seconds.items():
            beside, offloaded = found[0][1:], found[1][1:]  # the first step warms up
            ratio = median(b / a for a, b in zip(beside, offloaded, strict=True))
            row = dict(dtype=dtype, part=part, beside=median(beside), offloaded=median(offloaded))
            measured.append(row | dict(ratio=ratio, distance=distance))
    print("CPU seconds, medians; ratio: median of the pairs; distance between the weights\n")
    rows = [[*list(m.values())[:2], *map(number, list(m.values())[2:])] for m in measured]
    print(markdown_table(list(measured[0]), rows))
    return measured


def timed_update(step, student, teacher, optimizer):
    """CPU seconds of (a whole step, its AdamW and EMA); other processes do not count."""
    batch = random_batch(step, SHAPES["40M"][0], STEP)
    seconds = timed_step(student, teacher, optimizer, batch, STEP, clock=time.process_time)
    return seconds["step"], seconds["AdamW"] + seconds["EMA"]


def print_table():
    """What fits which card, by preset paper: the largest models first."""
    from transformers import AutoConfig

    cards, rows = {"24": 24e9, "48": 48e9, "80": 81_559 * 2**20, "H200": 143_771 * 2**20}, []
    for size in ("32b", "14b", "7b", "3b", "1.5b", "0.5b"):
        file = ROOT / f"benchmarks/configs/qwen2.5-{size}.json"
        model_config = AutoConfig.for_model(**json.loads(file.read_text(encoding="utf-8")))
        for how, flags in (("all weights", {}), ("offloaded", OFFLOAD), ("adapters", ADAPTERS)):
            needs = plan_run(model_config, Config(**flags))["needs"]
            fitting = [card for card, free in cards.items() if needs["card"] <= free]
            row = [f"Qwen2.5-{size.upper()}", how]
            row += [f"{needs[place] / 1e9:.0f}" for place in ("card", "host", "disk")]
            rows.append([*row, f"from {fitting[0]}" if fitting else "none of these"])
    header = ["model", "learning", "card, GB", "host, GB", "disk, GB", "fits (24, 48, 80 GB, H200)"]
    print(markdown_table(header, rows))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--plan", metavar="MODEL", help="hub id, folder, config.json or smollm2")
    add("--gpu-mib", type=int, default=143_771, help="memory of the card; default: an H200's")
    add("--host-mib", type=int, help="memory of the host, if it is to be compared")
    add("--disk-mib", type=int, help="free disk, if it is to be compared")
    for name in FIELDS:
        field = Config.__dataclass_fields__[name]
        flag, kind = "--" + name.replace("_", "-"), type(field.default)
        if kind is bool:
            add(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            choices = field.metadata.get("choices")
            add(flag, type=kind, default=field.default, choices=choices)
    add("--table", action="store_true", help="what fits which card, from 0.5 B to 32 B parameters")
    add("--steps", action="store_true", help="measure whole steps on this CPU against the plan")
    add("--offload", action="store_true", help="measure what --offload-optimizer costs on this CPU")
    add("--lengths", type=int, nargs="+", default=[256, 1024, 2048], help="of the measured loss")
    add("--vocabularies", type=int, nargs="+", default=[49_152, 151_936])
    add("--repeats", type=int, default=3)
    add("--json", type=Path)
    add("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        return print_table()
    if args.worker:
        what, *words = args.worker
        if what == "loss":
            return print(measure_loss(words[0], int(words[1]), int(words[2])))
        return print(measure_step(*words))
    try:
        if args.plan:
            numbers = {"plan": print_plan(args)}
        elif args.steps:
            numbers = {"step_mib": bench_steps(args)}
        elif args.offload:
            numbers = {"offload": bench_offload(args)}
        else:
            numbers = {"loss_mib": bench_loss(args)}
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.json:
        write_record(args.json, "bench_memory", numbers)
    sys.exit(0 if not args.plan or numbers["plan"]["fits"] else 1)


if __name__ == "__main__":
    main()
