"""What bfloat16 weights lose, and what a remainder costs: 200 steps in three arithmetics.

    python benchmarks/bench_bf16.py      # four minutes on one core; writes results/bf16.json

float32, bfloat16 with remainders (optim.py), and plain bfloat16: torch.optim.AdamW on bfloat16
weights, with its states and the EMA in bfloat16. A random two-layer Llama (weights N(0, 0.02^2), as
models of this family start) learns to count in sevens, and a teacher follows it at rate 0.01. All
three start from the same bfloat16 numbers and see the same batches.
"""

import argparse
import copy
import json
import platform
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from optim import AdamW, join_float32, prepare_for_training, update_ema  # noqa: E402

EMA_RATE = 0.01
FORMS = ["float32", "bfloat16 with remainder", "plain bfloat16"]


def build_model(seed):
    """0.85 M parameters in float32, each of them a bfloat16 number."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def make_batch(seed, B=16, T=24):
    """a, a + 7, a + 14, ... modulo 97."""
    return (
        torch.randint(97, (B, 1), generator=torch.Generator().manual_seed(seed))
        + 7 * torch.arange(T)
    ) % 97


def next_token_loss(model, ids_BT):
    logits_BTV = model(input_ids=ids_BT).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())


@torch.no_grad()
def plain_update_ema(teacher, student, rate):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.mul_(1 - rate).add_(s, alpha=rate)


@torch.no_grad()
def weights(model):
    """All weights in one vector of float32, with their remainders where there are any."""
    remainders = getattr(model, "remainders", {})
    return torch.cat(
        [
            join_float32(parameter, remainders.get(name)).float().flatten()
            for name, parameter in model.named_parameters()
        ]
    )


def norm(vector):
    return vector.double().norm().item()


def train(form, seed, steps, learning_rate):
    """One run -> (its figures, the way of the student's weights, the way of the teacher's)."""
    start = build_model(seed)
    student = copy.deepcopy(start) if form == "float32" else copy.deepcopy(start).to(torch.bfloat16)
    plain = form == "plain bfloat16"
    if plain:
        optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0)
    else:
        prepare_for_training(student)
        optimizer = AdamW(student)
    teacher = copy.deepcopy(student)
    follow = plain_update_ema if plain else update_ema
    before, changed = weights(start), torch.zeros(len(weights(start)), dtype=torch.bool)
    step_seconds = update_seconds = 0
    for step in range(steps):
        started = time.perf_counter()
        next_token_loss(student, make_batch(seed * 10_000 + step)).backward()
        backward_done = time.perf_counter()
        if plain:
            optimizer.step()
            optimizer.zero_grad()
        else:
            optimizer.step(learning_rate)
        follow(teacher, student, EMA_RATE)
        ended = time.perf_counter()
        step_seconds, update_seconds = (
            step_seconds + ended - started,
            update_seconds + ended - backward_done,
        )
        changed |= weights(student) != before

    teacher_way = weights(teacher) - before
    # then the student stands still, and the teacher, at the start again, should close the gap
    # to 0.99^steps of it
    follower = copy.deepcopy(student)
    with torch.no_grad():
        for parameter, first in zip(follower.parameters(), start.parameters(), strict=True):
            parameter.copy_(first)
        for remainder in getattr(follower, "remainders", {}).values():
            remainder.zero_()
    for _ in range(steps):
        follow(follower, student, EMA_RATE)
    # the loss of the weights that would be saved, computed in float32 for all three
    saved = copy.deepcopy(student).float()
    with torch.no_grad():
        loss = (
            sum(next_token_loss(saved, make_batch(9_999_000 + i, B=64)).item() for i in range(4))
            / 4
        )
    figures = {
        "loss": loss,
        "changed": changed.float().mean().item(),
        "gap_left": norm(weights(follower) - weights(student)) / norm(before - weights(student)),
        "step_ms": 1000 * step_seconds / steps,
        "update_ms": 1000 * update_seconds / steps,
    }
    return figures, weights(student) - before, teacher_way


def compare(learning_rate, seeds, steps):
    """The three forms at one learning rate, means over seeds -> a row each."""
    rows = {form: [] for form in FORMS}
    for seed in seeds:
        runs = {form: train(form, seed, steps, learning_rate) for form in FORMS}
        _, exact_way, exact_teacher_way = runs["float32"]
        for form, (figures, way, teacher_way) in runs.items():
            rows[form].append(
                figures
                | {
                    "off_the_way": norm(way - exact_way) / norm(exact_way),
                    "teacher_off_its_way": norm(teacher_way - exact_teacher_way)
                    / norm(exact_teacher_way),
                }
            )
    return [
        {"learning_rate": learning_rate, "form": form}
        | {name: sum(row[name] for row in of_seeds) / len(of_seeds) for name in of_seeds[0]}
        for form, of_seeds in rows.items()
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        default=[1e-5, 5e-5, 1e-3],
        help="paper, authors, one that learns the task",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bf16.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    first_loss = next_token_loss(build_model(0), make_batch(9_999_000, B=64)).item()
    print(
        f"loss before: {first_loss:.3f}; "
        f"gap left by exact arithmetic: {(1 - EMA_RATE) ** arguments.steps:.1%}"
    )
    print(
        "| learning rate | form | loss | weights that ever changed | off float32's way "
        "| teacher off its way | EMA gap left | ms a step | ms of AdamW and EMA |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for learning_rate in arguments.learning_rates:
        for row in compare(learning_rate, range(arguments.seeds), arguments.steps):
            rows.append(row)
            print(
                f"| {learning_rate:g} | {row['form']} | {row['loss']:.4f} "
                f"| {row['changed']:.1%} | {row['off_the_way']:.1%} "
                f"| {row['teacher_off_its_way']:.1%}"
                f" | {row['gap_left']:.1%} | {row['step_ms']:.1f} | {row['update_ms']:.1f} |",
                flush=True,
            )
    results = {
        "command": " ".join(["python", "benchmarks/bench_bf16.py", *sys.argv[1:]]),
        "seeds": list(range(arguments.seeds)),
        "steps": arguments.steps,
        "machine": f"one thread, {platform.machine()} CPU, torch {torch.__version__}, busy",
        "parameters": len(weights(build_model(0))),
        "loss_before": first_loss,
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
