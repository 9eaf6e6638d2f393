"""AdamW, gradient clipping and the EMA teacher, written out and in place. Only needs torch.

Weights must be float32 (or float64, for tests). In bfloat16 an EMA update of rate 0.01 is smaller than half the distance
to the next number and is rounded away, and so are most AdamW updates at a learning rate of 1e-5: refused, not approximated.
"""

import math

import torch


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), the same arithmetic as torch.optim.AdamW.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        w = (1 - lr decay) w - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)

    The learning rate is an argument of each step: the schedule belongs to the caller and there is none to save.
    """

    def __init__(self, model, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.parameters = dict(model.named_parameters())     # a tied embedding is one parameter, under its first name
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.updates = 0
        for name, parameter in self.parameters.items():
            _require_exact(name, parameter)
        self.first_moment = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.second_moment = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def step(self, learning_rate):
        """Update every parameter from its .grad, then free the gradients."""
        self.updates += 1
        beta1, beta2 = self.betas
        first_correction, second_correction = 1 - beta1 ** self.updates, 1 - beta2 ** self.updates
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            gradient, m, v = parameter.grad, self.first_moment[name], self.second_moment[name]
            m.lerp_(gradient, 1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = v.sqrt().div_(math.sqrt(second_correction)).add_(self.eps)
            parameter.mul_(1 - learning_rate * self.weight_decay)
            parameter.addcdiv_(m, denominator, value=-learning_rate / first_correction)
            parameter.grad = None

    def state_tensors(self):
        """Both moments under flat names; `updates` is the one number beside them."""
        return ({f"first_moment.{name}": tensor for name, tensor in self.first_moment.items()}
                | {f"second_moment.{name}": tensor for name, tensor in self.second_moment.items()})

    @torch.no_grad()
    def load_state(self, tensors, updates):
        own = self.state_tensors()
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())
            raise ValueError(f"the optimiser state does not belong to this model; {len(odd)} names differ, such as {odd[0]}")
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
    for (name, teacher_parameter), student_parameter in zip(teacher.named_parameters(), student.parameters(), strict=True):
        _require_exact(name, teacher_parameter)
        teacher_parameter.lerp_(student_parameter, rate)


@torch.no_grad()
def relative_distance(teacher, student):
    """||teacher - student|| / ||student|| over all parameters together: 0 for a copy."""
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    distance = torch.stack([(teacher_w - student_w).norm() for teacher_w, student_w in pairs]).norm()
    return (distance / torch.stack([student_w.norm() for _, student_w in pairs]).norm()).item()


def _require_exact(name, parameter):
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"parameter {name} is {parameter.dtype}; its updates would be rounded away. Load the model in float32")
