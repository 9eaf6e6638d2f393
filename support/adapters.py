"""The files of an adapter, in the format of the library peft: written, found and read."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file, find_adapter_config_file

from lora import adapted_layers, add_adapters, ends_in, is_conv1d, last_name


def find_adapter(name):
    """The local folder of an adapter, given as a folder or a hub id; None for another model."""
    file = find_adapter_config_file(str(name))
    if file is None:
        return None
    cached_file(str(name), "adapter_model.safetensors")  # a hub's is fetched into the same folder
    return Path(file).parent


def base_of(folder):
    """The name of the model that an adapter belongs to; ValueError if it is no LoRA adapter."""
    file = Path(folder) / "adapter_config.json"
    config = json.loads(file.read_text())
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file} has peft_type {config.get('peft_type')}; only LORA is supported")
    if not config.get("base_model_name_or_path"):
        raise ValueError(f"{file} names no base_model_name_or_path; write the base model there")
    return config["base_model_name_or_path"]


# what may stand in adapter_config.json without changing the function that A and B describe
PLAIN_FIELDS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"),
    *("base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}


def save_adapter(folder, model, base_name):
    """Write adapter_config.json and adapter_model.safetensors: A and B in float32.

    base_name   hub id or folder of the base model, for those who load the adapter
    """
    layers = adapted_layers(model)
    last_names = sorted({last_name(name) for name in layers})
    same_ends = {name for name, _ in model.named_modules() if ends_in(name, last_names)}
    layer = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_name),
        "r": len(layer.lora_A),
        "lora_alpha": layer.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(map(is_conv1d, layers.values())),
        # servers expect last names; whole names where those would name other layers too
        "target_modules": last_names if same_ends == layers.keys() else list(layers),
        "inference_mode": True,
    }
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach().contiguous()
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "adapter_config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def load_adapter(folder, model):
    """Copy a saved adapter into the model's adapters, or add them to a model that has none.

    Raises ValueError for an adapter that is more than A and B, or belongs to another model.
    """
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    for field, value in config.items():
        plain = field in PLAIN_FIELDS or not value or (field, value) == ("bias", "none")
        # pissa, olora and others also change W
        if not plain or (field == "init_lora_weights" and value not in (True, False, "gaussian")):
            raise ValueError(f"{folder}: {field} {value!r} is not supported; merge it with peft")
    rank, alpha, prefix, end = config["r"], config["lora_alpha"], "base_model.model.", ".weight"
    saved = {key.removeprefix(prefix).removesuffix(end): t for key, t in tensors.items()}
    names = list(dict.fromkeys(key.rsplit(".", 1)[0] for key in saved))
    if not adapted_layers(model):
        add_adapters(model, rank, alpha, names)
    layers = adapted_layers(model)
    own = {f"{name}.lora_{X}": getattr(m, f"lora_{X}") for name, m in layers.items() for X in "AB"}
    shapes, saved_shapes = ({k: t.shape for k, t in some.items()} for some in (own, saved))
    differ = sorted({name for name, _ in shapes.items() ^ saved_shapes.items()})
    if differ or any(layer.lora_alpha != alpha for layer in layers.values()):
        what = f"differs at {differ[0]}" if differ else f"has alpha {alpha}"
        raise ValueError(f"{folder} {what}; it belongs to a model with other adapters")
    for key, parameter in own.items():
        parameter.copy_(saved[key])
