"""Divergences, estimators and the chunked form.

Oracles: torch.distributions; exact enumeration in float64 of a world of 4 symbols and 3 steps,
where the sequence's KL and its gradient are sums over all 64 sequences; a dense computation without
chunks or checkpoints.
"""

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from kl_estimators import (
    ESTIMATORS,
    analytic_surrogate,
    compare_completions,
    forward_kl,
    jensen_shannon,
    rao_blackwell_surrogate,
    reverse_kl,
    sequence_mean,
    sequence_sum,
    token_surrogate,
)

torch.manual_seed(0)


def random_logprobs(*shape):
    return torch.randn(*shape, dtype=torch.float64).log_softmax(-1)


# ---- divergences ----


def test_divergences_equal_torch_distributions():
    student, teacher = random_logprobs(2, 3, 7), random_logprobs(2, 3, 7)
    s, t = (
        torch.distributions.Categorical(logits=student),
        torch.distributions.Categorical(logits=teacher),
    )
    m = torch.distributions.Categorical(probs=(s.probs + t.probs) / 2)
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(reverse_kl(student, teacher), kl(s, t))
    torch.testing.assert_close(forward_kl(student, teacher), kl(t, s))
    torch.testing.assert_close(jensen_shannon(student, teacher), (kl(s, m) + kl(t, m)) / 2)


def test_directions_by_hand():
    """student (1/2, 1/2), teacher (1/4, 3/4).

    KL(s||t) = log 2 / 2 + log(2/3) / 2, KL(t||s) = log(1/2) / 4 + 3 log(3/2) / 4.
    """
    student, teacher = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert reverse_kl(student, teacher).item() == pytest.approx(
        math.log(2) / 2 + math.log(2 / 3) / 2
    )
    assert forward_kl(student, teacher).item() == pytest.approx(
        math.log(0.5) / 4 + 3 * math.log(1.5) / 4
    )


@pytest.mark.parametrize("divergence", [reverse_kl, forward_kl, jensen_shannon])
def test_tokens_both_exclude_count_zero_with_finite_gradients(divergence):
    logits = torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True)
    excluded = torch.tensor([False, False, False, True])
    teacher = random_logprobs(1, 1, 3)
    value = divergence(
        logits.masked_fill(excluded, -math.inf).log_softmax(-1),
        torch.nn.functional.pad(teacher, (0, 1), value=-math.inf),
    )
    value.sum().backward()
    torch.testing.assert_close(value, divergence(logits[..., :3].log_softmax(-1), teacher))
    assert logits.grad.isfinite().all()


def test_support():
    """A token that one side alone excludes: infinite in one direction, finite in the other.

    Jensen-Shannon stays finite: log 2 where nothing is shared.
    """
    student, teacher = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[1.0, 0.0]]]).log()
    assert reverse_kl(student, teacher).item() == math.inf
    assert forward_kl(student, teacher).item() == pytest.approx(math.log(2))
    disjoint = jensen_shannon(
        torch.tensor([[[1.0, 0.0]]]).log(), torch.tensor([[[0.0, 1.0]]]).log()
    )
    assert disjoint.item() == pytest.approx(math.log(2))


# ---- estimators against enumeration ----

V, T = 4, 3
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))  # all 64


class World:
    """Tabular models: one row of logits for each prefix."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        tables = [torch.randn(V**t, V, generator=generator, dtype=torch.float64) for t in range(T)]
        self.student = [table.clone().requires_grad_() for table in tables]
        self.teacher = [
            torch.randn(V**t, V, generator=generator, dtype=torch.float64) for t in range(T)
        ]

    def logprobs_NTV(self, tables):
        rows, prefix_N = [], torch.zeros(len(SEQUENCES), dtype=torch.long)
        for t in range(T):
            rows.append(tables[t][prefix_N].log_softmax(-1))
            prefix_N = prefix_N * V + SEQUENCES[:, t]
        return torch.stack(rows, dim=1)

    def token_logprobs_NT(self, tables):
        return self.logprobs_NTV(tables).gather(2, SEQUENCES[:, :, None])[:, :, 0]

    def expected_gradient(self, surrogate_NT, mask_T=None):
        """E over the student's sequences of the gradient of the masked sum, by enumeration."""
        mask_NT = (
            torch.ones(len(SEQUENCES), T, dtype=torch.bool)
            if mask_T is None
            else mask_T.expand(len(SEQUENCES), T)
        )
        weight_N = self.token_logprobs_NT(self.student).sum(1).exp().detach()
        return self.gradient((weight_N * sequence_sum(surrogate_NT, mask_NT)).sum())

    def gradient(self, value):
        return torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    value, self.student, retain_graph=True, materialize_grads=True
                )
            ]
        )


