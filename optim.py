"""AdamW, gradient clipping and the EMA teacher on exact float32 numbers behind bfloat16 weights.

A bfloat16 model learns little by itself: an EMA step of rate 0.01 is smaller than half the distance
to the next bfloat16 number and is rounded away, and so are most AdamW updates at a learning rate of
1e-5. So each bfloat16 weight gets a remainder of 16 bits, and the two together are a float32
number. The model computes with the weight; this file reads and writes the number. Bytes for each:

              weight  gradient  teacher | remainder  teacher's  first moment  second moment | sum
    bfloat16    2        4         2    |     2          2           2              4       |  18
    float32     4        4         4    |     -          -           4              4       |  20

At beta1 = 0.9 the rounding of the first moment does not pile up; at beta2 = 0.999 that of the
second would: 0.999 v rounds back to v. With offload the middle columns live in host memory; a step
fetches a slice of them, updates it and writes it back: the same bits, in the same checkpoints.
"""

import copy
import mmap
import weakref

import torch

# numbers updated at a time, so that temporaries are small on a GPU and stay in a CPU's cache
SLICE = {"cpu": 2**18, "cuda": 2**24}


def split_float32(exact, weight, remainder):
    """Write a float32 tensor into weight (bfloat16) and remainder (int16), exactly.

        bits of exact = (bits of weight) 2^16 + remainder,   remainder in -2^15 ... 2^15 - 1

    The weight is the nearest bfloat16 number; a tie goes away from zero (+2^15 is no remainder).
    From 3.3961775e38 on the weight is infinite, and the two together are still exact.
    """
    bits = exact.view(torch.int32)
    high = (bits + 0x8000) >> 16
    weight.view(torch.int16).copy_(high)
    remainder.copy_(bits - (high << 16))


def join_float32(weight, remainder):
    """The inverse of split_float32. A weight without a remainder (None) is returned as it is."""
    if remainder is None:
        return weight
    return ((weight.view(torch.int16).int() << 16) + remainder).view(torch.float32)


def prepare_for_training(model, offload=False):
    """Give bfloat16 parameters float32 gradients, and remainders: model.remainders {name: int16}.

    Call it before AdamW(model), and before copy_model(model) makes the teacher. New remainders are
    0; existing ones keep their values. offload puts them, and AdamW's moments, in host memory.
    ValueError unless weights are bfloat16, float32 or float64.
    """
    old, model.remainders, model.offload = getattr(model, "remainders", {}), {}, offload
    for name, parameter in learning(model):
        if parameter.dtype == torch.bfloat16:
            model.remainders[name] = _zeros(parameter, torch.int16, offload)
            if name in old:
                model.remainders[name].copy_(old[name])
            # autograd then adds up micro-batches, and uses of one weight in a pass, in float32
            parameter.grad_dtype = torch.float32
        elif parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {parameter.dtype}; load the model in float32 or bfloat16")


def learning(model):
    """[(name, parameter)] of those that require gradients, tied ones once, by the first name.

    A frozen parameter has no gradient, moments or remainder, and a teacher may share it (lora.py).
    """
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _check_prepared(model):
    if not hasattr(model, "remainders"):
        raise ValueError("call prepare_for_training(model) first")


def copy_model(model):
    """A model of its own with the same exact numbers: the teacher, l. 1 of Algorithm 1."""
    _check_prepared(model)
    copied = copy.deepcopy(model)
    if model.offload:  # trap: deepcopy's remainders are not page-locked
        for name, parameter in copied.named_parameters():
            if name in copied.remainders:
                pinned = _zeros(parameter, torch.int16, offload=True)
                copied.remainders[name] = pinned.copy_(copied.remainders[name])
    return copied


def _remainder(model, name, parameter):
    """The remainder of a parameter, None for a float32 one."""
    remainder = getattr(model, "remainders", {}).get(name)
    if remainder is None and parameter.dtype == torch.bfloat16:
        remedy = "call prepare_for_training(student) before AdamW() and before copying the teacher"
        raise ValueError(f"{name} is bfloat16 without a remainder; {remedy}")
    return remainder


