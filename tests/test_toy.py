"""extras/toy.py. Oracles: the policy-gradient closed forms of a tabular model, by recursion over
prefixes in plain Python floats, without
autograd and without a list of sequences; bit patterns by `struct`; the normal distribution's closed
forms for bfloat16's rounding."""

import json
import math
import struct
from itertools import product

import pytest
import torch
import toy
from conftest import ROOT

V, T = 4, 3
ROWS = {
    prefix: row
    for row, prefix in enumerate(prefix for t in range(T) for prefix in product(range(V), repeat=t))
}
FORMATS = ("bfloat16", "float32", "bfloat16 + int16 remainder")


def softmax(logits_V):
    total = sum(math.exp(z) for z in logits_V)
    return [math.exp(z) / total for z in logits_V]


def probabilities(table_PV):
    return {prefix: softmax(table_PV[row]) for prefix, row in ROWS.items()}


def visits(p):
    """Probability that a sequence of p begins with each prefix."""
    reached = {(): 1.0}
    for prefix in ROWS:
        for v in range(V):
            reached[prefix + (v,)] = reached[prefix] * p[prefix][v]
    return reached


def closed_forms(student_PV, teacher_PV, skip=0):
    """Gradients as {(prefix, v): value}, d the visits, l = log p/q, k = sum_v p l, K(s) the KL
    still to come from s on: of the sequence's KL: d(s) p(v) [l(v) + K(sv) - K(s)];   E[analytic],
    E[token]: d(s) p(v) [l(v) - k(s)], unmasked rows only;
    sum over the unmasked rows of d(s) E_v||.||^2 for analytic and token, from which the variance:
    rows do not overlap."""
    p, q = probabilities(student_PV), probabilities(teacher_PV)
    d = visits(p)
    log_ratio = {
        s: [math.log(p[s][v] / q[s][v]) * (len(s) >= skip) for v in range(V)] for s in ROWS
    }
    k = {s: sum(p[s][v] * log_ratio[s][v] for v in range(V)) for s in ROWS}
    to_come = {s: 0.0 for s in product(range(V), repeat=T)}
    for s in reversed(ROWS):
        to_come[s] = k[s] + sum(p[s][v] * to_come[s + (v,)] for v in range(V))
    true = {
        (s, v): d[s] * p[s][v] * (log_ratio[s][v] + to_come[s + (v,)] - to_come[s])
        for s in ROWS
        for v in range(V)
    }
    stepwise = {(s, v): d[s] * p[s][v] * (log_ratio[s][v] - k[s]) for s in ROWS for v in range(V)}
    squares = {
        "analytic": sum(
            d[s] * sum((p[s][v] * (log_ratio[s][v] - k[s])) ** 2 for v in range(V)) for s in ROWS
        ),
        # the gradient of log p(v) in its row is onehot(v) - p
        "token": sum(
            d[s] * p[s][v] * log_ratio[s][v] ** 2 * sum(((u == v) - p[s][u]) ** 2 for u in range(V))
            for s in ROWS
            for v in range(V)
        ),
    }
    return true, stepwise, squares


def norm(values):
    return math.sqrt(sum(value**2 for value in values))


def tables(seed):
    """Student and teacher; the bonus is written out again from the demonstration."""
    world = toy.make_world(seed)
    student, demonstration = world.base_PV.tolist(), world.demonstration_T.tolist()
    teacher = [
        [z + 2.0 * (v == demonstration[len(prefix)]) for v, z in enumerate(student[row])]
        for prefix, row in ROWS.items()
    ]
    return world, student, teacher


# ---- the world ----


def test_world_is_all_sequences_with_the_right_rows_and_bonus():
    world, student, teacher = tables(3)
    assert world.sequences_NT.tolist() == [
        list(sequence) for sequence in product(range(V), repeat=T)
    ]
    assert world.prefixes_NT.tolist() == [
        [ROWS[sequence[:t]] for t in range(T)] for sequence in product(range(V), repeat=T)
    ]
    assert (world.base_PV + world.bonus_PV).tolist() == teacher
    reached = visits(probabilities(student))
    expected = [math.log(reached[sequence]) for sequence in product(range(V), repeat=T)]
    assert toy.token_logprobs(world, world.base_PV).sum(1).tolist() == pytest.approx(
        expected, abs=1e-12
    )


