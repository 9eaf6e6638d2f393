"""Save and resume: a folder is written under a temporary name, then renamed: whole or absent.

A checkpoint holds student, teacher, optimiser, remainders and state, so that a run that was killed
at any moment continues to the same bits (same machine, build and number of threads).
"""

import errno
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lora import adapted_layers
from support.adapters import load_adapter, save_adapter
from support.models import is_out_of_memory, read_weights, reason


def save_model(folder, model, tokenizer):
    """A Hugging Face folder (safetensors, tokenizer), or one of peft if the model has adapters.

    Adapters are not merged: bfloat16 weights would round most of a short run's update away, and
    float32 ones would take twice the base's bytes.
    """
    with _whole_or_absent(folder, saved_tensors(model)) as scratch:
        write_model(scratch, model)
        tokenizer.save_pretrained(scratch)


def save_best(run_folder, model, tokenizer, best):
    """run_folder/best: the model as save_model writes it, and best, {"step", "rank"}."""
    with _whole_or_absent(Path(run_folder) / "best", saved_tensors(model)) as scratch:
        write_model(scratch, model)
        tokenizer.save_pretrained(scratch)
        (scratch / "best.json").write_text(json.dumps(best))


def read_best(run_folder):
    """{"step", "rank"} of the weights in best/, or None: it may be newer than every checkpoint."""
    best, old = Path(run_folder) / "best", Path(run_folder) / "best.old"
    if old.exists() and not best.exists():  # killed between the two renames of _whole_or_absent
        os.rename(old, best)
    file = best / "best.json"
    return json.loads(file.read_text()) if file.exists() else None


def saved_tensors(model):
    """What write_model writes: the adapters of a model that has some, else all parameters."""
    layers = adapted_layers(model).values()
    if layers:
        return [factor for layer in layers for factor in (layer.lora_A, layer.lora_B)]
    return list(model.parameters())


def write_model(folder, model):
    if not adapted_layers(model):
        model.save_pretrained(folder)
        return
    base = model.config._name_or_path
    save_adapter(folder, model, Path(base).resolve() if Path(base).exists() else base)


def save_checkpoint(run_folder, step, student, tokenizer, teacher, optimizer, state, keep_last):
    """Write run_folder/checkpoint-STEP, then delete all but the keep_last newest -> its path.

    It holds student, teacher (unless it is the student), optimiser, the remainders of a bfloat16
    run (optim.py) and state.json; state is any dict that JSON can hold.
    """
    folder = Path(run_folder) / f"checkpoint-{step:06d}"
    (models, remainders), moments = _parts(student, teacher), optimizer.state_tensors()
    weights = [weight for model in models.values() for weight in saved_tensors(model)]
    with _whole_or_absent(folder, [*weights, *remainders.values(), *moments.values()]) as scratch:
        for role, model in models.items():
            write_model(scratch / role, model)
        tokenizer.save_pretrained(scratch / "student")
        if remainders:
            save_file(remainders, scratch / "remainders.safetensors")
        save_file(moments, scratch / "optimizer.safetensors")
        state = {"step": step, "updates": optimizer.updates, **state}
        (scratch / "state.json").write_text(json.dumps(state, indent=1))
    for old in list_checkpoints(run_folder)[:-keep_last]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run_folder):
    """The whole checkpoints of a run, oldest first; unfinished ones have another name."""
    # a user's copy, such as checkpoint-000050-before, is neither resumed from nor deleted
    folders = Path(run_folder).glob("checkpoint-*")
    return sorted(folder for folder in folders if re.fullmatch(r"checkpoint-\d+", folder.name))


def read_state(checkpoint):
    """The state.json of a checkpoint, before anything large is loaded."""
    file = Path(checkpoint) / "state.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        why = f"{file} cannot be read ({error}); it is damaged, or not written by sdft.py"
        raise ValueError(why) from None


def load_checkpoint(checkpoint, student, teacher, optimizer):
    """Copy a checkpoint into student, teacher and optimizer in place, bit for bit -> its state."""
    state = read_state(checkpoint)
    models, remainders = _parts(student, teacher)
    for role, model in models.items():
        load_weights(model, Path(checkpoint) / role)
    if remainders:
        saved = _read(load_file, Path(checkpoint) / "remainders.safetensors")
        for name, remainder in remainders.items():
            remainder.copy_(saved[name])
    moments = _read(load_file, Path(checkpoint) / "optimizer.safetensors")
    optimizer.load_state(moments, state["updates"])
    return state


@torch.no_grad()
def load_weights(model, folder):
    """Copy the weights, or the adapter, of a saved folder into a model; remainders become 0."""
    if adapted_layers(model):
        _read(load_adapter, folder, model=model)
        return
    saved = dict(_read(read_weights, folder, dtype=model.dtype).named_parameters())
    for name, parameter in model.named_parameters():
        if name not in saved or saved[name].shape != parameter.shape:
            what = f"{name} of shape {tuple(parameter.shape)}"
            raise ValueError(f"{folder} has no {what}; it belongs to another model")
        parameter.copy_(saved[name])
    for remainder in getattr(model, "remainders", {}).values():
        remainder.zero_()


def _parts(student, teacher):
    """The models of a checkpoint by role, and their int16 remainders by name (float32: none)."""
    models = {"student": student}
    if teacher not in (None, student) and not is_frozen_base(teacher, student):
        models["teacher"] = teacher
    owned = {role: getattr(model, "remainders", {}) for role, model in models.items()}
    return models, {f"{role}.{name}": x for role, own in owned.items() for name, x in own.items()}


def is_frozen_base(teacher, student):
    """Whether a teacher without adapters stands beside a student with them: it never changes."""
    return bool(adapted_layers(student)) and not adapted_layers(teacher)


def _read(reader, path, **options):
    try:
        return reader(path, **options)
    except Exception as error:
        # transformers' own OSErrors, such as that of a missing file, have no number
        passing = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
        if passing or is_out_of_memory(error):
            raise
        why = f"{path} cannot be read ({reason(error)}); the checkpoint is damaged"
        remedy = "Delete its folder: --resume then takes the one before, if --keep-last left one"
        raise ValueError(f"{why}. {remedy}") from None


def _umask():
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


@contextmanager
def _whole_or_absent(folder, tensors):
    """Yield a scratch folder for the tensors; it becomes `folder`, or is deleted on an error."""
    folder, scratch, old = Path(folder), Path(f"{folder}.tmp"), Path(f"{folder}.old")
    for left in (scratch, old):
        shutil.rmtree(left, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        needed, free = sum(tensor.nbytes for tensor in tensors), shutil.disk_usage(scratch).free
        if needed > free:
            raise OSError(f"it takes {needed / 1e6:,.1f} MB of disk, {free / 1e6:,.1f} are free")
        yield scratch
        for file in filter(Path.is_file, scratch.rglob("*")):
            # safetensors makes its files readable by their owner alone
            file.chmod(0o666 & ~_umask())
            with open(file, "rb") as opened:  # on the disk before the rename: power may fail
                os.fsync(opened.fileno())
        if folder.exists():  # "best" is replaced; the old one goes last
            os.rename(folder, old)
        os.rename(scratch, folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        # tokenizers raises a bare Exception on a full disk
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
            raise
        what = f"{folder} could not be written ({error}). What was saved before is whole"
        raise OSError(f"{what}; make room and go on with --resume") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