# ---- where the state lives: beside the weights, or in host memory and fetched in slices ----
def _zeros(parameter, dtype, offload):
    """Zeros in a parameter's shape, beside it or in host memory (page-locked where CUDA copies)."""
    if not offload:
        return torch.zeros_like(parameter, dtype=dtype)
    # trap: torch's pin_memory rounds up to a power of two bytes; Qwen2.5-7B would take 1.9 times
    pages = mmap.mmap(-1, parameter.numel() * dtype.itemsize)
    view = memoryview(pages)
    zeros = torch.frombuffer(view, dtype=dtype).view(parameter.shape)
    if parameter.is_cuda:
        address = zeros.data_ptr()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, len(pages), 0))
        weakref.finalize(view, _unlock, address, pages)
    return zeros


def _unlock(address, pages):
    """End the page lock of memory that no tensor uses; `pages` keeps it mapped until then."""
    torch.cuda.cudart().cudaHostUnregister(address)


def _slices(rows, offload, written):
    """Cut each row, tensors of one shape or None, into flat slices of at most SLICE numbers.

    The first two of a row live on the model's device, the others are state. With offload each state
    slice is copied to the device, and the first `written` of them back after the caller's update.
    """
    slices = []
    for row in rows:
        size = SLICE.get(row[0].device.type, 2**24)
        for at in range(0, row[0].numel(), size):
            slices.append([None if t is None else t.view(-1)[at : at + size] for t in row])
    return _fetched(slices, written) if offload and slices else slices


def _fetched(slices, written):
    """The slices with their state on the device; the next arrives while one is updated.

    A second CUDA stream runs fetch 0, fetch 1, write 0, fetch 2, write 1, ...: each fetch finds its
    buffers, one of two sets, written back.
    """
    device = slices[0][0].device
    backend = torch.cuda if device.type == "cuda" else torch.cpu  # the latter's streams do nothing
    computing, copying = backend.current_stream(), backend.Stream()
    sizes = [
        max(0 if t is None else t.nbytes for t in column) for column in zip(*slices, strict=True)
    ][2:]
    buffers = [[torch.empty(n, dtype=torch.uint8, device=device) for n in sizes] for _ in range(2)]
    copying.wait_stream(computing)  # trap: queued work may still use the memory of the buffers
    current = None
    for tensors, host in [*((row[:2], row[2:]) for row in slices), ([], [])]:
        computing.wait_stream(copying)  # the current slice has arrived
        state = [
            t if t is None else b[: t.nbytes].view(t.dtype)
            for t, b in zip(host, buffers[0], strict=False)  # no host after the last
        ]
        buffers.reverse()
        _copy(host, state, backend.stream(copying))
        if current is not None:
            yield current[0] + current[1]  # trap: in no stream's context, for it is the caller's
            copying.wait_stream(computing)  # trap: the update is queued, and may not have begun
            _copy(current[1][:written], current[2], backend.stream(copying))
        current = tensors, state, host
    backend.synchronize()  # trap: the CPU may read the state next, the allocator reuse the buffers


def _copy(sources, targets, stream):
    with stream:
        for source, target in zip(sources, targets, strict=False):  # only what is written
            if source is not None:
                target.copy_(source, non_blocking=True)  # not asynchronous from ordinary memory


