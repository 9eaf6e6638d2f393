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

import mmap
import re
import shutil
import weakref
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

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

    New remainders are 0; existing ones keep their values. copy.deepcopy(model) copies them too, so
    copy the teacher afterwards. Raises ValueError unless weights are bfloat16, float32 or float64.
    """
    old, model.remainders, model.offload = getattr(model, "remainders", {}), {}, offload
    for name, parameter in model.named_parameters():  # tied weights appear once, by the first name
        if parameter.dtype == torch.bfloat16:
            model.remainders[name] = _zeros(parameter, torch.int16, offload)
            if name in old:
                model.remainders[name].copy_(old[name])
            # autograd then adds up micro-batches, and uses of one weight in a pass, in float32
            parameter.grad_dtype = torch.float32
        elif parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {parameter.dtype}; load the model in float32 or bfloat16")


def _remainder(model, name, p):
    remainder = getattr(model, "remainders", {}).get(name)
    if remainder is None and p.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {p.dtype} without a remainder; copy the teacher after AdamW()")
    if remainder is not None and p.is_cuda and model.offload and not remainder.is_pinned():
        # trap: copy.deepcopy, which made the teacher, does not page-lock its copy
        remainder = model.remainders[name] = _zeros(p, torch.int16, offload=True).copy_(remainder)
    return remainder


# ---- where the state lives: beside the weights, or in host memory and fetched in slices ----
def _zeros(parameter, dtype, offload):
    """Zeros in a parameter's shape, beside it or in host memory (page-locked where CUDA copies)."""
    if not offload:
        return torch.zeros_like(parameter, dtype=dtype)
    # trap: torch's pin_memory rounds up to a power of two bytes; Qwen2.5-7B would take 1.9 times
    pages = mmap.mmap(-1, parameter.numel() * dtype.itemsize)
    zeros = torch.frombuffer(pages, dtype=dtype).view(parameter.shape)
    if parameter.is_cuda:
        cudart, address = torch.cuda.cudart(), zeros.data_ptr()
        torch.cuda.check_error(cudart.cudaHostRegister(address, len(pages), 0))
        weakref.finalize(pages, cudart.cudaHostUnregister, address)  # before they are freed
    return zeros


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


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), equal to torch.optim.AdamW.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        w = (1 - lr decay) w - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)

    The schedule is the caller's. m has the model's dtype unless first_moment_dtype names another,
    and is rounded after its use; v is float32. offload: remainders and moments in host memory.
    """

    def __init__(self, model, *, weight_decay=0.0, first_moment_dtype=None, offload=False):
        prepare_for_training(model, offload)
        self.model, self.offload, self.weight_decay = model, offload, weight_decay
        self.updates, self.moments = 0, {}
        for name, p in model.named_parameters():
            v_dtype = torch.promote_types(p.dtype, torch.float32)
            self.moments[f"first_moment.{name}"] = _zeros(p, first_moment_dtype or p.dtype, offload)
            self.moments[f"second_moment.{name}"] = _zeros(p, v_dtype, offload)

    @torch.no_grad()
    def step(self, learning_rate):
        """Update every parameter from its .grad, then free the gradients."""
        self.updates += 1
        beta1, beta2, eps, n = 0.9, 0.999, 1e-8, self.updates
        rows = []
        for name, p in self.model.named_parameters():
            if p.grad is not None:
                m, v = self.moments[f"first_moment.{name}"], self.moments[f"second_moment.{name}"]
                rows.append([p, p.grad, _remainder(self.model, name, p), m, v])
        for weight, gradient, remainder, moment, v in _slices(rows, self.offload, written=3):
            w, m = join_float32(weight, remainder), moment.to(v.dtype)  # themselves in float32
            m.lerp_(gradient, 1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = v.sqrt().div_((1 - beta2**n) ** 0.5).add_(eps)
            w.mul_(1 - learning_rate * self.weight_decay)
            w.addcdiv_(m, denominator, value=-learning_rate / (1 - beta1**n))
            moment.copy_(m)
            if remainder is not None:
                split_float32(w, weight, remainder)
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
        exact = join_float32(t_weight, t_remainder)
        exact.lerp_(join_float32(s_weight, s_remainder), rate)
        if t_remainder is not None:
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
        rows.append([t, s, _remainder(teacher, name, t), _remainder(student, name, s)])
    return _slices(rows, getattr(student, "offload", False), written)


# ---- the plan of a run: bytes on the card, the host and the disk, before anything is loaded ----

PREFILL_ROWS, LOSS_POSITIONS = 8, 256  # of sampling.py and kl_estimators.py
GENERAL_PROMPTS = 32  # of samples/general/test.jsonl
LIBRARIES = 10**9  # allowance: the CUDA context on a card, Python's libraries on a host
STAGING = {device: 16 * size for device, size in SLICE.items()}  # two buffers, 8 bytes a number
# float32 tensors [positions, vocabulary] at once in the loss: 6 in results/bench-memory.json;
# bfloat16 adds both models' logits and a gradient, of half the size
LOSS_TENSORS = {"float32": 6, "bfloat16": 8}


def count_parameters(model_config):
    """(all parameters, those of the largest tensor), without memory; tied ones count once."""
    from transformers import AutoModelForCausalLM  # here: copied alone, this file needs torch only

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    sizes = [parameter.numel() for parameter in model.parameters()]
    return sum(sizes), max(sizes)


def plan_run(model_config, config, device="cuda", counts=None):
    """{"training", "sampling", "host", "disk"}: {part: bytes}, and "parameters", "needs".

    training and sampling are the two phases of a step, on the card or, with device "cpu", in host
    memory. needs has the sums {"card", "host", "disk"}. Lengths are the longest that config allows.
    """
    c, size = model_config.get_text_config(), {"bfloat16": 2, "float32": 4}[config.dtype]
    P, largest = counts or count_parameters(model_config)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    M = getattr(c, "intermediate_size", None) or 4 * c.hidden_size
    K = (getattr(c, "num_key_value_heads", None) or c.num_attention_heads) * head_dim
    copied = config.teacher in ("ema", "base")  # a copy of the student, with its remainders
    weights = {"weights": size * P}
    if copied or config.teacher == "model":
        weights["teacher"] = size * P
    state = {"first moment": size * P, "second moment": 4 * P}  # the table in optim.py
    if size == 2:
        state["remainders"] = 2 * P * (1 + copied)
    if config.general_tokens:
        answers = GENERAL_PROMPTS * config.general_tokens + c.vocab_size
        weights["drift: head and states of the base"] = size * answers * c.hidden_size
    host = {"libraries": LIBRARIES}
    if config.offload_optimizer:
        host |= state
        resident = weights | {"slices of the state": STAGING[device]}
    else:
        resident = weights | state

    # micro-batches: at most so many rows and so many tokens, and at least one row
    prompt, new = config.max_prompt_tokens, config.max_new_tokens
    student, longest = prompt + new, prompt + config.answer_tokens
    teacher = max(student, config.max_teacher_prompt_tokens + new)
    sampled = config.batch_size * config.rollouts_per_prompt
    rows = min(config.micro_batch_size, sampled)
    student_tokens = min(max(config.micro_batch_tokens, student), rows * student)
    teacher_tokens = min(max(config.micro_batch_tokens, teacher), rows * teacher)
    positions = min(LOSS_POSITIONS, rows * new)
    layer = student_tokens * layer_bytes(c, c.num_attention_heads * head_dim, K, M, size)
    layers, states = c.num_hidden_layers, student_tokens * c.hidden_size * size
    inference, cache = 3 * M + 4 * c.hidden_size, 2 * layers * K  # numbers of a token
    training = resident | {
        "gradients": 4 * P,
        "activations": layers * (states if config.gradient_checkpointing else layer),
        "final states and their gradient": 3 * states,
    }
    moments_of_a_pass = {
        # one use of the head, and the sum over its uses, before .grad has them
        "loss, and gradients of the head": LOSS_TENSORS[config.dtype] * 4 * positions * c.vocab_size
        + (size + 8 if size == 2 else 8) * largest,
        "one layer and its gradients": 2 * layer,
        "teacher's pass": teacher_tokens * size * inference,
    }
    most = max(moments_of_a_pass, key=moments_of_a_pass.get)  # never two of them at once
    training[most] = moments_of_a_pass[most]
    if device != "cpu":  # a GPU with less memory decodes fewer rows together (sampling.py)
        sampled = min(sampled, PREFILL_ROWS)
    sampling = resident | {
        "keys and values": cache * size * sampled * longest,
        "prompts' pass": PREFILL_ROWS * prompt * (inference + cache) * size,
        "softmax and its float64 sums": 28 * sampled * c.vocab_size,
    }
    if device == "cpu":
        host |= max(training, sampling, key=lambda parts: sum(parts.values()))
        training, sampling = {}, {}
    else:
        training["CUDA context"] = sampling["CUDA context"] = LIBRARIES
        files = weights["weights"], *(() if config.offload_optimizer else (6 * P,))
        host["a file's tensors on their way to the disk"] = max(files)

    checkpoint = size * P * (1 + copied) + sum(state.values()) if config.keep_last else 0
    disk = {
        "checkpoints": config.keep_last * checkpoint,
        "best/": size * P,
        "the next checkpoint, or last/": max(checkpoint, size * P),
    }
    needs = {"card": max(sum(training.values()), sum(sampling.values()))}
    needs |= {"host": sum(host.values()), "disk": sum(disk.values())}
    parts = {"training": training, "sampling": sampling, "host": host, "disk": disk}
    return {"parameters": P, **parts, "needs": needs}


def layer_bytes(c, Q, K, M, size):
    """What one decoder layer keeps of a token for its backward pass; Q, K, M are its widths."""
    D = c.hidden_size
    # two norms: input in float32, normalised, output, one number; rotated queries and keys, values,
    # attention and one number a head; gate, its activation, up and their product
    numbers = 4 * D + 2 * Q + 2 * K + 4 * M
    return 4 * (2 * D + 2 + c.num_attention_heads) + size * numbers


def free_bytes(device, folder):
    meminfo = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    available = re.findall(r"MemAvailable: *(\d+) kB", meminfo)
    free = {"host": 1024 * int(available[0])} if available else {}
    free["disk"] = shutil.disk_usage(folder).free
    return free | ({"card": torch.cuda.mem_get_info()[0]} if device == "cuda" else {})


def check_plan(model_config, config, device, folder):
    """The plan in one line; ValueError, with what would fit, if it exceeds what is free."""
    free = free_bytes(device, folder)
    plan = plan_run(model_config, config, device)
    needs = {place: plan["needs"][place] / 1e9 for place in free}
    line = "; ".join(f"{place} {needs[place]:.1f} of {free[place] / 1e9:.1f} GB" for place in free)
    if not fits(plan, free) and not config.force:
        remedy = what_would_fit(model_config, config, device, free)
        raise ValueError(f"this run does not fit: {line}. It would with {remedy}; --force tries")
    return f"plan: {plan['parameters'] / 1e9:.2f} B parameters; {line}"


def fits(plan, free):
    """Whether a plan needs no more than free has; free may lack some of "card", "host", "disk"."""
    return all(plan["needs"][place] <= bytes_ for place, bytes_ in free.items())


def what_would_fit(model_config, config, device, free):
    """What would make a run fit: the cheapest flags, as few as possible, or a smaller model."""
    counts, tokens = count_parameters(model_config), config.micro_batch_tokens
    halves = [tokens >> i for i in range(1, tokens.bit_length())]
    choices = [
        [("--gradient-checkpointing", {"gradient_checkpointing": True})],
        [(f"--micro-batch-tokens {n}", {"micro_batch_tokens": n}) for n in halves],
        [("--offload-optimizer", {"offload_optimizer": True})],
    ]
    if "disk" in free:  # weights at the end, but no checkpoints
        choices.append([("--keep-last 0", {"keep_last": 0})])
    for count in range(1, len(choices) + 1):
        for some in combinations(choices, count):
            for changes in product(*some):
                values = {name: value for _, change in changes for name, value in change.items()}
                plan = plan_run(model_config, replace(config, **values), device, counts)
                if fits(plan, free):
                    return " ".join(flag for flag, _ in changes)
    share = min(bytes_ / plan["needs"][place] for place, bytes_ in free.items())
    return f"a model of about {share * counts[0] / 1e9:.1f} B parameters, with " + " ".join(
        flag for flag, _ in changes
    )
