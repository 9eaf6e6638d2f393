"""Load a model (hub id, folder or smollm2), check that it can be trained, and describe it.

Needs torch and transformers; gguf and accelerate for the built-in model alone.
"""

import ctypes
import os
import platform
import re
import sys
from functools import partial
from pathlib import Path
from types import MethodType

import torch
import transformers
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import find_adapter_config_file, logging

from sampling import completion_hidden, named_eos_tokens, output_head, sample_completions
from support.adapters import base_of, find_adapter, load_adapter
from support.chat import reads_parts, turn_end
from support.smollm2 import builtin_smollm2

# torch reads it with its first call to CUDA; less memory is lost to fragments
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
logging.disable_progress_bar()  # its bars would break up ours
logging.set_verbosity_error()  # what it would warn of stops the load here


def load_model(name, device="cpu", dtype="float32", tokenizer=None):
    """(model, tokenizer) from a hub id, a folder, or "smollm2"; in eval mode, so without dropout.

    A LoRA adapter of peft or of a run is added to its base, which it names: lora.py, unmerged.
    tokenizer is one that load_tokenizer has returned. Reads safetensors only and runs no code that
    comes with a model. Raises ValueError if the model cannot be loaded, or could not be sampled,
    scored, saved and resumed exactly.
    """
    read_config(name)
    tokenizer = tokenizer or load_tokenizer(name)
    try:
        base, adapter, _ = places_of(name)
        model = read_weights(base, dtype=getattr(torch, dtype)).to(device).eval()
        check_tied_head(model)
        check_head(model)
        check_saved_names(model)
        check_sampling(model)
        if tokenizer.chat_template is not None:
            add_turn_end(model, tokenizer)
        if adapter:
            load_adapter(adapter, model)
    except Exception as error:  # a library may raise anything on a damaged or unknown model
        if is_out_of_memory(error):
            raise
        raise ValueError(not_loaded(name, error)) from None
    return model, tokenizer


def load_tokenizer(name):
    """The tokenizer of a model; ValueError if it or its chat template cannot be used."""
    try:
        _, _, folder = places_of(name)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if isinstance(tokenizer.chat_template, dict):
            take_default_template(tokenizer)
        if tokenizer.chat_template is not None:
            reads_parts(tokenizer)  # raises for a template that drops the question
    except Exception as error:
        raise ValueError(not_loaded(name, error)) from None
    return tokenizer


def take_default_template(tokenizer):
    """Of several named chat templates keep "default"; ValueError if there is none."""
    names = ", ".join(tokenizer.chat_template)
    if "default" not in tokenizer.chat_template:
        raise ValueError(f"its chat templates are {names}, none of them default; keep one of them")
    print(f"chat template: default is used, of {names}")
    tokenizer.chat_template = tokenizer.chat_template["default"]


def places_of(name):
    """(base, adapter or None, tokenizer): the folders or hub ids that hold the parts of a model."""
    folder = builtin_smollm2() if name == "smollm2" else name
    adapter = find_adapter(folder)
    if adapter is None:
        return folder, None, folder
    base = base_of(adapter)
    has_tokenizer = (adapter / "tokenizer_config.json").exists()
    return base, adapter, adapter if has_tokenizer else base


def not_loaded(name, error):
    where = "a folder with config.json and safetensors, a hub id within reach, or smollm2"
    return f'model "{name}" cannot be loaded: {reason(error)}. Choose {where}'


def read_config(name):
    """The configuration of a model, without its weights; ValueError if it cannot be trained."""
    try:
        base, adapter, _ = places_of(name)
        return read_base(base, adapter) if adapter else read_architecture(base)
    except Exception as error:
        raise ValueError(not_loaded(name, error)) from None


def read_base(folder, adapter):
    """read_architecture of a base, where an error also says which file names it."""
    try:
        return read_architecture(folder)
    except Exception as error:
        where = f"base_model_name_or_path in {adapter}/adapter_config.json names it"
        raise ValueError(f"the base at {folder}: {reason(error)}; {where}") from None


