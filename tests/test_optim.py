"""AdamW, clipping and the EMA teacher. Oracles: torch's own AdamW and clip_grad_norm_; the closed form of the EMA."""

import copy

import pytest
import torch

from conftest import gradients, tiny_llama
from optim import AdamW, clip_gradients, relative_distance, update_ema


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torch(tiny, weight_decay):
    other = copy.deepcopy(tiny)
    ours, theirs = AdamW(tiny, weight_decay=weight_decay), torch.optim.AdamW(other.parameters(), lr=1.0, weight_decay=weight_decay)
    for step, learning_rate in enumerate([1e-2, 1e-3, 5e-3, 1e-2]):
        give_gradients(tiny, step), give_gradients(other, step)
        theirs.param_groups[0]["lr"] = learning_rate
        ours.step(learning_rate), theirs.step()
        for a, b in zip(tiny.parameters(), other.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_adamw_state_round_trip(tiny):
    other = copy.deepcopy(tiny)
    first, second = AdamW(tiny), AdamW(other)
    give_gradients(tiny, 0), first.step(1e-2)
    other.load_state_dict(tiny.state_dict())
    second.load_state({name: tensor.clone() for name, tensor in first.state_tensors().items()}, first.updates)
    give_gradients(tiny, 1), give_gradients(other, 1)
    first.step(1e-2), second.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters()))
    with pytest.raises(ValueError, match="does not belong"):
        second.load_state({"first_moment.x": torch.zeros(1)}, 1)


def test_tied_embeddings_are_updated_once():
    """The first step of Adam moves each weight with a gradient by the learning rate, once; twice would be seen."""
    model = tiny_llama(tied=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = model.lm_head.weight.detach().clone()
    give_gradients(model, 0)
    AdamW(model).step(0.01)
    torch.testing.assert_close((model.lm_head.weight - before).abs(), torch.full_like(before, 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_torch(tiny, max_norm):
    other = copy.deepcopy(tiny)
    give_gradients(tiny, 0), give_gradients(other, 0)
    norm, expected = clip_gradients(tiny, max_norm), torch.nn.utils.clip_grad_norm_(other.parameters(), max_norm)
    assert norm == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradients(tiny), gradients(other), rtol=1e-5, atol=1e-9)


def test_ema_equals_its_closed_form():
    """Against a student that stands still, after n updates teacher - student = (1 - rate)^n (teacher_0 - student)."""
    student, teacher = tiny_llama(seed=0), tiny_llama(seed=1)
    start = [parameter.detach().double() for parameter in teacher.parameters()]
    for _ in range(300):
        update_ema(teacher, student, 0.01)
    for t, t0, s in zip(teacher.parameters(), start, student.parameters()):
        torch.testing.assert_close(t.double(), s.double() + 0.99 ** 300 * (t0 - s.double()), rtol=0, atol=2e-6)


def test_relative_distance_by_hand(tiny):
    teacher = copy.deepcopy(tiny)
    assert relative_distance(teacher, tiny) == 0
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    assert relative_distance(teacher, tiny) == pytest.approx(0.5, rel=1e-5)


def test_bfloat16_is_refused(tiny):
    """Its updates would be rounded away: of a gap of 1, 300 updates of rate 0.01 would leave far more than 0.99^300 = 5 %."""
    half = copy.deepcopy(tiny).to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32"):
        AdamW(half)
    with pytest.raises(ValueError, match="float32"):
        update_ema(half, half, 0.01)
