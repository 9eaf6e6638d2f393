"""Loading: what is read, what is refused and why. Oracle: the messages, written out here."""

import copy
import ctypes
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import gradients, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoXJapaneseConfig

from support import models
from support.chat import turn_end
from support.checkpoint import save_model
from support.models import checkpoint_layers, load_model, load_tokenizer


def test_models_that_change_their_logits_are_refused(tiny):
    models.check_head(tiny)
    scaled = copy.deepcopy(tiny)
    forward = scaled.forward
    scaled.forward = lambda **inputs: type(tiny(**inputs))(logits=forward(**inputs).logits * 0.5)
    with pytest.raises(ValueError, match="changes its logits"):
        models.check_head(scaled)


GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not GLIBC, reason="another allocator than glibc's")
def test_freed_memory_goes_back_to_the_system():
    """200 MB in tensors of 100 kB, of which every second is freed: 100 MB in holes."""

    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tensors = [torch.ones(25_000) for _ in range(2000)]
    tensors = tensors[::2]
    before = resident_bytes()
    models.give_back_freed_memory()
    assert before - resident_bytes() > 80e6
    assert all(tensor.sum() == 25_000 for tensor in tensors)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_keep_their_own_way(platform, monkeypatch):
    monkeypatch.setattr(models.sys, "platform", platform)
    monkeypatch.setattr(models.ctypes, "CDLL", None)  # Windows has no library without a name
    models.give_back_freed_memory()


def shift_cached_logits(model):
    """Break the pass with a cache, and no other: the kind of fault that check_sampling is for."""
    plain = model.forward

    def forward(*args, past_key_values=None, **inputs):
        output = plain(*args, past_key_values=past_key_values, **inputs)
        if past_key_values is not None:
            output.logits = output.logits.roll(1, dims=-1)
        return output

    model.forward = forward


def raise_in_forward(model):
    def forward(*args, **inputs):
        raise AttributeError("'InnerCache' object has no attribute 'keys'")

    model.forward = forward


def scale_hidden_states(model):
    plain = model.base_model.norm.forward
    # only where several rows are scored together
    model.base_model.norm.forward = lambda x: plain(x) * (1.1 if len(x) > 1 else 1.0)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (shift_cached_logits, "of llama differ from a full pass by .* nats"),
        (scale_hidden_states, "of llama differ from a full pass by .* nats"),
        (raise_in_forward, r"of llama does not run \(AttributeError\)$"),
    ],
)
def test_a_model_that_the_sampler_is_wrong_for_is_refused(tiny, break_it, message):
    models.check_sampling(tiny)
    break_it(tiny)
    with pytest.raises(ValueError, match=message):
        models.check_sampling(tiny)


def test_names_that_could_not_be_read_back_are_refused(tiny, monkeypatch):
    models.check_saved_names(tiny)

    def rename(model, weights):
        return {name.replace("q_proj", "query"): weight for name, weight in weights.items()}

    monkeypatch.setattr(models, "revert_weight_conversion", rename)
    with pytest.raises(ValueError, match="unexpected: .*query.* missing: .*q_proj"):
        models.check_saved_names(tiny)


def drop_key(weights):
    del weights["model.layers.0.mlp.up_proj.weight"]


def add_key(weights):
    weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)


def reshape_key(weights):
    weights["model.norm.weight"] = torch.zeros(5)


def compile_prefix(weights):
    for name in list(weights):
        weights["_orig_mod." + name] = weights.pop(name)


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_key, "missing: model.layers.0.mlp.up_proj.weight"),
        (add_key, "unexpected: model.layers.9.mlp.up_proj.weight"),
        (reshape_key, "of another shape: model.norm.weight"),
        (compile_prefix, "unexpected: _orig_mod.*missing: .*torch.compile added _orig_mod"),
    ],
)
def test_weights_that_do_not_fit_stop_the_load(change, message, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message) as caught:
        load_model(str(folder))
    assert str(caught.value).count("weight, ") <= 4 and "\n" not in str(caught.value)