# ---- 1. estimators ----


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("seed", [0, 4])
def test_bias_and_variance_equal_the_closed_forms(seed, skip):
    _, student, teacher = tables(seed)
    true, stepwise, squares = closed_forms(student, teacher, skip)
    g = norm(true.values())
    bias = norm(stepwise[key] - true[key] for key in true) / g
    quality = toy.estimator_quality(seed, skip)
    assert bias > 0.04 and quality["rb"]["bias"] < 1e-10
    for name in ("token", "analytic"):
        assert quality[name]["bias"] == pytest.approx(bias, abs=1e-10)
        assert quality[name]["variance"] == pytest.approx(
            (squares[name] - norm(stepwise.values()) ** 2) / g**2, abs=1e-10
        )
        assert quality[name]["cosine"] == pytest.approx(
            sum(true[key] * stepwise[key] for key in true) / g / norm(stepwise.values()), abs=1e-10
        )
    assert quality["rb"]["first_step"] == pytest.approx(
        norm(true[(), v] for v in range(V)) / g, abs=1e-10
    )


def test_masked_rb_keeps_its_score_terms():
    """With the first token masked, what rb still does to the first row of the table is all that
    dropping the score terms loses.
    """
    quality = toy.estimator_quality(0, skip_first_tokens=1)
    assert (
        quality["analytic"]["first_step"]
        == quality["rb, score terms masked too"]["first_step"]
        == 0
    )
    assert quality["rb"]["first_step"] > 0.03
    assert quality["rb, score terms masked too"]["bias"] == pytest.approx(
        quality["rb"]["first_step"], abs=1e-10
    )


@pytest.mark.parametrize(
    "name, row_gradient",
    [
        # p_S - p_T, and p_S(v) [log(p_S/m)(v) - KL(p_S || m)] / 2: the derivatives of the two
        # divergences by the student's logits
        ("forward KL", lambda p, q: [p[v] - q[v] for v in range(V)]),
        (
            "jsd",
            lambda p, q: [
                p[v]
                / 2
                * (
                    math.log(2 * p[v] / (p[v] + q[v]))
                    - sum(p[u] * math.log(2 * p[u] / (p[u] + q[u])) for u in range(V))
                )
                for v in range(V)
            ],
        ),
    ],
)
def test_direction_of_the_other_divergences(name, row_gradient):
    _, student, teacher = tables(1)
    true, _, _ = closed_forms(student, teacher)
    p, q = probabilities(student), probabilities(teacher)
    d = visits(p)
    expected = {
        (s, v): d[s] * value for s in ROWS for v, value in enumerate(row_gradient(p[s], q[s]))
    }
    cosine = (
        sum(true[key] * expected[key] for key in true)
        / norm(true.values())
        / norm(expected.values())
    )
    assert toy.estimator_quality(1)[name]["cosine"] == pytest.approx(cosine, abs=1e-10)


def test_over_worlds_orders_smallest_median_largest():
    biases = sorted(toy.estimator_quality(seed)["analytic"]["bias"] for seed in range(3))
    assert toy.over_worlds(0, worlds=3)["analytic"]["bias"] == biases


def test_break_even_batch_is_where_the_errors_meet():
    quality = toy.estimator_quality(2)
    error = [
        quality[name]["bias"] ** 2 + quality[name]["variance"] / quality["rb"]["break_even_batch"]
        for name in ("rb", "analytic")
    ]
    assert error[0] == pytest.approx(error[1], rel=1e-12)


# ---- 2. teachers ----


def quantities(world, student, teacher_of_base):
    base, p, q = (
        visits(probabilities(world.base_PV.tolist())),
        visits(probabilities(student)),
        visits(probabilities(teacher_of_base)),
    )
    whole = list(product(range(V), repeat=T))
    demonstration = world.demonstration_T.tolist()
    return {
        "reward": sum(
            p[y] * sum(a == b for a, b in zip(y, demonstration, strict=True)) / T for y in whole
        ),
        "kl_to_base": sum(p[y] * math.log(p[y] / base[y]) for y in whole),
        "kl_to_tilt": sum(p[y] * math.log(p[y] / q[y]) for y in whole),
        "entropy": -sum(p[y] * math.log(p[y]) for y in whole),
    }


