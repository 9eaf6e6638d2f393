"""A step of ours, a step of TRL's SDFTTrainer (trl 1.16, experimental), and an SFT step of ours.

    pip install trl==1.16.0
    python benchmarks/bench_step.py --json results/bench-step.json    # natural ends
    python benchmarks/bench_step.py --no-eos                          # all run to the limit
    python benchmarks/bench_step.py --dtype bfloat16 --json results/bench-step-bf16.json
    python benchmarks/bench_step.py --lora-rank 16 --json results/bench-step-adapters.json

The same for all: model, arithmetic, CPU, no gradient checkpointing, prompts and teacher prompts
(checked token by token), one completion a prompt, full-vocabulary divergence, first three tokens
without a loss, micro-batch, AdamW with clipping to 1, EMA after each step. In bfloat16 each has its
own way: TRL autocast over float32 weights, ours bfloat16 weights with remainders (optim.py). Every
contender runs in a process of its own, so that peak memory is its own, and they take turns; the
first step of each process is a warm-up. With --lora-rank R ours and trl (by peft 0.21) train
adapters on all linear layers but the head, alpha 2 R, and "full" is ours with all weights. Without
it there are three more; sft and products get as many completion tokens, row by row, as ours has
just sampled:

    sft        baselines.likelihood_step: the difference is what sampling and the teacher cost
    lean       ours with one sequence in a micro-batch, which takes less memory
    products   only the matrix products of the prompts' pass, the teacher's pass and the student's
               with backward: what a plain implementation cannot go below, without sampling's
               single tokens
"""

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from common import markdown_table, number, write_record

from baselines import likelihood_step
from config import Config
from data import Example, encode_pairs, load_task, teacher_messages
from lora import add_adapters, share_base
from optim import AdamW, copy_model, prepare_for_training
from sampling import stop_tokens
from sdft import Batch, sdft_step
from support.models import builtin_smollm2, load_model

CONTENDERS = ["ours", "trl", "sft", "lean", "products"]
WITH_ADAPTERS = ["ours", "trl", "full"]
LEARNING_RATE, EMA_RATE, SKIP_FIRST_TOKENS = 1e-5, 0.01, 3
TRL_ALPHA = {
    "forward": 0.0,
    "reverse": 1.0,
}  # its distillation_alpha: 0 is KL(teacher || student), 1 is KL(student || teacher)


# ---- what all contenders are given ----


def training_examples(args):
    """As many science examples as the warm-up and the counted steps take, from the first again
    after the last.
    """
    examples = itertools.cycle(load_task("science", "train"))
    return list(itertools.islice(examples, args.batch_size * (1 + args.steps)))


def batches(tokenizer, stop, args):
    pairs = quiet_pairs(tokenizer, training_examples(args), args)
    for step in range(1 + args.steps):
        chosen = pairs[step * args.batch_size : (step + 1) * args.batch_size]
        generator = torch.Generator().manual_seed(1000 * args.seed + step)
        uniforms_BT = torch.rand(
            len(chosen), args.max_new_tokens, generator=generator, dtype=torch.float64
        )
        yield Batch(step, chosen, uniforms_BT, LEARNING_RATE, **stop)


def quiet_pairs(tokenizer, examples, args):
    """data.encode_pairs without its line: the last line of a process is its result."""
    with contextlib.redirect_stdout(io.StringIO()):
        return encode_pairs(tokenizer, examples, our_config(args))


def longest_row(tokenizer, args):
    """Tokens of the longest teacher prompt with the longest completion."""
    pairs = quiet_pairs(tokenizer, training_examples(args), args)
    return max(len(pair.teacher_prompt) for pair in pairs) + args.max_new_tokens


def our_config(args, row_tokens=1):
    """Micro-batches of --micro-batch-size rows of the longest length, or of more shorter ones."""
    return Config(
        divergence=args.divergence,
        batch_size=args.batch_size,
        micro_batch_tokens=args.micro_batch_size * row_tokens,
        max_new_tokens=args.max_new_tokens,
        max_prompt_tokens=10**9,
        max_teacher_prompt_tokens=10**9,
        skip_first_tokens=SKIP_FIRST_TOKENS,
        ema_rate=EMA_RATE,
        max_grad_norm=1.0,
    )


def load_ours(args):
    model, tokenizer = load_model(args.model, dtype=args.dtype)
    stop = stop_tokens(model, tokenizer)
    if args.no_eos:
        stop["eos_token_ids"] = [model.config.vocab_size]  # an id that is never drawn
    return model, tokenizer, stop


# ---- the contenders: -> (seconds, completion lengths) of each step, the warm-up first ----


def run_ours(args, one_row=False, all_weights=False):
    student, tokenizer, stop = load_ours(args)
    has_adapters = args.lora_rank > 0 and not all_weights
    if has_adapters:
        add_adapters(student, args.lora_rank, 2 * args.lora_rank)
    prepare_for_training(student)
    optimizer = AdamW(student)
    teacher = share_base(student) if has_adapters else copy_model(student)
    # at most one token leaves one row
    config = our_config(args, 1 if one_row else longest_row(tokenizer, args))
    seconds, lengths = [], []
    for batch in batches(tokenizer, stop, args):
        started = time.perf_counter()
        _, rollout = sdft_step(student, teacher, optimizer, batch, config)
        seconds.append(time.perf_counter() - started)
        lengths.append(rollout.completion_mask_BT.sum(1).tolist())
    return seconds, lengths


