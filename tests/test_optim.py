"""AdamW, clipping, the EMA teacher, the exact numbers behind bfloat16 weights, and offloading.

Oracles: torch's own AdamW, clip_grad_norm_, lerp_ and rounding to bfloat16, on float32 tensors; the
closed form of the EMA; for offloading the run without it, and a clock that knows which copies a
GPU's streams would have finished.
"""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import gradients, tiny_llama, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

import optim
from optim import (
    AdamW,
    clip_gradients,
    copy_model,
    join_float32,
    prepare_for_training,
    relative_distance,
    split_float32,
    update_ema,
)
from support.checkpoint import load_checkpoint, save_checkpoint


def adamw(model, *, offload=False, exact_moments=False, **options):
    """A model made ready, and its optimiser; with exact_moments the first moment is float32."""
    prepare_for_training(model, offload=offload)
    optimizer = AdamW(model, **options)
    if exact_moments:  # of a bfloat16 model it is bfloat16, and torch's is not
        for name, moment in optimizer.moments.items():
            optimizer.moments[name] = moment.float()
    return optimizer


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torch(tiny, weight_decay):
    other = copy.deepcopy(tiny)
    ours, theirs = (
        adamw(tiny, weight_decay=weight_decay),
        torch.optim.AdamW(other.parameters(), lr=1.0, weight_decay=weight_decay),
    )
    for step, learning_rate in enumerate([1e-2, 1e-3, 5e-3, 1e-2]):
        give_gradients(tiny, step), give_gradients(other, step)
        theirs.param_groups[0]["lr"] = learning_rate
        ours.step(learning_rate), theirs.step()
        for a, b in zip(tiny.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_adamw_state_round_trip(tiny):
    other = copy.deepcopy(tiny)
    first, second = adamw(tiny), adamw(other)
    give_gradients(tiny, 0), first.step(1e-2)
    other.load_state_dict(tiny.state_dict())
    second.load_state(
        {name: tensor.clone() for name, tensor in first.state_tensors().items()}, first.updates
    )
    give_gradients(tiny, 1), give_gradients(other, 1)
    first.step(1e-2), second.step(1e-2)
    assert all(
        torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="does not belong"):
        second.load_state({"first_moment.x": torch.zeros(1)}, 1)


def test_tied_embeddings_are_updated_once():
    """Adam's first step moves each weight with a gradient by the learning rate, once, not twice."""
    model = tiny_llama(tied=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = model.lm_head.weight.detach().clone()
    give_gradients(model, 0)
    adamw(model).step(0.01)
    torch.testing.assert_close(
        (model.lm_head.weight - before).abs(), torch.full_like(before, 0.01), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_torch(tiny, max_norm):
    other = copy.deepcopy(tiny)
    give_gradients(tiny, 0), give_gradients(other, 0)
    norm, expected = (
        clip_gradients(tiny, max_norm),
        torch.nn.utils.clip_grad_norm_(other.parameters(), max_norm),
    )
    assert norm == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradients(tiny), gradients(other), rtol=1e-5, atol=1e-9)


def test_ema_equals_its_closed_form():
    """For a fixed student: teacher_n - student = (1 - rate)^n (teacher_0 - student)."""
    student, teacher = tiny_llama(seed=0), tiny_llama(seed=1)
    start = [parameter.detach().double() for parameter in teacher.parameters()]
    for _ in range(300):
        update_ema(teacher, student, 0.01)
    for t, t0, s in zip(teacher.parameters(), start, student.parameters(), strict=True):
        torch.testing.assert_close(
            t.double(), s.double() + 0.99**300 * (t0 - s.double()), rtol=0, atol=2e-6
        )


def test_relative_distance_by_hand(tiny):
    teacher = copy.deepcopy(tiny)
    assert relative_distance(teacher, tiny) == 0
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    assert relative_distance(teacher, tiny) == pytest.approx(0.5, rel=1e-5)


# ---- exact numbers behind bfloat16 weights ----


def split(exact):
    weight, remainder = (
        torch.empty_like(exact, dtype=torch.bfloat16),
        torch.empty_like(exact, dtype=torch.int16),
    )
    split_float32(exact, weight, remainder)
    return weight, remainder


def numbers(high_word):
    """All 65,536 float32 numbers whose upper half is high_word."""
    return (
        (torch.arange(2**16, dtype=torch.int64) + (high_word << 16))
        .to(torch.int32)
        .view(torch.float32)
    )


# 1, -1, 0 and the denormals of both signs, the smallest normal number, an odd mantissa that carries
# into the exponent, a large number
@pytest.mark.parametrize(
    "high_word", [0x3F80, 0xBF80, 0x0000, 0x8000, 0x0001, 0x0080, 0x3FFF, 0xC0A5, 0x7F7E]
)
def test_all_low_half_words_come_back_and_the_weight_is_the_nearest(high_word):
    exact = numbers(high_word)
    weight, remainder = split(exact)
    assert torch.equal(
        join_float32(weight, remainder).view(torch.int32), exact.view(torch.int32)
    )  # bits: -0.0 is not 0.0
    tie = torch.arange(2**16) == 0x8000
    assert torch.equal(weight[~tie].view(torch.int16), exact[~tie].bfloat16().view(torch.int16))
    away, distance = (
        weight[tie].double().abs() - exact[tie].double().abs(),
        exact[tie].double() - numbers(high_word)[0].double(),
    )
    assert away == distance.abs() > 0


def test_above_the_largest_bfloat16_the_weight_is_infinite_and_the_number_is_kept():
    exact = torch.cat([numbers(0x7F7F), numbers(0xFF7F), torch.tensor([math.inf, -math.inf])])
    weight, remainder = split(exact)
    assert torch.equal(join_float32(weight, remainder), exact)
    assert (
        torch.equal(weight.isinf(), exact.double().abs() >= 3.3961775292304601e38)
        and weight[:0x8000].isfinite().all()
    )
    weight, remainder = split(torch.tensor([math.nan]))
    assert weight.isnan() and join_float32(weight, remainder).isnan()


def with_remainders(model):
    """A bfloat16 model whose weights and remainders are the weights of a float32 model."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    prepare_for_training(half)
    for (name, weight), exact in zip(half.named_parameters(), model.parameters(), strict=True):
        split_float32(exact.detach(), weight.detach(), half.remainders[name])
    return half


def exact_weights(model):
    return [
        join_float32(weight.detach(), model.remainders.get(name))
        for name, weight in model.named_parameters()
    ]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# 101 divides no size here and is no multiple of a vector register
@pytest.mark.parametrize(
    "dtype, slice_size",
    [("float32", 2**24), ("float32", 101), ("bfloat16", 2**24), ("bfloat16", 101)],
)
def test_50_updates_are_those_of_torch_in_float32_to_the_last_bit(
    tiny, dtype, slice_size, monkeypatch
):
    monkeypatch.setitem(optim.SLICE, "cpu", slice_size)
    model, other = (
        with_remainders(tiny) if dtype == "bfloat16" else copy.deepcopy(tiny),
        copy.deepcopy(tiny),
    )
    ours = adamw(model, weight_decay=0.1, exact_moments=True)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(50):
        give_gradients(model, step), give_gradients(other, step)
        ours.step(1e-3), theirs.step()
    assert equal(exact_weights(model), other.parameters()) and not equal(
        tiny.parameters(), other.parameters()
    )


def test_a_bfloat16_first_moment_costs_less_than_a_percent_of_the_way(tiny):
    """Each rounding is off by at most 2^-9 of m, and m forgets it within about ten steps."""
    model, other = with_remainders(tiny), copy.deepcopy(tiny)
    ours, theirs = adamw(model), torch.optim.AdamW(other.parameters(), lr=1e-5, weight_decay=0)
    for step in range(50):
        give_gradients(model, step), give_gradients(other, step)
        ours.step(1e-5), theirs.step()
    dtypes = {(name.split(".")[0], tensor.dtype) for name, tensor in ours.state_tensors().items()}
    assert dtypes == {("first_moment", torch.bfloat16), ("second_moment", torch.float32)}
    for found, expected, start in zip(
        exact_weights(model), other.parameters(), tiny.parameters(), strict=True
    ):
        assert 0 < (found - expected).norm() < 0.01 * (expected - start).norm()


@pytest.mark.parametrize("slice_size", [2**24, 101])
def test_300_ema_updates_are_those_of_float32_to_the_last_bit(slice_size, monkeypatch):
    monkeypatch.setitem(optim.SLICE, "cpu", slice_size)
    student, teacher = tiny_llama(seed=0), tiny_llama(seed=1)
    half_student, half_teacher = with_remainders(student), with_remainders(teacher)
    for _ in range(300):
        update_ema(half_teacher, half_student, 0.01)
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                t.lerp_(s, 0.01)
    assert equal(exact_weights(half_teacher), teacher.parameters()) and equal(
        exact_weights(half_student), student.parameters()
    )


def test_relative_distance_sees_the_remainders(tiny):
    teacher = copy.deepcopy(tiny)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1 + 1e-5)  # far less than a step of bfloat16
    assert (
        relative_distance(with_remainders(teacher), with_remainders(tiny))
        == relative_distance(teacher, tiny)
        == pytest.approx(1e-5, rel=0.01)
    )


def test_micro_batches_add_up_in_float32():
    """Each weight of an untied model is used once: plain bfloat16 gives each part's gradient."""
    plain = tiny_llama(tied=False, dtype=torch.bfloat16)
    model = copy.deepcopy(plain)
    prepare_for_training(model)
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in plain.parameters()]
    for ids in torch.arange(1, 31).view(3, 1, 10):
        plain.zero_grad()
        for each in (plain, model):
            each(input_ids=ids).logits.float().square().sum().backward()
        total = [
            sum_ + parameter.grad.float()
            for sum_, parameter in zip(total, plain.parameters(), strict=True)
        ]
    assert equal([parameter.grad for parameter in model.parameters()], total)
    assert not equal(total, [sum_.bfloat16().float() for sum_ in total])


def test_uses_of_a_weight_in_one_pass_add_up_in_float32():
    """lm_head is used chunk by chunk: 1 + 512 x 2^-9 = 2, and a sum in bfloat16 would stay at 1."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    prepare_for_training(model)
    inputs = [torch.ones(1, 1)] + [torch.full((1, 1), 2.0**-9)] * 512
    sum(model(x.bfloat16()).float().sum() for x in inputs[::-1]).backward()
    assert model.weight.grad.item() == 2 and model.weight.grad.dtype == torch.float32


def test_a_bfloat16_run_takes_18_bytes_a_parameter(tiny):
    student = tiny.to(torch.bfloat16)
    optimizer = adamw(student)
    teacher = copy_model(student)
    student(input_ids=torch.tensor([[1, 2, 3]])).logits.float().square().sum().backward()
    tensors = [
        tensor
        for model in (student, teacher)
        for tensor in (*model.parameters(), *model.remainders.values())
    ]
    tensors += [parameter.grad for parameter in student.parameters()] + list(
        optimizer.state_tensors().values()
    )
    assert sum(tensor.nbytes for tensor in tensors) == 18 * sum(
        parameter.numel() for parameter in student.parameters()
    )
    optimizer.step(1e-3)
    assert all(
        parameter.grad is None for parameter in student.parameters()
    )  # 4 of the 18, while the student samples


class LargestNewTensor(TorchDispatchMode):
    """Numbers in the largest tensor made, views not counted."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        old = {
            tensor.untyped_storage().data_ptr()
            for tensor in args
            if isinstance(tensor, torch.Tensor)
        }
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in old:
            self.numel = max(self.numel, result.numel())
        return result


