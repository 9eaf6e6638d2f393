"""Low-rank adapters (LoRA, arXiv 2106.09685), for a student and a teacher that share a base.

    y = W x + (alpha / r) B A x        A [r, inputs] random, B [outputs, r] zero, both float32

W is frozen, so student and teacher keep one copy of it: 2 bytes a parameter in bfloat16, and some
megabytes for the adapters. A training run takes these calls:

    add_adapters(student, rank=16, alpha=32)      freezes the model, adds A and B
    teacher = share_base(student)                 l. 1: the same W, adapters of its own
    teacher = share_base(student, False)          or the base itself, as --teacher base
    merged, lost = merge(student)                 dense weights, to save or to serve

Only A and B require gradients: an optimiser, a clipping and an EMA that keep to such parameters
need not know of adapters. There is no dropout, so both models are functions of their input.

The average of products is not the product of averages. After steps n the EMA teacher should add
the average of B_n A_n to W. If A and B both move, averaging each of them gives that only roughly:
if both started at zero, the product after one step of rate 0.05 would be 0.25 % of the student's,
not 5 %. Here the teacher starts as a copy of the student, with its random A, so that only what A
learns causes an error (docs/adapters.md has figures). train_A=False keeps A as it was drawn
(LoRA-FA, arXiv 2308.03303): the average is then exact, and the layers need not keep their inputs.
Needs torch, and nothing of ours: copy it as it is. support/adapters.py has the files.
"""

import copy
import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.nn import Parameter

# ---- adding ----


def add_adapters(model, rank, alpha, targets=None, train_A=True, seed=0):
    """Freeze the model and add an adapter to its linear layers, in place.

    targets   ends of module names, such as ["q_proj", "v_proj"]; None: every linear layer but the
              output head
    train_A   False: only B learns, and the average of the teacher is exact
    seed      decides A, whatever torch's own generators hold
    Raises ValueError, with the names, if a target is not there or is no linear layer.
    """
    if adapted_layers(model):
        raise ValueError("the model has adapters already; merge them first")
    if rank < 1:
        raise ValueError(f"rank {rank} of the adapters must be at least 1")
    layers = choose_layers(model, targets)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        inputs, outputs = layer.weight.shape if is_conv1d(layer) else layer.weight.shape[::-1]
        A = torch.empty(rank, inputs)
        torch.nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)  # as peft draws it
        device = layer.weight.device
        layer.lora_alpha = alpha
        layer.lora_A = Parameter(A.to(device), requires_grad=train_A)
        layer.lora_B = Parameter(torch.zeros(outputs, rank, device=device))
        layer.lora_hook = layer.register_forward_hook(_add_low_rank)


def _add_low_rank(layer, inputs, output):
    """Forward hook: adds (alpha / r) B A x, computed in the dtype of x, to the layer's output."""
    [x] = inputs
    # not x.float(): backward would keep a float32 copy of x for each layer, and on a bfloat16 base
    # the gradients would hardly be more exact
    A, B = layer.lora_A.to(x.dtype), layer.lora_B.to(x.dtype)
    rows, low_rank = output.flatten(0, -2), F.linear(x, A).flatten(0, -2)
    # one pass over the output: to scale and to add are kernels of their own otherwise
    return torch.addmm(rows, low_rank, B.T, alpha=_scale(layer)).view_as(output)


def _scale(layer):
    return layer.lora_alpha / len(layer.lora_A)


def choose_layers(model, targets=None):
    """{name: linear layer} of the text model whose names end in one of the targets.

    A matrix that joins several projections, such as Phi-3's qkv_proj, gets one adapter. The experts
    of a mixture are no linear layers in transformers: without targets such a model is refused.
    """
    # without the output head, and without the part of a model that sees images
    inside = set(model.get_decoder().modules())
    named = {name: module for name, module in model.named_modules() if module in inside}
    linear = {n: m for n, m in named.items() if isinstance(m, torch.nn.Linear) or is_conv1d(m)}
    last_names = ", ".join(sorted({last_name(name) for name in linear}))
    if targets is None:
        for name, parameter in model.get_decoder().named_parameters():
            if parameter.ndim == 3:
                what = f"{name} holds a weight for each expert, and adapters fit linear layers only"
                raise ValueError(f"{what}; name the targets among {last_names}")
        return linear
    for target in targets:
        if not any(ends_in(name, [target]) for name in linear):
            found = [module for name, module in model.named_modules() if ends_in(name, [target])]
            why = f"is no linear layer but {type(found[0]).__name__}" if found else "is not there"
            if model.get_output_embeddings() in found:
                why = "is the output head, which takes no adapter"
            raise ValueError(f'adapter target "{target}" {why}; choose from {last_names}')
    return {name: layer for name, layer in linear.items() if ends_in(name, targets)}


