"""AdamW, gradient clipping and the EMA teacher, written out and in place, on exact numbers. Only needs torch.

A bfloat16 model learns little by itself: an EMA step of rate 0.01 is smaller than half the distance to the next bfloat16
number and is rounded away, and so are most AdamW updates at a learning rate of 1e-5. So each bfloat16 weight gets a
remainder of 16 bits, and the two together are a float32 number. The model computes with the weight; what is written here
reads and writes the number. Bytes a parameter, student and teacher together:

                  weight  remainder  gradient  first moment  second moment  teacher  its remainder
    float32          4        -          4           4              4           4          -          20
    bfloat16         2        2          4           2              4           2          2          18

At beta1 = 0.9 the rounding of the first moment does not pile up; at beta2 = 0.999 that of the second would, for 0.999 v
rounds back to v. A float32 (or, for tests, float64) model has no remainders and takes the same path.
"""

import math

import torch

# numbers at a time: the temporaries of a 545M-parameter embedding would be 2 GB each, and on a CPU small ones stay in its cache,
# which makes a step six times faster
SLICE = {"cpu": 2**20, "cuda": 2**24}


# ---- exact numbers behind bfloat16 weights ----


def split_float32(exact, weight, remainder):
    """Write a float32 tensor into weight (bfloat16) and remainder (int16); nothing is lost.

        bits of exact = (bits of weight) 2^16 + remainder,   remainder in -2^15 ... 2^15 - 1

    The weight is the nearest bfloat16 number, a tie goes away from zero (to even would need a remainder of +2^15). From
    3.3961775e38 on, half a step above the largest bfloat16 number, it is infinite, and the two together still exact.
    """
    bits = exact.view(torch.int32)
    high = (bits + 0x8000) >> 16
    weight.view(torch.int16).copy_(high)
    remainder.copy_(bits - (high << 16))


def join_float32(weight, remainder):
    """The float32 numbers that `split_float32` has split; a weight without a remainder (None) is exact, and returned as it is."""
    if remainder is None:
        return weight
    return ((weight.view(torch.int16).int() << 16) + remainder).view(torch.float32)


def prepare_for_training(model):
    """Give each bfloat16 parameter a remainder of 0, in model.remainders {name: int16}, and a float32 gradient.

    Remainders that are there already stay. copy.deepcopy(model) takes them along, so copy a teacher afterwards. Raises
    ValueError for weights that are neither bfloat16, float32 nor float64.
    """
    model.remainders = getattr(model, "remainders", {})
    for (
        name,
        parameter,
    ) in model.named_parameters():  # a tied embedding is one parameter, under its first name
        if parameter.dtype == torch.bfloat16:
            model.remainders.setdefault(name, torch.zeros_like(parameter, dtype=torch.int16))
            # autograd turns each bfloat16 gradient into float32 before it adds it to others: of other micro-batches, and of
            # other uses of a weight in one pass. A torch without grad_dtype ignores this line and fails in the first step
            parameter.grad_dtype = torch.float32
        elif parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"parameter {name} is {parameter.dtype}; load the model in float32 or bfloat16"
            )


def _remainder(model, name, parameter):
    remainder = getattr(model, "remainders", {}).get(name)
    if remainder is None and parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"parameter {name} is {parameter.dtype} without a remainder; its updates would be rounded away. "
            "Copy the teacher from the student after AdamW(student), or load the model in float32"
        )
    return remainder


def _slices(*tensors):
    """Tensors of one shape (or None) as flat views of at most SLICE numbers."""
    flat = [None if tensor is None else tensor.view(-1) for tensor in tensors]
    size = SLICE.get(flat[0].device.type, 2**24)
    for start in range(0, len(flat[0]), size):
        yield [None if tensor is None else tensor[start : start + size] for tensor in flat]