@pytest.fixture(scope="module")
def world():
    return World()


def surrogates(world):
    arguments = (
        reverse_kl(world.logprobs_NTV(world.student), world.logprobs_NTV(world.teacher)),
        world.token_logprobs_NT(world.student),
        world.token_logprobs_NT(world.teacher),
    )
    return {name: surrogate(*arguments) for name, surrogate in ESTIMATORS.items()}


def test_the_estimators_are_those_of_the_flag():
    surrogates = [analytic_surrogate, token_surrogate, rao_blackwell_surrogate]
    assert list(ESTIMATORS.items()) == list(
        zip(["analytic", "token", "rb"], surrogates, strict=True)
    )


def sequence_kl_gradient(world):
    """Gradient of sum_y p(y) log p(y)/q(y) over all sequences."""
    student_N, teacher_N = (
        world.token_logprobs_NT(world.student).sum(1),
        world.token_logprobs_NT(world.teacher).sum(1),
    )
    return world.gradient((student_N.exp() * (student_N - teacher_N)).sum())


def test_rb_is_unbiased_for_the_sequence_kl(world):
    torch.testing.assert_close(
        world.expected_gradient(surrogates(world)["rb"]),
        sequence_kl_gradient(world),
        rtol=0,
        atol=1e-10,
    )


def test_token_and_analytic_agree_and_are_biased(world):
    estimates = {
        name: world.expected_gradient(surrogate) for name, surrogate in surrogates(world).items()
    }
    torch.testing.assert_close(estimates["token"], estimates["analytic"], rtol=0, atol=1e-10)
    assert (estimates["token"] - sequence_kl_gradient(world)).norm() > 0.1


def test_a_mean_over_tokens_changes_the_expectation_of_token(world):
    """Token 0 ends a sequence. The sum over the tokens through it keeps the two equal."""
    is_eos_NT = SEQUENCES == 0
    mask_NT = (is_eos_NT.cumsum(1) - is_eos_NT.int()) == 0
    found = surrogates(world)
    difference_NT = found["token"] - found["analytic"]
    estimate = world.expected_gradient(difference_NT, mask_NT)
    torch.testing.assert_close(estimate, torch.zeros_like(estimate), rtol=0, atol=1e-10)
    per_token_NT = difference_NT / mask_NT.sum(1, keepdim=True)
    assert world.expected_gradient(per_token_NT, mask_NT).norm() > 0.01


def test_analytic_is_equation_2_with_the_weight(world):
    """Eq. 2 (v2): sum_v p(v) log(p(v)/q(v)) grad log p(v), all but grad held fixed."""
    student_NTV, teacher_NTV = world.logprobs_NTV(world.student), world.logprobs_NTV(world.teacher)
    equation_2_NT = (
        student_NTV.exp().detach() * (student_NTV - teacher_NTV).detach() * student_NTV
    ).sum(-1)
    torch.testing.assert_close(
        world.expected_gradient(surrogates(world)["analytic"]),
        world.expected_gradient(equation_2_NT),
        rtol=0,
        atol=1e-10,
    )


def test_masking_first_tokens_keeps_the_score_terms_of_rb(world):
    """With step 0 masked, rb estimates the gradient of E[k_1 + k_2].

    Its prefix terms still reach step 0's parameters.
    """
    mask_T = torch.tensor([False, True, True])
    kl_NT = reverse_kl(world.logprobs_NTV(world.student), world.logprobs_NTV(world.teacher))
    weight_N = world.token_logprobs_NT(world.student).sum(1).exp()
    truth = world.gradient((weight_N * kl_NT[:, 1:].sum(1)).sum())
    estimate = world.expected_gradient(surrogates(world)["rb"], mask_T)
    torch.testing.assert_close(estimate, truth, rtol=0, atol=1e-10)
    assert estimate[:V].norm() > 1e-3  # the first V entries are the parameters of step 0


def test_token_has_more_variance_than_analytic(world):
    def variance(surrogate_NT):
        weight_N = world.token_logprobs_NT(world.student).sum(1).exp().detach()
        gradients_N = torch.stack([world.gradient(row.sum()) for row in surrogate_NT])
        mean = (weight_N[:, None] * gradients_N).sum(0)
        return (weight_N * (gradients_N - mean).square().sum(1)).sum()

    found = surrogates(world)
    assert variance(found["token"]) > 2 * variance(found["analytic"])


# ---- reductions ----


def test_reductions_by_hand():
    values = torch.tensor([[1.0, 2.0, 6.0], [5.0, math.nan, math.nan]])
    mask = torch.tensor([[False, True, True], [False, False, False]])
    assert sequence_sum(values, mask).tolist() == [8.0, 0.0]
    assert sequence_mean(values, mask).tolist() == [4.0, 0.0]