def test_no_float32_copy_of_a_parameter_stands_whole(tiny, monkeypatch):
    monkeypatch.setitem(optim.SLICE, "cpu", 64)
    student = with_remainders(tiny)
    optimizer, teacher = adamw(student), copy_model(student)
    give_gradients(student, 0)
    with LargestNewTensor() as seen:
        optimizer.step(1e-3), update_ema(teacher, student, 0.01)
    assert seen.numel == 64 < max(parameter.numel() for parameter in student.parameters())


def test_a_copy_takes_its_remainders_along_and_a_second_preparation_keeps_them(tiny):
    student = with_remainders(tiny)
    teacher = copy_model(student)
    assert relative_distance(teacher, student) == 0 and equal(
        exact_weights(teacher), tiny.parameters()
    )
    adamw(student)
    assert equal(exact_weights(student), tiny.parameters())
    update_ema(teacher, with_remainders(tiny_llama(seed=1)), 0.5)
    assert equal(exact_weights(student), tiny.parameters())  # a copy, not the same tensors


def test_what_would_be_rounded_away_is_refused(tiny):
    with pytest.raises(ValueError, match="float16; load the model in float32 or bfloat16"):
        prepare_for_training(copy.deepcopy(tiny).to(torch.float16))
    student = with_remainders(tiny)
    message = r"without a remainder; call prepare_for_training\(student\) before"
    with pytest.raises(ValueError, match=message):
        update_ema(copy.deepcopy(tiny).to(torch.bfloat16), student, 0.01)


