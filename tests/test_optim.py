"""AdamW, clipping, the EMA teacher, and the exact numbers behind bfloat16 weights.

Oracles: torch's own AdamW, clip_grad_norm_, lerp_ and rounding to bfloat16, on float32 tensors; the closed form of the EMA.
"""

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import optim
from conftest import gradients, tiny_llama
from optim import AdamW, clip_gradients, join_float32, prepare_for_training, relative_distance, split_float32, update_ema


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


# ---- exact numbers behind bfloat16 weights ----

def split(exact):
    weight, remainder = torch.empty_like(exact, dtype=torch.bfloat16), torch.empty_like(exact, dtype=torch.int16)
    split_float32(exact, weight, remainder)
    return weight, remainder


def numbers(high_word):
    """All 65,536 float32 numbers whose upper half is high_word."""
    return (torch.arange(2 ** 16, dtype=torch.int64) + (high_word << 16)).to(torch.int32).view(torch.float32)


# 1, -1, 0 and the denormals of both signs, the smallest normal, an odd mantissa that carries into the exponent, a large number
@pytest.mark.parametrize("high_word", [0x3F80, 0xBF80, 0x0000, 0x8000, 0x0001, 0x0080, 0x3FFF, 0xC0A5, 0x7F7E])
def test_all_low_half_words_come_back_and_the_weight_is_the_nearest(high_word):
    exact = numbers(high_word)
    weight, remainder = split(exact)
    assert torch.equal(join_float32(weight, remainder).view(torch.int32), exact.view(torch.int32))     # bits: -0.0 is not 0.0
    tie = torch.arange(2 ** 16) == 0x8000
    assert torch.equal(weight[~tie].view(torch.int16), exact[~tie].bfloat16().view(torch.int16))
    away, distance = weight[tie].double().abs() - exact[tie].double().abs(), exact[tie].double() - numbers(high_word)[0].double()
    assert away == distance.abs() > 0


def test_above_the_largest_bfloat16_the_weight_is_infinite_and_the_number_is_kept():
    exact = torch.cat([numbers(0x7F7F), numbers(0xFF7F), torch.tensor([math.inf, -math.inf])])
    weight, remainder = split(exact)
    assert torch.equal(join_float32(weight, remainder), exact)
    assert torch.equal(weight.isinf(), exact.double().abs() >= 3.3961775292304601e38) and weight[:0x8000].isfinite().all()
    weight, remainder = split(torch.tensor([math.nan]))
    assert weight.isnan() and join_float32(weight, remainder).isnan()


def with_remainders(model):
    """A bfloat16 model whose weights and remainders are the weights of a float32 model."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    prepare_for_training(half)
    for (name, weight), exact in zip(half.named_parameters(), model.parameters()):
        split_float32(exact.detach(), weight.detach(), half.remainders[name])
    return half


def exact_weights(model):
    return [join_float32(weight.detach(), model.remainders.get(name)) for name, weight in model.named_parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# 101 divides no size here and is no multiple of a vector register
@pytest.mark.parametrize("dtype, slice_size", [("float32", 2 ** 24), ("float32", 101), ("bfloat16", 2 ** 24), ("bfloat16", 101)])
def test_50_updates_are_those_of_torch_in_float32_to_the_last_bit(tiny, dtype, slice_size, monkeypatch):
    monkeypatch.setitem(optim.SLICE, "cpu", slice_size)
    model, other = with_remainders(tiny) if dtype == "bfloat16" else copy.deepcopy(tiny), copy.deepcopy(tiny)
    ours = AdamW(model, weight_decay=0.1, first_moment_dtype=torch.float32)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(50):
        give_gradients(model, step), give_gradients(other, step)
        ours.step(1e-3), theirs.step()
    assert equal(exact_weights(model), other.parameters()) and not equal(tiny.parameters(), other.parameters())


def test_a_bfloat16_first_moment_costs_less_than_a_percent_of_the_way(tiny):
    """Each rounding is off by at most 2^-9 of m, and m forgets it within about ten steps."""
    model, other = with_remainders(tiny), copy.deepcopy(tiny)
    ours, theirs = AdamW(model), torch.optim.AdamW(other.parameters(), lr=1e-5, weight_decay=0)
    for step in range(50):
        give_gradients(model, step), give_gradients(other, step)
        ours.step(1e-5), theirs.step()
    assert {tensor.dtype for tensor in ours.first_moment.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in ours.second_moment.values()} == {torch.float32}
    for found, expected, start in zip(exact_weights(model), other.parameters(), tiny.parameters()):
        assert 0 < (found - expected).norm() < 0.01 * (expected - start).norm()


@pytest.mark.parametrize("slice_size", [2 ** 24, 101])
def test_300_ema_updates_are_those_of_float32_to_the_last_bit(slice_size, monkeypatch):
    monkeypatch.setitem(optim.SLICE, "cpu", slice_size)
    student, teacher = tiny_llama(seed=0), tiny_llama(seed=1)
    half_student, half_teacher = with_remainders(student), with_remainders(teacher)
    for _ in range(300):
        update_ema(half_teacher, half_student, 0.01)
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters()):
                t.lerp_(s, 0.01)
    assert equal(exact_weights(half_teacher), teacher.parameters()) and equal(exact_weights(half_student), student.parameters())


def test_relative_distance_sees_the_remainders(tiny):
    teacher = copy.deepcopy(tiny)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1 + 1e-5)          # far less than a step of bfloat16
    assert relative_distance(with_remainders(teacher), with_remainders(tiny)) == relative_distance(teacher, tiny) == pytest.approx(1e-5, rel=0.01)


def test_micro_batches_add_up_in_float32():
    """The weights of an untied model occur once in a pass, so plain bfloat16 gives each micro-batch's own gradient."""
    plain = tiny_llama(tied=False, dtype=torch.bfloat16)
    model = copy.deepcopy(plain)
    prepare_for_training(model)
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in plain.parameters()]
    for ids in torch.arange(1, 31).view(3, 1, 10):
        plain.zero_grad()
        for each in (plain, model):
            each(input_ids=ids).logits.float().square().sum().backward()
        total = [sum_ + parameter.grad.float() for sum_, parameter in zip(total, plain.parameters())]
    assert equal([parameter.grad for parameter in model.parameters()], total)
    assert not equal(total, [sum_.bfloat16().float() for sum_ in total])