def test_what_padding_holds_reaches_no_gradient():
    values = torch.tensor([[1.0, math.inf]], requires_grad=True)
    sequence_mean(values, torch.tensor([[True, False]])).sum().backward()
    assert values.grad.tolist() == [[1.0, 0.0]]


# ---- chunked against dense ----


@pytest.mark.parametrize(
    "divergence, function",
    [("reverse", reverse_kl), ("forward", forward_kl), ("jsd", jensen_shannon)],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_chunked_equals_dense(divergence, function, dtype, tolerance):
    B, T, D, V = 3, 7, 8, 50
    torch.manual_seed(2)
    hidden = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    teacher_hidden = torch.randn(B, T, D, dtype=dtype)
    head, teacher_head = (torch.nn.Linear(D, V, bias=False, dtype=dtype) for _ in range(2))
    ids = torch.randint(V, (B, T))
    weights = torch.rand(3, B, T, dtype=dtype)

    def gradients(outputs):
        sum(
            (weight * output).sum() for weight, output in zip(weights, outputs, strict=True)
        ).backward()
        found = torch.cat([hidden.grad.flatten(), head.weight.grad.flatten()])
        hidden.grad = head.weight.grad = None
        return found

    student, teacher = (
        head(hidden).log_softmax(-1),
        teacher_head(teacher_hidden).log_softmax(-1).detach(),
    )
    dense = [
        function(student, teacher),
        student.gather(2, ids[..., None])[..., 0],
        teacher.gather(2, ids[..., None])[..., 0],
    ]
    dense_gradient = gradients(dense)
    for chunk_size in (1, 4, 100):
        chunked = compare_completions(
            hidden, head, teacher_hidden, teacher_head, ids, divergence, chunk_size
        )
        for a, b in zip(chunked, dense, strict=True):
            assert a.dtype == dtype and (a - b).norm() <= tolerance * b.norm()
        assert (gradients(chunked) - dense_gradient).norm() <= tolerance * dense_gradient.norm()
    assert teacher_head.weight.grad is None


def test_bfloat16_logits_become_float32_before_the_softmax():
    """Oracle: the same bfloat16 logits in float64. A softmax in bfloat16 is up to 0.008 off."""
    head = torch.nn.Linear(8, 50, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    student, teacher = torch.randn(2, 1, 4, 8).bfloat16()
    ids_BT = torch.randint(50, (1, 4))
    found = compare_completions(student, head, teacher, head, ids_BT, "reverse")
    s, t = (torch.distributions.Categorical(logits=head(x).double()) for x in (student, teacher))
    kl_BT = torch.distributions.kl_divergence(s, t)
    expected = kl_BT, s.log_prob(ids_BT), t.log_prob(ids_BT)
    for found_BT, expected_BT in zip(found, expected, strict=True):
        assert found_BT.dtype == torch.float32
        torch.testing.assert_close(found_BT.double(), expected_BT, rtol=0, atol=1e-5)


def test_unknown_divergence_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="reverse, forward, jsd"):
        compare_completions(None, None, None, None, torch.zeros(1, 1), "kl")


@pytest.mark.parametrize("positions, calls", [(4, 2), (5, 6), (12, 10)])
def test_only_the_last_chunk_is_not_projected_again(positions, calls):
    """Chunks of 4: the last one calls both heads once, each other one in backward, too."""
    seen = []
    head = torch.nn.Linear(8, 50)
    head.register_forward_hook(lambda *_: seen.append(1))
    hidden, ids = torch.randn(1, positions, 8, requires_grad=True), torch.zeros(1, positions).long()
    compare_completions(hidden, head, hidden.detach(), head, ids, "reverse", 4)[0].sum().backward()
    assert len(seen) == calls


MEASURE_PEAKS = """
import resource, sys, torch
from kl_estimators import compare_completions
torch.set_num_threads(1)
head = torch.nn.Linear(8, 20_000, bias=False)
for T in (128, 1024):
    hidden, ids = torch.randn(1, T, 8, requires_grad=True), torch.zeros(1, T, dtype=torch.long)
    compared = compare_completions(hidden, head, hidden.detach(), head, ids, "reverse", 64)
    compared[int(sys.argv[1])].sum().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("which", [0, 1])
def test_peak_memory_does_not_grow_with_length_times_vocabulary(which):
    """From 128 to 1024 positions at V = 20,000 one dense float32 tensor would grow by 72 MB.

    Whether the loss uses the divergence or the token's log-probability.
    """
    # each chunk from the system, and back: glibc's heap would be full of holes
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"}
    command = [sys.executable, "-c", MEASURE_PEAKS, str(which)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    kilobytes = 1 if sys.platform != "darwin" else 1024
    assert (long - short) / kilobytes < 20_000