# ---- offload: the state in host memory ----


def start(dtype, offload):
    """(student, teacher, optimizer), the same for every call with one dtype."""
    student = with_remainders(tiny_llama()) if dtype == "bfloat16" else tiny_llama()
    optimizer = adamw(student, weight_decay=0.1, offload=offload)
    return student, copy_model(student), optimizer


def advance(student, teacher, optimizer, steps):
    """Steps of AdamW and EMA -> the distance of teacher and student after each."""
    distances = []
    for step in steps:
        give_gradients(student, step)
        optimizer.step(1e-3)
        update_ema(teacher, student, 0.1)
        distances.append(relative_distance(teacher, student))
    return distances


def everything(student, teacher, optimizer):
    tensors = [t for m in (student, teacher) for t in (*m.parameters(), *m.remainders.values())]
    return tensors + list(optimizer.state_tensors().values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offload_changes_no_bit_and_resumes_either_way_round(dtype, tmp_path, monkeypatch):
    """Slices of 101 numbers: several for each tensor, the last one shorter."""
    monkeypatch.setitem(optim.SLICE, "cpu", 101)
    plain, offloaded = start(dtype, False), start(dtype, True)
    assert offloaded[0].offload and offloaded[1].offload and not plain[0].offload
    assert advance(*plain, range(3)) == advance(*offloaded, range(3))
    assert equal(everything(*plain), everything(*offloaded))

    for run, name in [(plain, "plain"), (offloaded, "offloaded")]:
        student, teacher, optimizer = run
        save_checkpoint(tmp_path / name, 3, student, tiny_tokenizer(), teacher, optimizer, {}, 1)
    advance(*plain, range(3, 5))
    for name, offload in [("plain", True), ("offloaded", False), ("offloaded", True)]:
        resumed = start(dtype, offload)
        load_checkpoint(tmp_path / name / "checkpoint-000003", *resumed)
        advance(*resumed, range(3, 5))
        assert equal(everything(*resumed), everything(*plain)), (name, offload)


def test_offload_moves_10_of_18_bytes_and_needs_two_sets_of_buffers(tiny, monkeypatch):
    monkeypatch.setitem(optim.SLICE, "cpu", 64)
    host = []
    monkeypatch.setattr(optim.mmap, "mmap", lambda _, size: host.append(size) or bytearray(size))
    student = with_remainders(tiny)
    optimizer = adamw(student, offload=True)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    assert sum(host) == (10 - 2) * parameters
    teacher = copy_model(student)
    assert sum(host) == 10 * parameters
    give_gradients(student, 0)
    with LargestNewTensor() as seen:
        optimizer.step(1e-3)
        update_ema(teacher, student, 0.01)
    assert seen.numel == 64 * 4  # bytes of a float32 buffer


class Clock:
    """A CUDA stream without CUDA: `ended` holds how much of each stream's work has certainly ended
    when the next piece of work on this one begins, by its own order and its wait_stream calls."""

    def __init__(self):
        self.queued, self.ended, self.entered = 0, {}, False

    def wait_stream(self, other):
        for stream, count in [*other.ended.items(), (other, other.queued)]:
            self.ended[stream] = max(count, self.ended.get(stream, 0))

    def work(self):
        before = dict(self.ended)
        self.queued += 1
        self.ended[self] = self.queued
        return self, self.queued, before

    def __enter__(self):
        self.entered = True

    def __exit__(self, *_):
        self.entered = False


@pytest.mark.parametrize("written", [1, 0])
def test_the_streams_wait_where_they_must_and_nowhere_else(written, monkeypatch):
    """Streams of a GPU run side by side, so that the CPU's order of the calls proves nothing."""
    computing, copying, events, buffers, ended = Clock(), Clock(), {}, {}, []
    for name, call in {
        "current_stream": lambda: computing,
        "Stream": lambda: copying,
        "stream": lambda stream: stream,
        "synchronize": lambda: ended.append(len(events)),
    }.items():
        monkeypatch.setattr(torch.cpu, name, call)
    monkeypatch.setitem(optim.SLICE, "cpu", 8)
    weight, gradient, state = torch.zeros(3, 40)
    numbers = {state[8 * i :].data_ptr(): i for i in range(5)}
    copy_slices, copy_tensor, inside = optim._copy, torch.Tensor.copy_, []

    def note(target, source, **flags):
        inside.append(copying.entered)
        return copy_tensor(target, source, **flags)

    def watched_copy(sources, targets, stream):
        for source, target in zip(sources, targets, strict=False):
            kind = "write" if target.data_ptr() in numbers else "fetch"
            on_host, on_device = (target, source) if kind == "write" else (source, target)
            number = numbers[on_host.data_ptr()]
            events[kind, number] = stream.work()
            assert buffers.setdefault(number, on_device.data_ptr()) == on_device.data_ptr()
        copy_slices(sources, targets, stream)

    monkeypatch.setattr(optim, "_copy", watched_copy)
    monkeypatch.setattr(torch.Tensor, "copy_", note)
    events["earlier", 0] = computing.work()
    for i, (_, _, fetched) in enumerate(optim._slices([[weight, gradient, state]], True, written)):
        assert not copying.entered  # the caller's update runs on the caller's stream
        events["update", i] = computing.work()
        fetched += i

    def waited(later, earlier):
        stream, place, _ = events[earlier]
        return events[later][2].get(stream, 0) >= place

    assert waited(("fetch", 0), ("earlier", 0)) and ended == [len(events)]
    assert all(inside) and len(inside) == 5 + 5 * written
    for i in range(5):
        assert waited(("update", i), ("fetch", i))
        if written:
            assert waited(("write", i), ("update", i))
        if i < 4:
            assert not waited(("fetch", i + 1), ("update", i)) and buffers[i] != buffers[i + 1]
        if i < 3:
            last = "write" if written else "update"
            assert buffers[i] == buffers[i + 2] and waited(("fetch", i + 2), (last, i))
    assert torch.equal(state, written * torch.arange(5.0).repeat_interleave(8))


def test_host_memory_is_locked_once_to_its_size_and_unlocked_when_freed(monkeypatch):
    """A parameter on a GPU, and CUDA's two calls, played here. Memory is mapped at both."""
    locked = {}

    def unregister(address):
        assert is_mapped(address)
        locked.pop(address)

    def is_mapped(address):
        if not Path("/proc/self/maps").exists():
            return True
        ranges = [line.split()[0].split("-") for line in open("/proc/self/maps")]
        return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)

    cudart = SimpleNamespace(
        cudaHostRegister=lambda address, size, _: locked.update({address: size}),
        cudaHostUnregister=unregister,
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "check_error", lambda error: None)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.data_ptr() in locked)
    parameter = SimpleNamespace(
        is_cuda=True, dtype=torch.bfloat16, shape=(3, 5000), numel=lambda: 15000
    )
    student = SimpleNamespace(offload=True, named_parameters=lambda: [("w", parameter)])
    remainder = optim._zeros(parameter, torch.int16, offload=True).fill_(7)
    student.remainders = {"w": remainder}
    assert locked == {remainder.data_ptr(): 2 * 15000}

    assert not copy.deepcopy(student).remainders["w"].is_pinned()  # why copy_model makes its own
    teacher = copy_model(student)
    copied = teacher.remainders["w"]
    assert copied.is_pinned() and (copied == 7).all() and len(locked) == 2
    assert copied is not remainder and student.remainders["w"] is remainder
    del copied, remainder, teacher, student
    assert not locked


def test_a_model_that_is_not_prepared_is_refused(tiny):
    for use in (AdamW, copy_model):
        with pytest.raises(ValueError, match="call prepare_for_training.model. first"):
            use(tiny)
