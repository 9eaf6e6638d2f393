"""One GPU, random weights in the shape of a model: decoding, parts of a step, memory, exactness.

    python benchmarks/bench_gpu.py --json results/bench-gpu.json     # 7.62 B parameters, bfloat16
    python benchmarks/bench_gpu.py --layers 8 --batch-size 8 --max-new-tokens 256        # smaller
    PYTHONPATH=tests python benchmarks/bench_gpu.py --parts card families        # some parts
    python benchmarks/bench_gpu.py --device cpu --hidden 64 --layers 2 --batch-size 2 \\
        --max-new-tokens 16 --max-prompt-tokens 16 --max-teacher-prompt-tokens 32   # try the script

    card       bytes a second of a copy, bfloat16 FLOP a second of a matrix product
    families   decoding by a CUDA graph and step by step, tiny models: are the tokens the same?
    decoding   tokens a second: by a graph, step by step, and Hugging Face's generate, for prompts
               of a quarter to all of --max-prompt-tokens, beside what the copy's speed allows
    steps      whole steps with the optimiser's state in host memory and on the card (where the plan
               fits), and their peak memory against the plan
    adapters   a step that trains adapters of rank 16 instead
    exact      offloaded AdamW and EMA against those on the card; log-probabilities in bfloat16
               against float32

Weights and prompts are random and no completion ends early: the longest step. The first step and
the first decoding warm up and do not count. benchmarks/gpu_check.sh runs all parts in ten minutes.
"""

import argparse
import contextlib
import copy
import gc
import io
import json
import sys
import time
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
import transformers
from bench_memory import FIELDS
from common import ROOT, markdown_table, number, random_batch, timed_step, write_record
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

import sampling
from config import Config
from lora import add_adapters, share_base
from optim import AdamW, copy_model, prepare_for_training, relative_distance, update_ema
from sampling import completion_hidden, output_head, sample_completions
from support.models import checkpoint_layers, configure_cuda
from support.plan import fits, plan_run

PARTS = ["card", "families", "decoding", "steps", "exact", "adapters"]


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


def seconds_of(action, args):
    synchronize(args)
    started = time.perf_counter()
    action()
    synchronize(args)
    return time.perf_counter() - started


# ---- the card ----


