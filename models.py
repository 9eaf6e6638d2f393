"""Load a model (hub id, folder or smollm2), save it, checkpoint and resume, whole or not at all.

Needs torch, transformers and safetensors; gguf and accelerate for the built-in model alone.
"""

import ctypes
import json
import os
import platform
import re
import runpy
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import find_adapter_config_file, logging

from data import check_template
from sampling import completion_hidden, sample_completions

logging.disable_progress_bar()  # its bars would break up ours
logging.set_verbosity_error()  # what it would warn of stops the load here


def load_model(name, device="cpu", dtype="float32"):
    """(model, tokenizer) from a hub id, a folder, or "smollm2"; in eval mode, so without dropout.

    Reads safetensors only and runs no code that comes with a model. Raises ValueError if the model
    cannot be loaded, or could not be sampled, scored, saved and resumed exactly.
    """
    folder = builtin_smollm2() if name == "smollm2" else name
    try:
        check_config(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.chat_template is not None:
            check_template(tokenizer)
        model = read_weights(folder, dtype=getattr(torch, dtype)).to(device).eval()
        for module in model.modules():
            if type(module) is torch.nn.Linear:  # weights, names and hooks stay as they are
                module.__class__ = SmallProductLinear
        _check_head(model)
        check_saved_names(model)
        check_sampling(model)
    except Exception as error:  # a library may raise anything on a damaged or unknown model
        where = "a folder with config.json and safetensors, a hub id within reach, or smollm2"
        what = f'model "{name}" cannot be loaded: {_reason(error)}. Choose {where}'
        raise ValueError(what) from None
    return model, tokenizer


def builtin_smollm2():
    """The folder of the built-in model; the first use fetches and converts it."""
    script = Path(__file__).resolve().parent / "samples" / "make" / "smollm2.py"
    return runpy.run_path(str(script))["builtin_smollm2"]()


def best_device():
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # fragments less
    torch.backends.cuda.enable_cudnn_sdp(False)  # it would plan anew at every length of decoding
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_config(name):
    """The configuration of a model, without its weights; ValueError if it cannot be trained."""
    try:
        return check_config(builtin_smollm2() if name == "smollm2" else name)
    except Exception as error:
        raise ValueError(f'model "{name}" cannot be loaded: {_reason(error)}') from None


def check_config(folder):
    """ValueError, before any weights are read, for what is no full model with plain attention."""
    if find_adapter_config_file(folder):
        merge = "PeftModel.from_pretrained(base, adapter).merge_and_unload()"
        raise ValueError(f"it holds an adapter; merge it with peft, {merge}, and save the result")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text_config, family = config.get_text_config(decoder=True), config.model_type
    if getattr(config, "quantization_config", None):
        raise ValueError("it is quantised; training needs the full weights that it was made from")
    rope = getattr(text_config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    for kind in kinds & {"dynamic", "longrope"}:
        why = "depend on the longest sequence, so cached keys would not fit later tokens"
        raise ValueError(f"the rotary frequencies of {family} ({kind}) {why}")
    layers = set(get_layer_types_and_kwargs(text_config)[0])
    if unknown := layers - {"full_attention", "sliding_attention"}:
        names = ", ".join(unknown).replace("dummy", "layers without keys and values of their own")
        raise ValueError(f"{family} has layers that the sampler has no cache for: {names}")
    return config


def read_weights(folder, reader=AutoModelForCausalLM, **options):
    """The model of a folder or hub id; ValueError unless each weight is there, in its shape."""
    options |= {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    # "ignore" lists mismatched sizes with the rest instead of raising
    model, keys = reader.from_pretrained(folder, ignore_mismatched_sizes=True, **options)
    # old GPT files carry their causal mask as if it were a weight
    mask = re.compile(r"\.attn(\.attention)?\.(masked_)?bias$")
    found = {
        "unexpected": [name for name in keys["unexpected_keys"] if not mask.search(name)],
        "of another shape": [name for name, *_ in keys["mismatched_keys"]],
        "missing": keys["missing_keys"],
    }
    wrong = [f"{kind}: {', '.join(sorted(names)[:3])}" for kind, names in found.items() if names]
    if any("_orig_mod." in name for name in found["unexpected"]):
        wrong.append("torch.compile added _orig_mod., so save model._orig_mod")
    if wrong:
        raise ValueError(f"weights do not fit config.json; {'; '.join(wrong)}")
    return model


def check_saved_names(model):
    """ValueError unless the names that the model is saved under are read back as its own.

    Some families are saved under the names of their first release, and renamed when loaded. On the
    meta device names and shapes are checked, and no weight is copied.
    """
    own = {name: weight.to("meta") for name, weight in model.state_dict().items()}
    saved = revert_weight_conversion(model, dict(own))  # as save_pretrained does
    if saved.keys() != own.keys():
        read_weights(None, type(model), config=model.config, state_dict=saved, device_map="meta")


@torch.no_grad()
def check_sampling(model):
    """ValueError unless sampling with a cache, and scoring, agree with full forward passes.

    Two prompts share their start and differ in length: one is padded beside the other.
    """
    family, V = model.config.model_type, model.get_input_embeddings().weight.shape[0]
    if model.num_parameters() > 10**9:
        print(f"checking that the sampler fits {family} …", flush=True)
    prompts = [[i % V for i in [*range(10, 19), *end]] for end in ([], range(40, 43))]
    options = {"max_new_tokens": 2, "temperature": 0, "eos_token_ids": [-1], "pad_token_id": 0}
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.5  # nats; bfloat16 has eight bits
    try:
        rollout, errors = sample_completions(model, prompts, **options), []
        ids_BT, mask_BT = rollout.completion_ids_BT, rollout.completion_mask_BT
        logits_BTV = output_head(model)(completion_hidden(model, prompts, ids_BT, mask_BT))
        for prompt, ids_T, logits_TV in zip(prompts, ids_BT, logits_BTV, strict=True):
            whole_1L = torch.tensor([prompt + ids_T.tolist()], device=model.device)
            full_TV = model(input_ids=whole_1L, use_cache=False).logits[0, len(prompt) - 1 : -1]
            full_TV, scored_TV = full_TV.float().log_softmax(-1), logits_TV.float().log_softmax(-1)
            errors.append((full_TV.exp() * (scored_TV - full_TV).abs()).sum(-1))
            errors.append(full_TV.amax(-1) - full_TV.gather(-1, ids_T[:, None])[:, 0])  # greedy?
        error = torch.stack(errors).max().item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"cached sampling or scoring of {family} does not run ({type(error).__name__})"
        raise ValueError(reason) from None
    if not error < tolerance:  # nor NaN
        reason = f"differ from a full pass by {error:.1e} nats"
        raise ValueError(f"cached sampling and scoring of {family} {reason}")


def _reason(error):
    """The first line of an exception, with its type where the text alone says too little."""
    line = (str(error).strip() or "no text").splitlines()[0].rstrip(".")
    if "trust_remote_code" in str(error):
        return "it needs program code of its own, which is never run"
    return line if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {line}"


class OutputHead(torch.nn.Module):
    """logits = scale * embedding(hidden), then cap * tanh(logits / cap) if there is a cap."""

    def __init__(self, embedding, scale, cap):
        super().__init__()
        self.embedding, self.scale, self.cap = embedding, scale, cap

    def forward(self, hidden):
        logits = self.embedding(hidden) * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def output_head(model):
    """The module from final hidden states to logits; copy.deepcopy freezes it as it is now.

    The output embedding, with the scale of Granite and Cohere or the cap of Gemma after it.
    """
    embedding, config = model.get_output_embeddings(), model.config.get_text_config(decoder=True)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return embedding if scale == 1 and not cap else OutputHead(embedding, scale, cap)


@torch.no_grad()
def _check_head(model):
    """ValueError if the model does more to its logits than output_head."""
    ids = torch.arange(1, 5, device=model.device)[None]
    logits, hidden = model(input_ids=ids).logits, model.base_model(input_ids=ids).last_hidden_state
    if not torch.allclose(output_head(model)(hidden), logits, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} changes its logits in a way output_head lacks")


def stop_tokens(model, tokenizer):
    """{"eos_token_ids": all of them, "pad_token_id": one}, arguments of sample_completions.

    The EOS ids are the one thing taken from a checkpoint's generation_config.
    """
    eos_token_ids = set()
    for source in (model.generation_config, model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        eos_token_ids |= set(ids) if isinstance(ids, (list, tuple)) else {ids} - {None}
    if not eos_token_ids:
        raise ValueError("neither model nor tokenizer names an EOS token; no completion would end")
    pad, first = tokenizer.pad_token_id, min(eos_token_ids)
    return {"eos_token_ids": sorted(eos_token_ids), "pad_token_id": first if pad is None else pad}


# ---- what a CPU or a GPU needs to be told ----


def keep_freed_memory():
    """Let glibc keep freed blocks: a pass on a CPU would lose time to page faults."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # another C library
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # mmap max, trim, top pad
        mallopt(option, value)


class SmallProductLinear(torch.nn.Linear):
    """torch.nn.Linear that on a CPU computes W x^T instead of x W^T if x has few rows.

    The same numbers up to rounding, and faster in sampling, where a product of few rows only waits
    for W to come from memory.
    """

    def forward(self, x):
        rows = x.numel() // x.shape[-1]
        if x.device.type != "cpu" or rows >= 512:
            return super().forward(x)
        product = self.weight @ x.reshape(rows, -1).T
        if self.bias is not None:
            product = product + self.bias[:, None]
        return product.T.contiguous().view(*x.shape[:-1], -1)


def checkpoint_layers(model):
    """Keep one state a layer and recompute the rest in backward: a third more work, less memory.

    Hugging Face's own switch would disable the cache in sampling. Copy a teacher before: a later
    copy would run the student's layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        family = model.config.model_type
        raise ValueError(f"--gradient-checkpointing finds no layers in {family}; leave it out")
    for layer in layers:

        def forward(*args, plain=layer.forward, **kwargs):
            if not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        layer.forward = forward


def describe_machine():
    """What a result was measured on: processor or GPU, cores, versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.processor() or "a CPU"])[0]
    threads = f"{torch.get_num_threads()} threads of {name}"
    processor = torch.cuda.get_device_name(0) if torch.cuda.is_available() else threads
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"processor": processor, "python": platform.python_version()} | versions


# ---- saving: under a temporary name, then renamed, so that a folder is whole or absent ----


def save_model(folder, model, tokenizer):
    """A Hugging Face folder (safetensors, tokenizer) that from_pretrained loads."""
    with _whole_or_absent(folder, model.parameters()) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def save_checkpoint(run_folder, step, student, tokenizer, teacher, optimizer, state, keep_last):
    """Write run_folder/checkpoint-STEP, then delete all but the keep_last newest -> its path.

    It holds student, teacher (unless it is the student), optimiser, the remainders of a bfloat16
    run (optim.py) and state.json; state is any dict that JSON can hold.
    """
    folder = Path(run_folder) / f"checkpoint-{step:06d}"
    (models, remainders), moments = _parts(student, teacher), optimizer.state_tensors()
    weights = [weight for model in models.values() for weight in model.parameters()]
    with _whole_or_absent(folder, [*weights, *remainders.values(), *moments.values()]) as scratch:
        for role, model in models.items():
            model.save_pretrained(scratch / role)
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
    return sorted(Path(run_folder).glob("checkpoint-[0-9]*[0-9]"))


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
    """Copy the weights of a saved folder into a model of the same shape; remainders become 0."""
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
    models = {"student": student} | ({} if teacher in (None, student) else {"teacher": teacher})
    owned = {role: getattr(model, "remainders", {}) for role, model in models.items()}
    return models, {f"{role}.{name}": x for role, own in owned.items() for name, x in own.items()}


def _read(reader, path, **options):
    try:
        return reader(path, **options)
    except Exception as error:
        why = f"{path} cannot be read ({_reason(error)}); the checkpoint is damaged"
        remedy = "Delete its folder: --resume then takes the one before, if --keep-last left one"
        raise ValueError(f"{why}. {remedy}") from None


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
