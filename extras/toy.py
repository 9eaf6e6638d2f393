"""SDFT in a world so small that every expectation is a sum over all sequences: exact, in seconds.

    python extras/toy.py [--json FILE] [--png FILE]

It needs torch alone. The language model is a table of float64 logits with one row for each prefix.
The demonstration is one sequence. The teacher is the student's table, or an average of it, plus a
bonus on the demonstrated symbol of each step, whatever the prefix. Divergences and surrogates are
those of kl_estimators.py, with which sdft.py trains.

Shape key: N = V^T sequences, T steps, V symbols, P prefixes (rows of the table), K = P V
parameters, R training runs side by side.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the folder of kl_estimators.py

from kl_estimators import (
    analytic_surrogate,
    forward_kl,
    jensen_shannon,
    rao_blackwell_surrogate,
    reverse_kl,
    sequence_sum,
    token_surrogate,
)
from optim import join_float32, split_float32

EMA_RATES = {
    "frozen base": 0.0,
    "EMA 0.01": 0.01,
    "EMA 0.05": 0.05,
    "student itself": 1.0,
}  # the teacher is an EMA of this rate
RECORDED_STEPS = (0, 10, 20, 50, 100, 200, 500, 1000, 2000)


class World(NamedTuple):
    sequences_NT: torch.Tensor  # all V^T of them
    prefixes_NT: torch.Tensor  # the row of the table that predicts sequences_NT[n, t]
    demonstration_T: torch.Tensor
    base_PV: torch.Tensor  # logits
    bonus_PV: torch.Tensor  # what the demonstration adds to the logits


def make_world(seed=0, V=4, T=3, bonus=2.0):
    """A table of N(0, 1) logits and a random demonstration.

    Rows are breadth first: symbol v leads from row i to row i V + 1 + v.
    """
    generator = torch.Generator().manual_seed(seed)
    sequences_NT = torch.cartesian_prod(*[torch.arange(V)] * T).view(-1, T)
    rows = [torch.zeros(len(sequences_NT), dtype=torch.long)]
    for t in range(T - 1):
        rows.append(rows[t] * V + 1 + sequences_NT[:, t])
    prefixes_NT = torch.stack(rows, dim=1)
    base_PV = torch.randn(sum(V**t for t in range(T)), V, generator=generator, dtype=torch.float64)
    demonstration_T = torch.randint(V, (T,), generator=generator)
    bonus_PV = torch.zeros_like(base_PV)
    for t in range(T):
        bonus_PV[prefixes_NT[:, t], demonstration_T[t]] = bonus
    return World(sequences_NT, prefixes_NT, demonstration_T, base_PV, bonus_PV)


def next_logprobs(world, logits_PV):
    """log p(. | y_<t) for every sequence and step -> [N, T, V]; leading axes are kept."""
    return logits_PV.log_softmax(-1)[..., world.prefixes_NT, :]


def token_logprobs(world, logits_PV):
    """log p(y_t | y_<t) for every sequence and step -> [N, T]; leading axes are kept."""
    return logits_PV.log_softmax(-1)[..., world.prefixes_NT, world.sequences_NT]


def gradient(value, logits_PV):
    """d value / d logits as one vector [K]."""
    return torch.autograd.grad(value, logits_PV, retain_graph=True)[0].flatten()


# ---- 1. the estimators ----


def estimator_quality(seed=0, skip_first_tokens=0, V=4, T=3):
    """Each estimator against the exact gradient g of the sequence's reverse KL, by enumeration.

    g           gradient of E_y[sum_t (log p_S(y_t) - log p_T(y_t))] over the unmasked t, in which
                all dependence on p_S is kept
    bias        ||E[estimate] - g|| / ||g||
    variance    E||estimate - E[estimate]||^2 / ||g||^2, of one sampled sequence
    cosine      of E[estimate] and g
    first_step  ||the part of E[estimate] in the first row of the table|| / ||g||
    break_even_batch (rb)   larger batches give it a smaller mean squared error,
                bias^2 + variance / batch, than analytic has
    """
    world = make_world(seed, V, T)
    student_PV = world.base_PV.clone().requires_grad_()
    tables_PV = student_PV, world.base_PV + world.bonus_PV
    student_NTV, teacher_NTV = (next_logprobs(world, table_PV) for table_PV in tables_PV)
    student_NT, teacher_NT = (token_logprobs(world, table_PV) for table_PV in tables_PV)
    mask_NT = (torch.arange(T) >= skip_first_tokens).expand_as(student_NT)
    kl_NT = reverse_kl(student_NTV, teacher_NTV)
    surrogates = {
        "analytic": analytic_surrogate(kl_NT, student_NT, teacher_NT),
        "token": token_surrogate(kl_NT, student_NT, teacher_NT),
        "rb": rao_blackwell_surrogate(kl_NT, student_NT, teacher_NT),
        "forward KL": forward_kl(student_NTV, teacher_NTV),
        "jsd": jensen_shannon(student_NTV, teacher_NTV),
    }
    if skip_first_tokens:  # the trap: score terms of masked tokens dropped as well
        surrogates["rb, score terms masked too"] = rao_blackwell_surrogate(
            kl_NT, student_NT * mask_NT, teacher_NT
        )
    probability_N = student_NT.sum(1).exp()
    g_K = gradient((probability_N * ((student_NT - teacher_NT) * mask_NT).sum(1)).sum(), student_PV)
    quality = {}
    for name, surrogate_NT in surrogates.items():
        values_N = sequence_sum(surrogate_NT, mask_NT)
        estimate_NK = torch.stack([gradient(value, student_PV) for value in values_N])
        mean_K = probability_N.detach() @ estimate_NK
        variance = probability_N.detach() @ (estimate_NK - mean_K).square().sum(1)
        quality[name] = {
            "bias": ((mean_K - g_K).norm() / g_K.norm()).item(),
            "variance": (variance / g_K.norm() ** 2).item(),
            "cosine": torch.cosine_similarity(mean_K, g_K, dim=0).item(),
            "first_step": (mean_K[:V].norm() / g_K.norm()).item(),
        }
    rb, analytic = quality["rb"], quality["analytic"]
    rb["break_even_batch"] = (rb["variance"] - analytic["variance"]) / analytic["bias"] ** 2
    return quality


def over_worlds(skip_first_tokens, worlds=10):
    """`estimator_quality` of random worlds -> {estimator: {quantity: [least, median, largest]}}."""
    found = [estimator_quality(seed, skip_first_tokens) for seed in range(worlds)]
    return {
        name: {
            key: [pick([world[name][key] for world in found]) for pick in (min, median, max)]
            for key in row
        }
        for name, row in found[0].items()
    }


# ---- 2. the teacher's weights ----


def train_teachers(sampled, seed=0, repeats=1, batch_size=8, recorded_steps=RECORDED_STEPS):
    """SDFT with each teacher of EMA_RATES -> {teacher: {quantity: [value by recorded step]}}.

    Each value is a mean over `repeats` runs.
    sampled=False   the exact expectation of the analytic estimator, plain SGD, learning rate 1
    sampled=True    the mean over batch_size sampled sequences, Adam, learning rate 0.02
    reward          expected share of symbols that are the demonstration's
    kl_to_base      KL(student || base), nats a sequence
    kl_to_tilt      KL(student || base with bonus), nats a sequence
    entropy         of the student, nats a sequence
    """
    world, generator = make_world(seed), torch.Generator().manual_seed(seed)
    rates = [rate for rate in EMA_RATES.values() for _ in range(repeats)]
    rate_R11 = torch.tensor(rates, dtype=torch.float64)[:, None, None]
    student_RPV = world.base_PV.repeat(len(rate_R11), 1, 1).requires_grad_()
    teacher_RPV = student_RPV.detach().clone()
    optimizer = torch.optim.SGD([student_RPV], lr=1.0)
    if sampled:
        optimizer = torch.optim.Adam([student_RPV], lr=0.02)
    curves = []
    for step in range(max(recorded_steps) + 1):
        student_RNT = token_logprobs(world, student_RPV.detach())
        weight_RN = student_RNT.sum(-1).exp()
        if step in recorded_steps:
            curves.append(describe(world, student_RNT))
        if sampled:  # a share of the batch in place of the probability
            drawn_RB = torch.multinomial(weight_RN, batch_size, True, generator=generator)
            share_RB = torch.full(drawn_RB.shape, 1 / batch_size, dtype=torch.float64)
            weight_RN = torch.zeros_like(weight_RN).scatter_add(1, drawn_RB, share_RB)
        tables = student_RPV, teacher_RPV + world.bonus_PV
        kl_RNT = reverse_kl(*(next_logprobs(world, table_RPV) for table_RPV in tables))
        token_logprobs_RNT = [token_logprobs(world, table_RPV) for table_RPV in tables]
        loss_RNT = analytic_surrogate(kl_RNT, *token_logprobs_RNT)
        (weight_RN * loss_RNT.sum(-1)).sum().backward()  # l. 15-16
        optimizer.step()  # l. 18
        optimizer.zero_grad()
        teacher_RPV += rate_R11 * (student_RPV.detach() - teacher_RPV)  # l. 19
    return {
        teacher: {
            key: [row[key][i * repeats : (i + 1) * repeats].mean().item() for row in curves]
            for key in curves[0]
        }
        for i, teacher in enumerate(EMA_RATES)
    }


def describe(world, student_RNT):
    """The quantities of `train_teachers`, exact, each [R]."""
    logprob_RN = student_RNT.sum(-1)
    base_N = token_logprobs(world, world.base_PV).sum(-1)
    tilt_N = token_logprobs(world, world.base_PV + world.bonus_PV).sum(-1)
    reward_N = (world.sequences_NT == world.demonstration_T).double().mean(1)
    return {
        "reward": logprob_RN.exp() @ reward_N,
        "kl_to_base": (logprob_RN.exp() * (logprob_RN - base_N)).sum(1),
        "kl_to_tilt": (logprob_RN.exp() * (logprob_RN - tilt_N)).sum(1),
        "entropy": -(logprob_RN.exp() * logprob_RN).sum(1),
    }


# ---- 3. bfloat16 ----


def split(weights):
    """float32 -> (bfloat16 weight, int16 remainder), as optim.py stores it."""
    stored = [torch.empty_like(weights, dtype=dtype) for dtype in (torch.bfloat16, torch.int16)]
    split_float32(weights, *stored)
    return stored


def ema_in_each_format(gap, size=50_000, updates=200, rate=0.01):
    """teacher += rate (student - teacher), `updates` times; the student does not move.

    gap         standard deviation of student - teacher, as a share of the weights' own 0.02; both
                start as bfloat16 numbers
    -> {format: {"unchanged": share of the elements that no update changed,
                 "gap_left": [||teacher - student|| / its start, every 10 updates]}}
    """
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(size, generator=generator)).bfloat16()
    student = (start + gap * 0.02 * torch.randn(size, generator=generator)).bfloat16()
    differs = start != student  # rounding made some pairs equal: nothing to follow
    start, student = start[differs], student[differs]
    start_distance, results = (start.double() - student.double()).norm(), {}
    for name in ("bfloat16", "float32", "bfloat16 + int16 remainder"):
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        teacher, target = start.to(dtype), student.to(dtype)
        stored, changed = split(start.float()), torch.zeros_like(start, dtype=torch.bool)
        gap_left = []
        for update in range(updates):
            if "remainder" in name:
                teacher = join_float32(*stored)
            following = teacher + rate * (target - teacher)
            stored = split(following.float())
            changed |= following != teacher
            teacher = following
            if (update + 1) % 10 == 0:
                distance = (teacher.double() - student.double()).norm()
                gap_left.append((distance / start_distance).item())
        results[name] = {"unchanged": 1 - changed.double().mean().item(), "gap_left": gap_left}
    return results


def adamw_first_step(learning_rate=1e-5, size=50_000):
    """{format: share of N(0, 0.02^2) weights that torch's first AdamW step leaves unchanged}."""
    results = {}
    for dtype in (torch.bfloat16, torch.float32):
        generator = torch.Generator().manual_seed(0)
        weights = (0.02 * torch.randn(size, generator=generator)).bfloat16().to(dtype)
        parameter = torch.nn.Parameter(weights.clone())
        parameter.grad = (1e-3 * torch.randn(size, generator=generator)).to(dtype)
        torch.optim.AdamW([parameter], lr=learning_rate, weight_decay=0.0).step()
        results[str(dtype).removeprefix("torch.")] = (parameter == weights).double().mean().item()
    return results


# ---- output ----


def run():
    """All sections -> one dict of plain numbers."""
    return {
        "estimators": {"all tokens": over_worlds(0), "first token masked": over_worlds(1)},
        "teachers": {
            "steps": RECORDED_STEPS,
            "exact gradient, SGD": train_teachers(sampled=False),
            "8 sampled sequences a step, Adam, mean of 5 runs": train_teachers(
                sampled=True, repeats=5
            ),
        },
        "ema": {gap: ema_in_each_format(float(gap)) for gap in ("0.02", "0.1", "1.0")},
        "adamw_first_step_unchanged": adamw_first_step(),
    }


def print_all(numbers):
    """The sections as markdown tables."""
    print_estimators(numbers["estimators"])
    print_teachers(numbers["teachers"])
    print_rounding(numbers["ema"], numbers["adamw_first_step_unchanged"])


def print_estimators(estimators):
    def spread(values, style=".2g"):
        low, middle, high = (format(value, style) for value in values)
        return f"{middle} ({low} to {high})"

    print("## 1. Estimators of the gradient g of the sequence's reverse KL\n")
    print("Exact, for one sampled sequence; median of 10 random worlds (least to largest).")
    columns = ["bias / norm of g", "variance / norm of g squared", "cosine with g"]
    for tokens, quality in estimators.items():
        rows = []
        for name, row in quality.items():
            # another divergence has another gradient: its distance from g is no bias
            bias = "" if name in ("forward KL", "jsd") else spread(row["bias"])
            cells = [bias, spread(row["variance"]), spread(row["cosine"], ".3f")]
            rows.append([name, *cells, spread(row["first_step"])])
        print_table([tokens, *columns, "first step's part / norm of g"], rows)
    break_even = spread(estimators["all tokens"]["rb"]["break_even_batch"], ".0f")
    print("\nrb has a smaller mean squared error than analytic for batches of more than")
    print(f"{break_even} sequences.\n")


def print_teachers(teachers):
    print("## 2. The teacher's weights\n")
    print("reward: expected share of the demonstration's symbols. The tilt is the base with the")
    print("bonus. Nats a sequence.")
    steps = teachers["steps"]
    chosen = [steps.index(step) for step in (100, 500)] + [len(steps) - 1]
    shown = [(key, i) for key in ("reward", "kl_to_base", "entropy") for i in chosen]
    shown.append(("kl_to_tilt", chosen[-1]))
    header = [f"{key.replace('_', ' ')}, step {steps[i]}" for key, i in shown]
    for training in list(teachers)[1:]:
        curves = teachers[training]
        rows = [[name, *(curves[name][key][i] for key, i in shown)] for name in curves]
        print_table([training, *header], rows)
    print("""
The student's aim is the teacher plus one more bonus. If the teacher is frozen, that is the tilt. A
teacher that follows, at any rate, moves the aim on without end: a small rate postpones the
collapse. This reward does not see it; entropy and KL to base do.
""")


def print_rounding(ema, adamw):
    print("""## 3. bfloat16

teacher += 0.01 (student - teacher), 200 times, for a fixed student and weights from N(0, 0.02^2).
By closed form 0.99^200 = 0.134 of the gap should be left.""")
    rows = [
        [gap, name, f"{row['unchanged']:.1%}", row["gap_left"][-1]]
        for gap, formats in ema.items()
        for name, row in formats.items()
    ]
    header = ["gap at the start / weights", "format", "elements that never changed", "gap left"]
    print_table(header, rows)
    rows = [[name, f"{share:.1%}"] for name, share in adamw.items()]
    print_table(["first AdamW step, learning rate 1e-5", "weights unchanged"], rows)


def print_table(header, rows):
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        cells = [cell if isinstance(cell, str) else f"{cell:.3g}" for cell in row]
        print("| " + " | ".join(cells) + " |")


def draw(numbers, path):
    """Error of the estimators by batch size, entropy by teacher, the EMA's gap by format."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
    batches = [2**i for i in range(13)]
    for name in ("token", "analytic", "rb"):
        row = numbers["estimators"]["all tokens"][name]
        errors = [row["bias"][1] ** 2 + row["variance"][1] / batch for batch in batches]
        left.loglog(batches, errors, label=name)
    left.set(title="error of the sequence KL's gradient", xlabel="sequences in the batch")
    left.set_ylabel("mean squared error / |g|²")

    steps = numbers["teachers"]["steps"][1:]
    for teacher, row in numbers["teachers"]["exact gradient, SGD"].items():
        middle.semilogx(steps, row["entropy"][1:], marker=".", label=teacher)
    middle.set(title="entropy of the student, by teacher", xlabel="step", ylabel="nats a sequence")

    updates = range(10, 201, 10)
    for gap, formats in numbers["ema"].items():
        label = f"bfloat16, gap {float(gap):.0%} of weights"
        right.plot(updates, formats["bfloat16"]["gap_left"], label=label)
    exact = formats["bfloat16 + int16 remainder"]["gap_left"], formats["float32"]["gap_left"]
    right.plot(updates, exact[0], color="black", label="bfloat16 + int16 remainder")
    right.plot(updates, exact[1], color="gold", linestyle=":", label="float32 (the same)")
    right.set(title="gap that an EMA of 0.01 leaves", xlabel="update", ylim=(0, 1.75))
    right.set(ylabel="of the gap at the start", yticks=[0, 0.25, 0.5, 0.75, 1])

    for axes in (left, middle, right):
        axes.title.set_size(10)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--png", type=Path, help="also draw them; needs matplotlib")
    args = parser.parse_args(argv)
    if args.png and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--png needs matplotlib: pip install matplotlib")
    numbers = run()
    print_all(numbers)
    if args.json:
        command = " ".join(["python", "extras/toy.py", *(argv or sys.argv[1:])])
        record = {"command": command, "torch": torch.__version__} | numbers
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if args.png:
        draw(numbers, args.png)


if __name__ == "__main__":
    main()