def measure_card(args):
    """{"copy_bytes_per_s": read and written, "bfloat16_flop_per_s"}, the best of ten each."""
    on_gpu = args.device == "cuda"
    source = torch.zeros(2**31 if on_gpu else 2**24, dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    n = 8192 if on_gpu else 256
    square = torch.randn(n, n, dtype=torch.bfloat16, device=args.device)
    copying = [seconds_of(lambda: target.copy_(source), args) for _ in range(11)]
    product = [seconds_of(lambda: square @ square, args) for _ in range(11)]
    card = {
        "copy_bytes_per_s": 2 * source.nbytes / min(copying[1:]),
        "bfloat16_flop_per_s": 2 * n**3 / min(product[1:]),
    }
    copied, multiplied = (value / 1e12 for value in card.values())
    print(f"copy {copied:.2f} TB/s, bfloat16 product {multiplied:.0f} TFLOP/s", flush=True)
    return card


# ---- families ----


def compare_families(args):
    """{family and dtype: "equal", "… of … rows differ", or why it decodes step by step}."""
    from test_families import FAMILIES, SIZES  # PYTHONPATH=tests, and pytest

    verdicts = {}
    for family, (_, config_class, fields, verdict) in FAMILIES.items():
        if verdict != "right":
            continue
        for dtype in ("float32", "bfloat16"):
            name = f"{family}, {dtype}"
            try:
                sizes = {} if "text_config" in fields else SIZES
                config = getattr(transformers, config_class)(**sizes | fields)
                verdicts[name] = compare_tokens(config, getattr(torch, dtype), args)
            except Exception as error:  # of one family: the others are worth knowing
                verdicts[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name}: {verdicts[name]}", flush=True)
    return verdicts


def compare_tokens(config, dtype, args):
    """Tokens of a graph and of single steps from the same numbers: a verdict in words."""
    torch.manual_seed(0)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    prompts = [list(range(start, start + 3 * start)) for start in range(2, 18)]
    uniforms_BT = torch.rand(16, 40, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 40, "uniforms_BT": uniforms_BT}
    options |= {"eos_token_ids": [1, 5, 9], "pad_token_id": 1}
    with contextlib.redirect_stdout(io.StringIO()):  # the reason is reported below
        by_graph = sample_completions(model, prompts, **options, use_graph=True)
    step_by_step = sample_completions(model, prompts, **options, use_graph=False)
    if reason := getattr(model, "refuses_graph", None):
        return f"step by step: {reason}"
    width = max(r.completion_ids_BT.shape[1] for r in (by_graph, step_by_step))
    graph_ids_BT, step_ids_BT = (
        torch.nn.functional.pad(r.completion_ids_BT, (0, width - r.completion_ids_BT.shape[1]))
        for r in (by_graph, step_by_step)
    )
    different = (graph_ids_BT != step_ids_BT).any(1).sum().item()
    return f"{different} of 16 rows differ" if different else "equal"


# ---- decoding ----


def unequal_prompts(batch):
    """The prompts of a batch, cut to a quarter of their length and more."""
    prompts = [pair.student_prompt for pair in batch.pairs]
    least, most = max(1, len(prompts[0]) // 4), len(prompts[0])
    spread = max(1, len(prompts) - 1)
    return [prompt[: least + (most - least) * i // spread] for i, prompt in enumerate(prompts)]


def sample_ours(model, batch, args, use_graph=True):
    sample_completions(
        model,
        unequal_prompts(batch),
        max_new_tokens=args.max_new_tokens,
        uniforms_BT=batch.uniforms_BT,
        use_graph=use_graph,
        eos_token_ids=batch.eos_token_ids,
        pad_token_id=batch.pad_token_id,
    )


def sample_step_by_step(model, batch, args):
    sample_ours(model, batch, args, use_graph=False)


@torch.no_grad()
def sample_generate(model, batch, args):
    prompts = unequal_prompts(batch)
    P = max(map(len, prompts))
    ids_BP = torch.tensor([[0] * (P - len(prompt)) + prompt for prompt in prompts])
    mask_BP = torch.tensor([[0] * (P - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, max_new_tokens=args.max_new_tokens, pad_token_id=0
    )
    model.generate(
        input_ids=ids_BP.to(model.device),
        attention_mask=mask_BP.to(model.device),
        generation_config=config,
    )


def bandwidth_limit(model, args, bytes_per_s):
    """Tokens a second if each step only read the weights and the cache once."""
    config = model.config.get_text_config()
    weights = sum(p.nbytes for p in model.parameters())
    if not config.tie_word_embeddings:  # of the input embedding a step reads some rows
        weights -= model.get_input_embeddings().weight.nbytes
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * model.dtype.itemsize
    columns = args.max_prompt_tokens * 5 / 8 + args.max_new_tokens / 2  # in the mean
    B = args.batch_size
    return B * bytes_per_s / (weights + B * columns * token)


def measure_decoding(shape, args):
    """Tokens a second of args.batch_size rows, all to the limit; seconds that recording took."""
    limit_bytes = measure_card(args)["copy_bytes_per_s"]
    free_memory(args)
    model = build_student(shape, args)
    model.generation_config.eos_token_id = None  # generate would stop at it
    contenders = {
        "ours": sample_ours,
        "step_by_step": sample_step_by_step,
        "generate": sample_generate,
    }
    recording, plain_record = [], sampling.record

    def timed_record(*arguments):
        result = []
        recording.append(seconds_of(lambda: result.append(plain_record(*arguments)), args))
        return result.pop()

    speeds = {name: [] for name in contenders}
    few = argparse.Namespace(**vars(args) | {"max_new_tokens": min(16, args.max_new_tokens)})
    for sample in contenders.values():  # warm-up
        sample(model, random_batch(0, shape.vocab_size, few), few)
    # a first call of full length compares the graph, and may refuse it
    sample_ours(model, random_batch(0, shape.vocab_size, args), args)
    sampling.record = timed_record
    for repeat in range(args.repeats):
        batch = random_batch(repeat, shape.vocab_size, args)
        for name, sample in contenders.items():
            seconds = seconds_of(partial(sample, model, batch, args), args)
            speeds[name].append(args.batch_size * args.max_new_tokens / seconds)
            print(f"decoding, {name}: {speeds[name][-1]:.0f} tokens/s", flush=True)
    sampling.record = plain_record
    found = {name: median(values) for name, values in speeds.items()}
    found["limit"] = bandwidth_limit(model, args, limit_bytes)
    found["ours_of_limit"] = found["ours"] / found["limit"]
    found["recordings"] = len(recording) / args.repeats
    found["seconds_a_recording"] = mean(recording) if recording else None
    found["refuses_graph"] = getattr(model, "refuses_graph", None)
    if args.device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    print(f"decoding: {found['ours_of_limit']:.2f} of the limit of the copy's speed\n", flush=True)
    return found


# ---- exactness ----


def check_exact(args):
    """Distances that should be 0, and what bfloat16 rounds off log-probabilities, in nats."""
    toy = argparse.Namespace(**vars(args) | {"hidden": 256, "layers": 4, "dtype": "bfloat16"})
    shape = read_shape(toy)
    ends = []
    for offload in (False, True):
        student = build_student(shape, toy)
        prepare_for_training(student, offload)
        teacher = copy_model(student)
        optimizer = AdamW(student)
        generator = torch.Generator(args.device).manual_seed(0)
        for _ in range(3):
            for p in student.parameters():
                p.grad = torch.randn(p.shape, generator=generator, device=args.device)
            optimizer.step(1e-3)
            update_ema(teacher, student, 0.01)
        ends.append((student, teacher))
    (student, teacher), (offloaded_student, offloaded_teacher) = ends
    found = {
        "student_distance": relative_distance(offloaded_student, student),
        "teacher_distance": relative_distance(offloaded_teacher, teacher),
        "moved": relative_distance(build_reference(shape, toy), student),
    }
    found["bfloat16_nats"] = bfloat16_error(student, shape, args)
    print(", ".join(f"{name} {value:.2e}" for name, value in found.items()), flush=True)
    return found


def build_reference(shape, args):
    """The student before its updates."""
    reference = build_student(shape, args)
    prepare_for_training(reference, False)
    return reference


@torch.no_grad()
def bfloat16_error(model, shape, args):
    """completion_hidden in bfloat16 against whole passes of single rows in float32: mean |log p|"""
    exact = copy.deepcopy(model).float()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(shape.vocab_size, (n,), generator=generator).tolist() for n in (5, 40)]
    ids_BT = torch.randint(shape.vocab_size, (2, 30), generator=generator).to(args.device)
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    hidden_BTD = completion_hidden(model, prompts, ids_BT, mask_BT)
    logprobs_BTV = output_head(model)(hidden_BTD).float().log_softmax(-1)
    errors = []
    for prompt, ids_T, logprobs_TV in zip(prompts, ids_BT, logprobs_BTV, strict=True):
        whole_1L = torch.tensor([prompt + ids_T.tolist()], device=args.device)
        exact_TV = exact(input_ids=whole_1L, use_cache=False).logits[0, len(prompt) - 1 : -1]
        exact_TV = exact_TV.log_softmax(-1)
        errors.append((exact_TV.exp() * (exact_TV - logprobs_TV).abs()).sum(-1).mean().item())
    return mean(errors)


# ---- whole steps ----


def measure_steps(shape, args, offload=False, adapters=False):
    """{"seconds": {part: median}, "peak_bytes": the largest, None on a CPU}."""
    student = build_student(shape, args)
    if adapters:
        add_adapters(student, rank=16, alpha=32)
    prepare_for_training(student, offload)
    teacher = share_base(student) if adapters else copy_model(student).requires_grad_(False)
    optimizer = AdamW(student)
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


def measure_places(shape, args, found):
    """Add "in host memory" and "on the card", where the optimiser's state is, to what was found;
    a table each.
    """
    places = "in host memory", "on the card"
    for offload, place in zip((True, False), places, strict=True):
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
        if args.json:
            write_record(args.json, "bench_gpu", found)  # a time limit may end the next one
    if all(place in found for place in places):
        on_host, on_card = (found[place]["seconds"]["step"] for place in places)
        print(f"offloading: a step takes {on_host / on_card:.3f} times as long")


def measure(shape, args):
    """The parts that were asked for, in one dictionary."""
    found = {}
    if "card" in args.parts:
        found["card"] = measure_card(args)
    if "families" in args.parts:
        found["families"] = compare_families(args)
    if "decoding" in args.parts:
        found["decoding"] = measure_decoding(shape, args)
        free_memory(args)
    if "exact" in args.parts:
        found["exact"] = check_exact(args)
        free_memory(args)
    if "steps" in args.parts:
        measure_places(shape, args, found)
    if "adapters" in args.parts:
        found["adapters"] = measure_steps(shape, args, adapters=True)
        print(f"with adapters: {found['adapters']}", flush=True)
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
        if name in ("offload_optimizer", "teacher", "keep_last") or name.startswith("lora_"):
            continue
        flag, kind = "--" + name.replace("_", "-"), type(field.default)
        if kind is bool:
            add(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            add(flag, type=kind, default=field.default)
    add("--parts", nargs="+", choices=PARTS, default=["decoding", "steps"])
    add("--json", type=Path)
    parser.set_defaults(
        offload_optimizer=False,
        lora_rank=0,  # the part "adapters" takes 16
        teacher="ema",
        keep_last=1,
        max_prompt_tokens=256,
        max_teacher_prompt_tokens=512,
        general_tokens=0,
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: needs a CUDA GPU, and there is none; --device cpu --hidden 64 tries it")
    if args.device == "cuda":
        configure_cuda()
    found = measure(read_shape(args), args)
    if args.json:
        write_record(args.json, "bench_gpu", found)


if __name__ == "__main__":
    main()