def is_conv1d(module):
    return type(module).__name__ == "Conv1D"  # GPT-2's linear layer, whose weight is transposed


def ends_in(name, targets):
    return any(f".{name}".endswith(f".{target}") for target in targets)


def last_name(name):
    return name.rsplit(".", 1)[-1]


def adapted_layers(model):
    """{name: layer} of the layers that have an adapter."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def adapters_are_zero(model):
    """Whether all adapters add zero, as new ones do; a model may also come with trained ones."""
    return not any(layer.lora_B.any() for layer in adapted_layers(model).values())


# ---- sharing and merging ----


def share_base(model, adapters=True):
    """A copy that shares the model's frozen tensors and owns the others.

    With adapters it is an EMA teacher; without, the base model, which costs no memory. A model
    without frozen parameters is simply copied.
    """
    for name, module in model.named_modules():
        own = module.__dict__.get("forward")
        # trap: deepcopy keeps a function as it is, and the copy would run the original's layers
        if own is not None and getattr(own, "__self__", None) is not module:
            raise ValueError(f"{name}.forward was replaced; copy the model before that")
    # deepcopy takes a tensor that it finds here for its copy
    memo = {id(tensor): tensor for tensor in model.parameters() if not tensor.requires_grad}
    shared = copy.deepcopy(model, memo)
    if not adapters:
        for layer in adapted_layers(shared).values():
            layer.lora_hook.remove()
            del layer.lora_hook, layer.lora_alpha, layer.lora_A, layer.lora_B
    return shared


@torch.no_grad()
def merge(model):
    """(a frozen copy with weights W + (alpha / r) B A and without adapters, the share lost).

    The sum is rounded to the dtype of W. A bfloat16 weight keeps 8 significant bits, and an update
    of less than half its last one vanishes: lost = ||rounded - exact|| / ||update||, over all
    layers, is near 0 where the update survives and 1 where the merged model is the base.
    """
    merged = share_base(model, adapters=False)
    lost = total = 0.0
    for name, layer in adapted_layers(model).items():
        update = _update(layer)
        exact = layer.weight + update  # at least float32
        weight = exact.to(layer.weight.dtype)
        merged.get_submodule(name).weight = Parameter(weight, requires_grad=False)
        lost += (weight - exact).square().sum().item()
        total += update.square().sum().item()
    return merged, math.sqrt(lost / total) if total else 0.0


@contextmanager
def as_if_merged(model):
    """Inside, the model computes as the result of `merge` would, in the memory of one layer."""
    layers = adapted_layers(model).values()
    hooks = [layer.register_forward_hook(_merged_product) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _merged_product(layer, inputs, output):
    """Forward hook: the output of the layer's merged weight takes the place of its own."""
    weight = (layer.weight + _update(layer)).to(layer.weight.dtype)
    return F.linear(inputs[0], weight.T if is_conv1d(layer) else weight, layer.bias)


def _update(layer):
    """(alpha / r) B A in the shape of the layer's weight; float32."""
    update = _scale(layer) * (layer.lora_B @ layer.lora_A)
    return update.T if is_conv1d(layer) else update


@torch.no_grad()
def adapter_gap(teacher, student):
    """||teacher - student|| / ||student|| over all weights, W + (alpha / r) B A where there is one.

    The teacher shares the student's base, with adapters or without.
    """
    layers = adapted_layers(student)
    of_adapters = {id(p) for layer in layers.values() for p in (layer.lora_A, layer.lora_B)}
    squares = {id(p): _norm(p).square() for p in student.parameters()}
    distance = 0.0
    for name, layer in layers.items():
        update, of_teacher = _update(layer), teacher.get_submodule(name)
        squares[id(layer.weight)] = _norm(layer.weight + update).square()
        difference = update - _update(of_teacher) if hasattr(of_teacher, "lora_A") else update
        distance += _norm(difference).square()
    norm = sum(square for key, square in squares.items() if key not in of_adapters)
    return (distance / norm).sqrt().item()


def _norm(tensor):
    """The 2-norm, added up in float32; a float32 copy of an embedding would take gigabytes."""
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