# ---- what a step does ----


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), the same arithmetic as torch.optim.AdamW.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        w = (1 - lr decay) w - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)

    The learning rate is an argument of each step: the schedule belongs to the caller and there is none to save.
    m is kept in the parameters' dtype unless first_moment_dtype names another, v in float32 at least. A bfloat16 m is
    rounded after the update has used it. The model is prepared for training (`prepare_for_training`).
    """

    def __init__(
        self, model, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, first_moment_dtype=None
    ):
        prepare_for_training(model)
        self.parameters, self.remainders = dict(model.named_parameters()), model.remainders
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.updates = 0
        self.first_moment = {
            name: torch.zeros_like(parameter, dtype=first_moment_dtype)
            for name, parameter in self.parameters.items()
        }
        self.second_moment = {
            name: torch.zeros_like(
                parameter, dtype=torch.promote_types(parameter.dtype, torch.float32)
            )
            for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def step(self, learning_rate):
        """Update every parameter from its .grad, then free the gradients."""
        self.updates += 1
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            for tensors in _slices(
                parameter,
                self.remainders.get(name),
                parameter.grad,
                self.first_moment[name],
                self.second_moment[name],
            ):
                self._update(*tensors, learning_rate)
            parameter.grad = None

    def _update(self, weight, remainder, gradient, first_moment, v, learning_rate):
        beta1, beta2 = self.betas
        first_correction, second_correction = 1 - beta1**self.updates, 1 - beta2**self.updates
        w, m = (
            join_float32(weight, remainder),
            first_moment.to(v.dtype),
        )  # in float32 these are the tensors themselves
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = v.sqrt().div_(math.sqrt(second_correction)).add_(self.eps)
        w.mul_(1 - learning_rate * self.weight_decay)
        w.addcdiv_(m, denominator, value=-learning_rate / first_correction)
        if first_moment is not m:
            first_moment.copy_(m)
        if remainder is not None:
            split_float32(w, weight, remainder)

    def state_tensors(self):
        """Both moments under flat names; `updates` is the one number beside them."""
        return {f"first_moment.{name}": tensor for name, tensor in self.first_moment.items()} | {
            f"second_moment.{name}": tensor for name, tensor in self.second_moment.items()
        }

    @torch.no_grad()
    def load_state(self, tensors, updates):
        own = self.state_tensors()
        odd = sorted(
            name
            for name in own.keys() | tensors.keys()
            if name not in own or name not in tensors or own[name].dtype != tensors[name].dtype
        )
        if odd:
            raise ValueError(
                f"the optimiser state does not belong to this model; {len(odd)} names or dtypes differ, such as {odd[0]}"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.updates = updates


@torch.no_grad()
def clip_gradients(model, max_norm):
    """Scale all gradients so that their joint 2-norm is at most max_norm -> the norm before, a float."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


@torch.no_grad()
def update_ema(teacher, student, rate):
    """teacher += rate (student - teacher), for every parameter.  Algorithm 1, l. 19, with rate = alpha."""
    for tensors in _pairs(teacher, student):
        for teacher_weight, teacher_remainder, student_weight, student_remainder in _slices(
            *tensors
        ):
            exact = join_float32(teacher_weight, teacher_remainder).lerp_(
                join_float32(student_weight, student_remainder), rate
            )
            if teacher_remainder is not None:
                split_float32(exact, teacher_weight, teacher_remainder)


@torch.no_grad()
def relative_distance(teacher, student):
    """||teacher - student|| / ||student|| over all parameters together: 0 for a copy."""
    distances, norms = [], []
    for tensors in _pairs(teacher, student):
        for teacher_weight, teacher_remainder, student_weight, student_remainder in _slices(
            *tensors
        ):
            exact = join_float32(student_weight, student_remainder)
            distances.append((join_float32(teacher_weight, teacher_remainder) - exact).norm())
            norms.append(exact.norm())
    return (torch.stack(distances).norm() / torch.stack(norms).norm()).item()


def _pairs(teacher, student):
    """(teacher's weight, its remainder, student's weight, its remainder) of every parameter."""
    for (name, teacher_parameter), student_parameter in zip(
        teacher.named_parameters(), student.parameters(), strict=True
    ):
        yield (
            teacher_parameter,
            _remainder(teacher, name, teacher_parameter),
            student_parameter,
            _remainder(student, name, student_parameter),
        )