def test_three_exact_steps_equal_the_closed_form():
    """Plain SGD on E[analytic] and the EMA by hand; from the second step on the four teachers
    differ.
    """
    curves = toy.train_teachers(sampled=False, recorded_steps=(0, 1, 2, 3))
    for name, rate in (
        ("frozen base", 0.0),
        ("EMA 0.01", 0.01),
        ("EMA 0.05", 0.05),
        ("student itself", 1.0),
    ):
        world, student, tilt = tables(0)
        weights = [row[:] for row in student]
        for step in range(4):
            for key, value in quantities(world, student, tilt).items():
                assert curves[name][key][step] == pytest.approx(value, abs=1e-10)
            bonus = world.bonus_PV.tolist()
            target = [
                [z + b for z, b in zip(*rows, strict=True)]
                for rows in zip(weights, bonus, strict=True)
            ]
            _, stepwise, _ = closed_forms(student, target)
            student = [
                [student[row][v] - stepwise[prefix, v] for v in range(V)]
                for prefix, row in ROWS.items()
            ]
            weights = [
                [w + rate * (z - w) for w, z in zip(*rows, strict=True)]
                for rows in zip(weights, student, strict=True)
            ]


def test_only_the_frozen_teacher_holds():
    curves = toy.train_teachers(sampled=False, recorded_steps=(0, 300))
    entropy = {name: row["entropy"][-1] for name, row in curves.items()}
    assert curves["frozen base"]["kl_to_tilt"][-1] < 0.01
    assert entropy["frozen base"] > 2 and entropy["EMA 0.01"] < 0.3
    assert (
        entropy["frozen base"]
        > entropy["EMA 0.01"]
        > entropy["EMA 0.05"]
        > entropy["student itself"]
    )


def test_sampled_gradient_is_the_mean_over_drawn_sequences():
    """Adam's first step is 0.02 sign(gradient): of every row with a huge batch, of T rows at most
    with a single sequence.
    """
    world, student, tilt = tables(0)
    _, stepwise, _ = closed_forms(student, tilt)
    moved = [
        [student[row][v] - math.copysign(0.02, stepwise[prefix, v]) for v in range(V)]
        for prefix, row in ROWS.items()
    ]
    start, expected = quantities(world, student, tilt), quantities(world, moved, tilt)
    many = toy.train_teachers(sampled=True, batch_size=100_000, recorded_steps=(0, 1))[
        "frozen base"
    ]
    one = toy.train_teachers(sampled=True, batch_size=1, recorded_steps=(0, 1))["frozen base"]
    for key in expected:
        assert many[key] == pytest.approx([start[key], expected[key]], abs=1e-6)
    assert start["reward"] < one["reward"][1] < expected["reward"] - 1e-4


def test_sampled_runs_repeat_themselves_and_each_run_draws_for_itself():
    # a mean over 3 runs that all drew the same would equal a mean over 2
    runs = [
        toy.train_teachers(sampled=True, repeats=repeats, recorded_steps=(0, 5))["EMA 0.01"][
            "entropy"
        ][-1]
        for repeats in (2, 2, 3)
    ]
    assert runs[0] == runs[1] != runs[2]


# ---- 3. bfloat16 ----


def test_weight_and_remainder_are_the_float32_number():
    special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1e-40,
        -1e-45,
        3.3e38,
        math.inf,
        -math.inf,
        1 + 2**-8,
        1 + 3 * 2**-8,
        -1 - 2**-8,
        2 - 2**-23,
    ]
    weights = torch.cat(
        [torch.tensor(special), torch.randn(1000, generator=torch.Generator().manual_seed(0))]
    )
    high, low = toy.split(weights)
    assert high.dtype == torch.bfloat16 and low.dtype == torch.int16
    assert torch.equal(toy.join_float32(high, low).view(torch.int32), weights.view(torch.int32))
    for weight, bfloat16, remainder in zip(
        weights.tolist(), high.float().tolist(), low.tolist(), strict=True
    ):
        bits, rounded = (
            struct.unpack("<I", struct.pack("<f", value))[0] for value in (weight, bfloat16)
        )
        assert rounded % 2**16 == 0 and bits - rounded == remainder and -32768 <= remainder <= 32767