def test_the_causal_mask_that_old_files_carry_is_no_weight(tokenizer, tmp_path):
    tiny = tiny_model(GPTNeoConfig, num_layers=2, attention_types=[[["global", "local"], 1]])
    save_model(tmp_path / "model", tiny, tokenizer)
    file = tmp_path / "model" / "model.safetensors"
    masks = {f"transformer.h.0.attn.attention.{x}": torch.ones(4) for x in ("bias", "masked_bias")}
    save_file(load_file(file) | masks, file, metadata={"format": "pt"})
    loaded, _ = load_model(str(tmp_path / "model"))
    assert loaded.state_dict().keys() == tiny.state_dict().keys()
    assert all(torch.equal(x, tiny.state_dict()[n]) for n, x in loaded.state_dict().items())


def edit_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", "fp8"])
def test_quantised_models_are_refused_without_naming_a_package(method, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    edit_config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ValueError, match="quantised; training needs the full weights") as caught:
        load_model(str(folder))
    assert "pip" not in str(caught.value)


def test_code_of_a_model_is_never_asked_about(tiny_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit_config(folder, model_type="unknown", auto_map=classes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(ValueError, match="it needs program code of its own, which is never run"):
        load_model(str(folder))


@pytest.mark.parametrize("kind", [ImportError, RuntimeError, AttributeError, KeyError])
def test_every_exception_of_a_load_becomes_one_line(kind, tiny_folder, monkeypatch):
    def fail(*_, **__):
        raise kind("first\nsecond")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ValueError, match=f"cannot be loaded: {kind.__name__}: .*first") as caught:
        load_model(str(tiny_folder))
    assert "\n" not in str(caught.value)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"),
    RuntimeError("CUDA error: out of memory (2)"),  # of cudaHostRegister
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["read_weights", "sample_completions"])
def test_memory_that_runs_out_in_a_load_stays_what_it_is(place, error, tiny_folder, monkeypatch):
    """Reading the weights, and in check_sampling."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(models, place, fail)
    with pytest.raises(type(error)) as caught:
        load_model(str(tiny_folder))
    assert caught.value is error


@pytest.mark.parametrize(
    "check",
    ["read_architecture", "reads_parts", "check_head", "check_saved_names", "check_sampling"],
)
def test_a_load_makes_every_check(check, tiny_folder, monkeypatch):
    def refuse(_):
        raise ValueError(f"refused by {check}")

    monkeypatch.setattr(models, check, refuse)
    with pytest.raises(ValueError, match=f"cannot be loaded: refused by {check}. Choose"):
        load_model(str(tiny_folder))


def test_of_several_chat_templates_the_default_one_is_taken(tokenizer, tmp_path, capsys):
    """As transformers saves and loads them: a dict of names."""
    plain = tokenizer.chat_template
    tokenizer.chat_template = {"tool_use": "tools", "default": plain}
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.chat_template == plain and turn_end(loaded) == tokenizer.eos_token_id
    assert re.search("default is used, of .*tool_use", capsys.readouterr().out)


def test_several_chat_templates_without_a_default_are_refused(tokenizer, tmp_path):
    plain = tokenizer.chat_template
    tokenizer.chat_template = {"tool_use": plain, "rag": plain}
    tokenizer.save_pretrained(tmp_path)
    message = "cannot be loaded: its chat templates are (rag, tool_use|tool_use, rag), none of them"
    with pytest.raises(ValueError, match=message):
        load_tokenizer(str(tmp_path))


def test_a_model_that_cannot_be_read_gives_one_plain_message(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="cannot be loaded: .* Choose a folder .*smollm2"):
        load_model(str(tmp_path))


def test_layers_that_are_not_found_are_not_checkpointed():
    model = tiny_model(GPTNeoXJapaneseConfig, intermediate_multiple_size=2)
    message = "--gradient-checkpointing finds no layers in gpt_neox_japanese"
    with pytest.raises(ValueError, match=message):
        checkpoint_layers(model)


def test_checkpointed_layers_give_the_same_gradient_and_run_twice(tiny):
    """Against the model as it was; a layer runs once without gradients, and twice with them."""
    plain, ids_BL = copy.deepcopy(tiny), torch.tensor([[3, 4, 5, 6]])
    runs = []
    tiny.base_model.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    checkpoint_layers(tiny)
    for model in (plain, tiny):
        model(input_ids=ids_BL, use_cache=False).logits.square().sum().backward()
    assert len(runs) == 2
    assert torch.equal(gradients(plain), gradients(tiny))
    with torch.no_grad():
        tiny(input_ids=ids_BL)
    assert len(runs) == 3