def test_uses_of_a_weight_in_one_pass_add_up_in_float32():
    """As in compare_completions, where lm_head is used chunk by chunk: 1 + 512 x 2^-9 = 2, and bfloat16 would stay at 1."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    prepare_for_training(model)
    inputs = [torch.ones(1, 1)] + [torch.full((1, 1), 2.0 ** -9)] * 512
    sum(model(x.bfloat16()).float().sum() for x in inputs[::-1]).backward()
    assert model.weight.grad.item() == 2 and model.weight.grad.dtype == torch.float32


def test_a_bfloat16_run_takes_18_bytes_a_parameter(tiny):
    student = tiny.to(torch.bfloat16)
    optimizer = AdamW(student)
    teacher = copy.deepcopy(student)
    student(input_ids=torch.tensor([[1, 2, 3]])).logits.float().square().sum().backward()
    tensors = [tensor for model in (student, teacher) for tensor in (*model.parameters(), *model.remainders.values())]
    tensors += [parameter.grad for parameter in student.parameters()] + list(optimizer.state_tensors().values())
    assert sum(tensor.nbytes for tensor in tensors) == 18 * sum(parameter.numel() for parameter in student.parameters())
    optimizer.step(1e-3)
    assert all(parameter.grad is None for parameter in student.parameters())       # 4 of the 18, while the student samples


class LargestNewTensor(TorchDispatchMode):
    """Numbers in the largest tensor made, views not counted."""
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        old = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in old:
            self.numel = max(self.numel, result.numel())
        return result


def test_no_float32_copy_of_a_parameter_stands_whole(tiny, monkeypatch):
    monkeypatch.setitem(optim.SLICE, "cpu", 64)
    student = with_remainders(tiny)
    optimizer, teacher = AdamW(student), copy.deepcopy(student)
    give_gradients(student, 0)
    with LargestNewTensor() as seen:
        optimizer.step(1e-3), update_ema(teacher, student, 0.01)
    assert seen.numel == 64 < max(parameter.numel() for parameter in student.parameters())


def test_a_copy_takes_its_remainders_along_and_a_second_optimiser_keeps_them(tiny):
    student = with_remainders(tiny)
    teacher = copy.deepcopy(student)
    assert relative_distance(teacher, student) == 0 and equal(exact_weights(teacher), tiny.parameters())
    AdamW(student)
    assert equal(exact_weights(student), tiny.parameters())
    update_ema(teacher, with_remainders(tiny_llama(seed=1)), 0.5)
    assert equal(exact_weights(student), tiny.parameters())      # a copy, not the same tensors


def test_what_would_be_rounded_away_is_refused(tiny):
    with pytest.raises(ValueError, match="float16; load the model in float32 or bfloat16"):
        AdamW(copy.deepcopy(tiny).to(torch.float16))
    student = with_remainders(tiny)
    with pytest.raises(ValueError, match="without a remainder.*Copy the teacher from the student after AdamW"):
        update_ema(copy.deepcopy(tiny).to(torch.bfloat16), student, 0.01)