def read_architecture(folder):
    """config.json of a folder; ValueError for what is no full model with plain attention."""
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
    layer_types = get_layer_types_and_kwargs(text_config)[0]
    layers = set(layer_types)
    if len(layer_types) < getattr(text_config, "num_hidden_layers", 0):
        layers.add("dummy")  # transformers 5.17 leaves these layers out of the list
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
        rollout, gaps = sample_completions(model, prompts, **options), []
        ids_BT, mask_BT = rollout.completion_ids_BT, rollout.completion_mask_BT
        logits_BTV = output_head(model)(completion_hidden(model, prompts, ids_BT, mask_BT))
        for prompt, ids_T, logits_TV in zip(prompts, ids_BT, logits_BTV, strict=True):
            whole_1L = torch.tensor([prompt + ids_T.tolist()], device=model.device)
            full_TV = model(input_ids=whole_1L, use_cache=False).logits[0, len(prompt) - 1 : -1]
            full_TV, scored_TV = full_TV.float().log_softmax(-1), logits_TV.float().log_softmax(-1)
            gaps.append((full_TV.exp() * (scored_TV - full_TV).abs()).sum(-1))
            gaps.append(full_TV.amax(-1) - full_TV.gather(-1, ids_T[:, None])[:, 0])  # greedy?
        gap = torch.stack(gaps).max().item()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        what = f"cached sampling or scoring of {family} does not run"
        raise ValueError(f"{what} ({type(error).__name__})") from None
    if not gap < tolerance:  # nor NaN
        what = f"cached sampling and scoring of {family} differ from a full pass"
        raise ValueError(f"{what} by {gap:.1e} nats")


def check_tied_head(model):
    """ValueError if config.json ties the embeddings and the file has another output matrix."""
    config = model.config.get_text_config(decoder=True)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(config, "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embeddings.weight:
        raise ValueError(
            "config.json ties the embeddings (tie_word_embeddings), but the file has another "
            "output matrix, lm_head.weight; set tie_word_embeddings to false, or delete the matrix"
        )


def add_turn_end(model, tokenizer):
    """Let the token that the template writes after an assistant's content end completions.

    Without it a model that names another EOS would go on with the user's next turn. It stands in
    generation_config then, and so in the weights that a run saves.
    """
    end = turn_end(tokenizer)
    known = named_eos_tokens(model, tokenizer)
    if end is not None and end not in known:
        token = tokenizer.convert_ids_to_tokens(end)
        print(f"{token} ends completions, too: the chat template writes it after an answer")
        model.generation_config.eos_token_id = sorted({*known, end})


def model_positions(config):
    """The most tokens of prompt and answer that a model has positions for, None: no limit known."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


@torch.no_grad()
def check_head(model):
    """ValueError if the model does more to its logits than output_head."""
    ids = torch.arange(1, 5, device=model.device)[None]
    logits, hidden = model(input_ids=ids).logits, model.base_model(input_ids=ids).last_hidden_state
    if not torch.allclose(output_head(model)(hidden), logits, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} changes its logits in a way output_head lacks")


def reason(error):
    """The first line of an exception, with its type where the text alone says too little."""
    line = (str(error).strip() or "no text").splitlines()[0].rstrip(".")
    if "trust_remote_code" in str(error):
        return "it needs program code of its own, which is never run"
    return line if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {line}"


def is_out_of_memory(error):
    """Whether a card's memory or, as MemoryError or torch's RuntimeError, the host's ran out."""
    kinds = torch.OutOfMemoryError, MemoryError
    said = "can't allocate memory", "out of memory"  # the host's; of CUDA's own calls
    return isinstance(error, kinds) or any(words in str(error).lower() for words in said)


# ---- the device ----


def best_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def configure_cuda():
    """Settings of the process; call it before anything is put on a GPU."""
    # cuDNN's attention plans anew at every length of decoding, and on Hopper its gradients are NaN
    # with a mask at some lengths (torch 2.11 and newer, github.com/pytorch/pytorch/issues/196678)
    torch.backends.cuda.enable_cudnn_sdp(False)


def give_back_freed_memory():
    """Return to the system what lies freed in glibc's heap; does nothing with another allocator.

    A forward pass frees tensors between those that it keeps, and sampling its packed weights; the
    larger tensors of a loss do not fit into such holes and would come on top. Takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def checkpoint_layers(model):
    """Keep one state a layer and recompute the rest in backward: a third more work, less memory.

    Hugging Face's own switch would disable the cache in sampling.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        family = model.config.model_type
        raise ValueError(f"--gradient-checkpointing finds no layers in {family}; leave it out")
    for layer in layers:
        # trap: a function would be shared by copies, and run the original's layer; a bound method
        # is bound anew by deepcopy
        layer.forward = MethodType(_checkpointed, layer)


def _checkpointed(layer, *args, **kwargs):
    plain = partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def describe_machine():
    """What a result was measured on: processor or GPU, cores, versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.processor() or "a CPU"])[0]
    threads = f"{torch.get_num_threads()} threads of {name}"
    processor = torch.cuda.get_device_name(0) if torch.cuda.is_available() else threads
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"processor": processor, "python": platform.python_version()} | versions