def adamw(w, gradient, m, v, learning_rate, weight_decay, n):
    """The n-th update (n = 1, 2, …) of w and its moments m and v, in place: AdamW, 1711.05101."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = v.sqrt().div_((1 - beta2**n) ** 0.5).add_(eps)
    w.mul_(1 - learning_rate * weight_decay)
    w.addcdiv_(m, denominator, value=-learning_rate / (1 - beta1**n))


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); in float32, torch.optim.AdamW.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        w = (1 - lr decay) w - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)

    The schedule is the caller's. m has the model's dtype, and in bfloat16 is rounded after its use
    (after 100 steps 0.2 % of the update); v is float32. The model comes from
    prepare_for_training, which decides where m and v live.
    """

    def __init__(self, model, *, weight_decay=0.0):
        _check_prepared(model)
        self.model = model
        self.offload = model.offload
        self.weight_decay = weight_decay
        self.updates = 0
        self.moments = {}
        for name, p in learning(model):
            v_dtype = torch.promote_types(p.dtype, torch.float32)
            self.moments[f"first_moment.{name}"] = _zeros(p, p.dtype, self.offload)
            self.moments[f"second_moment.{name}"] = _zeros(p, v_dtype, self.offload)

    @torch.no_grad()
    def step(self, learning_rate):
        """Update every parameter from its .grad, then free the gradients."""
        self.updates += 1
        how = learning_rate, self.weight_decay, self.updates
        rows = []
        for name, p in learning(self.model):
            if p.grad is not None:
                m, v = self.moments[f"first_moment.{name}"], self.moments[f"second_moment.{name}"]
                rows.append([p, p.grad, _remainder(self.model, name, p), m, v])
        for weight, gradient, remainder, m, v in _slices(rows, self.offload, written=3):
            if remainder is None:  # float32: updated in place
                adamw(weight, gradient, m, v, *how)
            else:  # bfloat16: join the exact numbers, update them, split them again
                exact, exact_m = join_float32(weight, remainder), m.float()
                adamw(exact, gradient, exact_m, v, *how)
                split_float32(exact, weight, remainder)
                m.copy_(exact_m)
        self.model.zero_grad()

    def state_tensors(self):
        """Both moments under flat names; the one number beside them is `updates`."""
        return self.moments

    def load_state(self, tensors, updates):
        """Copy in what another run had as state_tensors() and updates, with offload or without."""
        own, given = ({(n, t.dtype) for n, t in some.items()} for some in (self.moments, tensors))
        if odd := sorted(own ^ given, key=str):
            found = f"names or dtypes differ, such as {' '.join(map(str, odd[0]))}"
            raise ValueError(f"the optimiser state does not belong to this model; {found}")
        for name, moment in self.moments.items():
            moment.copy_(tensors[name])
        self.updates = updates


@torch.no_grad()
def clip_gradients(model, max_norm):
    """Scale all gradients so that their joint 2-norm is at most max_norm -> the norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


@torch.no_grad()
def update_ema(teacher, student, rate):
    """teacher += rate (student - teacher) for every parameter.  Algorithm 1, l. 19; rate: alpha."""
    for t_weight, s_weight, t_remainder, s_remainder in _pairs(teacher, student, written=1):
        if t_remainder is None:  # float32: averaged in place
            t_weight.lerp_(s_weight, rate)
        else:  # bfloat16: average the exact numbers
            exact = join_float32(t_weight, t_remainder)
            exact.lerp_(join_float32(s_weight, s_remainder), rate)
            split_float32(exact, t_weight, t_remainder)


@torch.no_grad()
def relative_distance(teacher, student):
    """||teacher - student|| / ||student|| over all parameters together: 0 for a copy."""
    distances, norms = [], []
    for t_weight, s_weight, t_remainder, s_remainder in _pairs(teacher, student, written=0):
        exact = join_float32(s_weight, s_remainder)
        distances.append((join_float32(t_weight, t_remainder) - exact).norm())
        norms.append(exact.norm())
    return (torch.stack(distances).norm() / torch.stack(norms).norm()).item()


def _pairs(teacher, student, written):
    """Slices of teacher's weight, student's weight, teacher's remainder, student's remainder."""
    rows = []
    for (name, t), s in zip(teacher.named_parameters(), student.parameters(), strict=True):
        if t is s and not s.requires_grad:  # the frozen weights that lora.py lets them share
            continue
        rows.append([t, s, _remainder(teacher, name, t), _remainder(student, name, s)])
    return _slices(rows, getattr(student, "offload", False), written)