@pytest.mark.parametrize("gap", [0.02, 0.1, 1.0])
def test_float32_and_remainder_follow_the_closed_form(gap):
    results = toy.ema_in_each_format(gap, size=20_000)
    expected = [0.99**n for n in range(10, 201, 10)]
    assert (
        results["float32"]["gap_left"] == pytest.approx(expected, rel=1e-3)
        and results["float32"]["unchanged"] < 1e-3
    )
    assert results["bfloat16 + int16 remainder"] == results["float32"]


@pytest.mark.parametrize("gap, least_left", [(0.02, 0.95), (0.1, 0.8), (1.0, 0.25)])
def test_bfloat16_never_moves_where_the_first_update_is_below_half_a_spacing(gap, least_left):
    """|w| in [2^e, 2^(e+1)) has spacing 2^(e-7); the share of own draws with 0.01 |student -
    teacher| below half of it.
    """
    generator = torch.Generator().manual_seed(1)
    start = (0.02 * torch.randn(200_000, generator=generator)).bfloat16().double()
    student = (
        (start + gap * 0.02 * torch.randn(200_000, generator=generator, dtype=torch.float64))
        .bfloat16()
        .double()
    )
    start, student = start[start != student], student[start != student]
    stuck = 0.01 * (student - start).abs() < 2.0 ** (start.abs().log2().floor() - 8)
    result = toy.ema_in_each_format(gap)["bfloat16"]
    assert result["unchanged"] == pytest.approx(stuck.double().mean().item(), abs=0.01)
    assert result["gap_left"][-1] > least_left


def test_adamw_in_bfloat16_moves_only_small_weights():
    """A first step is 1e-5, above half of the spacing 2^(e-7) only for |w| < 2^-8: a share erf(2^-8
    / (0.02 sqrt 2)) = 15.5 %.
    """
    unchanged = toy.adamw_first_step()
    assert unchanged["bfloat16"] == pytest.approx(
        1 - math.erf(2**-8 / 0.02 / math.sqrt(2)), abs=0.01
    )
    assert unchanged["float32"] < 1e-3


# ---- output ----


@pytest.fixture
def committed():
    return json.loads((ROOT / "results" / "toy.json").read_text(encoding="utf-8"))


def test_committed_numbers_are_what_the_code_gives(committed):
    for name, row in toy.over_worlds(0).items():
        for key, values in row.items():
            assert committed["estimators"]["all tokens"][name][key] == pytest.approx(
                values, rel=1e-6, abs=1e-10
            )
    assert committed["adamw_first_step_unchanged"] == pytest.approx(
        toy.adamw_first_step(), abs=1e-3
    )
    assert committed["ema"]["0.1"]["bfloat16"]["gap_left"] == pytest.approx(
        toy.ema_in_each_format(0.1)["bfloat16"]["gap_left"], abs=1e-3
    )


def test_command_line_prints_every_section_and_writes_json(
    committed, monkeypatch, tmp_path, capsys
):
    numbers = {key: value for key, value in committed.items() if key not in ("command", "torch")}
    monkeypatch.setattr(toy, "run", lambda: numbers)
    toy.main(["--json", str(tmp_path / "numbers.json")])
    printed = capsys.readouterr().out
    for expected in (
        "## 1.",
        "## 2.",
        "## 3.",
        "| rb, score terms masked too | 0.1 (",
        "| student itself |",
        *FORMATS,
        "84.3%",
    ):
        assert expected in printed
    written = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert (
        written.pop("command").startswith("python extras/toy.py --json ")
        and written.pop("torch")
        and written == numbers
    )


def test_png_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setattr(toy.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(toy, "run", lambda: pytest.fail("it should stop before it computes"))
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        toy.main(["--png", "toy.png"])