def run_sft(args):
    model, tokenizer, stop = load_ours(args)
    prepare_for_training(model)
    optimizer = AdamW(model)
    config = replace(our_config(args, longest_row(tokenizer, args)), teacher="none")
    seconds, lengths = [], json.loads(args.lengths)
    for batch, lengths_B in zip(batches(tokenizer, stop, args), lengths, strict=True):
        # the teacher's prompt holds the demonstration; which tokens they are changes no time
        for i, (pair, length) in enumerate(zip(batch.pairs, lengths_B, strict=True)):
            completion = (pair.teacher_prompt * args.max_new_tokens)[:length]
            batch.pairs[i] = replace(pair, teacher_prompt=[], completion=completion)
        started = time.perf_counter()
        likelihood_step(model, None, optimizer, batch, config)
        seconds.append(time.perf_counter() - started)
    return seconds, lengths


@torch.no_grad()
def run_products(args):
    model, tokenizer, stop = load_ours(args)
    layers = [
        module.weight
        for module in model.base_model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    seconds, lengths = [], json.loads(args.lengths)
    for batch, lengths_B in zip(batches(tokenizer, stop, args), lengths, strict=True):
        new, parts = sum(lengths_B), args.batch_size // args.micro_batch_size
        prompts = sum(len(pair.student_prompt) for pair in batch.pairs)
        teacher_prompts = sum(len(pair.teacher_prompt) for pair in batch.pairs)
        head = model.get_output_embeddings().weight
        of_layers = layers, prompts + new, prompts + teacher_prompts + new
        started = time.perf_counter()
        for _ in range(parts):
            for weights, student, forward in (of_layers, ([head], new, new)):
                for weight in weights:
                    x = weight.new_zeros(student // parts, weight.shape[1])
                    y = weight.new_zeros(student // parts, weight.shape[0])
                    (x @ weight.T, y @ weight, y.T @ x)  # forward, and both products of backward
                    weight.new_zeros(forward // parts, weight.shape[1]) @ weight.T
        seconds.append(time.perf_counter() - started)
    return seconds, lengths


def run_trl(args):
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    folder = str(builtin_smollm2() if args.model == "smollm2" else args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = training_examples(args)
    rows = [
        {"prompt": example.messages, "privileged_context": example.demonstration}
        for example in examples
    ]
    placeholder = Example(
        "",
        "science",
        [{"role": "user", "content": "{prompt}"}],
        demonstration="{privileged_context}",
    )
    ends, lengths = [], []

    class Clock(
        TrainerCallback
    ):  # the loop is TRL's: added last, this runs after the EMA, once a step
        def on_step_end(self, *_, **__):
            parts = trainer._buffered_inputs
            lengths.append(
                [length for part in parts for length in part["raw_completion_lengths"].tolist()]
            )
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as output:
        config = SDFTConfig(
            output_dir=output,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=args.seed,
            use_cpu=True,
            bf16=args.dtype == "bfloat16",  # autocast over float32 weights
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=args.micro_batch_size,
            gradient_accumulation_steps=args.batch_size // args.micro_batch_size,
            max_steps=1 + args.steps,
            shuffle_dataset=False,
            num_generations=1,
            max_prompt_length=None,
            max_completion_length=args.max_new_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            teacher_prompt_template=teacher_messages(placeholder)[-1]["content"],
            distillation_mode="full_logits",
            distillation_alpha=TRL_ALPHA[args.divergence],
            distillation_is_clip=None,
            num_loss_tokens_to_skip=SKIP_FIRST_TOKENS,
            teacher_model_kind="ema",
            teacher_update_rate=EMA_RATE,
            teacher_sync_steps=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
        )
        adapters = None
        if args.lora_rank:
            from peft import LoraConfig

            adapters = LoraConfig(
                r=args.lora_rank,
                lora_alpha=2 * args.lora_rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
        trainer = SDFTTrainer(
            model=folder,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapters,
        )
        check_trl_prompts(trainer, tokenizer, examples, args)
        if args.no_eos:
            trainer.eos_token_ids = trainer.generation_config.eos_token_id = [
                trainer.model.config.vocab_size
            ]
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Clock())
        ends.append(time.perf_counter())
        trainer.train()
    return [end - start for start, end in itertools.pairwise(ends)], lengths


def check_trl_prompts(trainer, tokenizer, examples, args):
    """Stop if TRL would feed other tokens than we do."""
    pairs = quiet_pairs(tokenizer, examples, args)
    student, contexts = (
        [example.messages for example in examples],
        [example.demonstration for example in examples],
    )
    teacher = trainer.teacher_context_builder.select_generation_prompts(student, contexts)
    if ([pair.student_prompt for pair in pairs], [pair.teacher_prompt for pair in pairs]) != (
        trainer._tokenize_prompts(student),
        trainer._tokenize_prompts(teacher),
    ):
        raise ValueError(
            "TRL makes other prompts of these examples than data.py; times would not compare"
        )


# ---- turns, each in its own process ----


def run_turn(name, args, seed, lengths=None):
    valued = ["model", "dtype", "steps", "batch_size", "micro_batch_size", "max_new_tokens"]
    valued += ["divergence", "lora_rank"]
    flags = [f"--{flag.replace('_', '-')}={getattr(args, flag)}" for flag in valued]
    flags += ["--no-eos"] if args.no_eos else []
    command = [
        sys.executable,
        __file__,
        f"--worker={name}",
        f"--seed={seed}",
        f"--lengths={json.dumps(lengths)}",
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {name} did not end:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def worker(args):
    seconds, lengths = {
        "ours": run_ours,
        "lean": partial(run_ours, one_row=True),
        "full": partial(run_ours, all_weights=True),
        "trl": run_trl,
        "sft": run_sft,
        "products": run_products,
    }[args.worker](args)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "seconds": seconds[1:],
                "lengths": lengths,
                "peak_mib": kilobytes / (1024 if sys.platform != "darwin" else 1024**2),
            }
        )
    )


def trl_version():
    try:
        return importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="hub id, folder or smollm2")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each contender")
    parser.add_argument("--steps", type=int, default=2, help="counted steps of each process")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--divergence", choices=list(TRL_ALPHA), default="forward")
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters; 0: all weights")
    parser.add_argument(
        "--no-eos", action="store_true", help="no completion ends before the limit: equal work"
    )
    parser.add_argument("--json", type=Path)
    for inner in ("--worker", "--lengths"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.batch_size % args.micro_batch_size:
        sys.exit("error: --batch-size must be a multiple of --micro-batch-size, as TRL accumulates")
    if args.worker:
        return worker(args)

    has_trl = (trl_version() or "").startswith("1.16.")
    contenders = WITH_ADAPTERS if args.lora_rank else CONTENDERS
    turns = {name: [] for name in contenders if name != "trl" or has_trl}
    for repeat in range(args.repeats):
        for name in turns:
            turns[name].append(
                run_turn(
                    name,
                    args,
                    repeat,
                    turns["ours"][-1]["lengths"] if name in ("sft", "products") else None,
                )
            )
            print(
                f"repeat {repeat + 1}, {name}:",
                ", ".join(f"{s:.2f} s" for s in turns[name][-1]["seconds"]),
                file=sys.stderr,
                flush=True,
            )

    _, tokenizer, _ = load_ours(args)
    pairs = quiet_pairs(tokenizer, training_examples(args), args)
    setup = {
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "trl": trl_version(),
        "batch_size": args.batch_size,
        "micro_batch_size": args.micro_batch_size,
        "max_new_tokens": args.max_new_tokens,
        "ends": "none" if args.no_eos else "natural",
        "divergence": args.divergence,
        "lora_rank": args.lora_rank,
        "ema_rate": EMA_RATE,
        "learning_rate": LEARNING_RATE,
        "skip_first_tokens": SKIP_FIRST_TOKENS,
        "gradient_checkpointing": False,
        "completions_a_prompt": 1,
        "steps_counted": args.repeats * args.steps,
        "student_prompt_tokens": median(len(pair.student_prompt) for pair in pairs),
        "teacher_prompt_tokens": median(len(pair.teacher_prompt) for pair in pairs),
    }
    print(", ".join(f"{key} {value}" for key, value in setup.items()) + "\n")
    medians = {name: summarise(found) for name, found in turns.items()}
    ours = medians["ours"]
    rows = [
        [
            name,
            f"{m['seconds']:.2f} ({m['fastest']:.2f} to {m['slowest']:.2f})",
            number(1000 * m["seconds_per_token"]),
            number(m["completion_tokens"]),
            f"{m['peak_mib']:.0f}",
        ]
        + [f"{m[key] / ours[key]:.2f}" for key in ("seconds", "seconds_per_token", "peak_mib")]
        for name, m in medians.items()
    ]
    if not has_trl:
        rows.insert(1, ["trl", f"pip install trl==1.16.0 (found: {trl_version()})"] + ["–"] * 6)
    print(
        markdown_table(
            [
                "",
                "s a step (range)",
                "ms a completion token",
                "completion tokens a step",
                "peak MiB",
                "step / ours",
                "token / ours",
                "memory / ours",
            ],
            rows,
        )
    )
    if args.json:
        write_record(args.json, "bench_step", {"setup": setup, "medians": medians, "turns": turns})


def summarise(turns):
    seconds = [s for turn in turns for s in turn["seconds"]]
    tokens = [sum(lengths_B) for turn in turns for lengths_B in turn["lengths"][1:]]
    return {
        "seconds": median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "completion_tokens": median(tokens),
        "seconds_per_token": median(s / n for s, n in zip(seconds, tokens, strict=True)),
        "peak_mib": median(turn["peak_mib"] for turn in turns),
    }


if __name__ == "__main__":
    main()
