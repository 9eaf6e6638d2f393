"""Model families: each is right in all that a run does, or refused when it loads.

Oracles: full forward passes of one unpadded row without a cache, Hugging Face's own generate, and
autograd through those passes. `PYTHONPATH=. python tests/test_families.py` writes docs/families.md.
"""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, gradients, tiny_tokenizer
from transformers import AutoModelForCausalLM

from optim import AdamW, prepare_for_training
from sampling import completion_hidden, output_head, sample_completions
from support import models
from support.checkpoint import load_checkpoint, save_checkpoint
from support.models import checkpoint_layers, load_model

EOS, NEW_TOKENS = 1, 16
SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": 32,
}
GEMMA_3 = {
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MULTIMODAL = {
    "text_config": SIZES | GEMMA_3,
    "vision_config": VISION,
    "mm_tokens_per_image": 4,
    "image_token_index": 257,
    "boi_token_index": 256,
    "eoi_token_index": 255,
    "initializer_range": 0.3,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 4,
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
}
FAMILIES = {  # name: (its trait, configuration class, fields beside SIZES, "right" or the reason)
    "Llama": ("the plain case", "LlamaConfig", {}, "right"),
    "Qwen 2": ("biases in the attention", "Qwen2Config", {}, "right"),
    "Qwen 3": ("normed queries and keys", "Qwen3Config", {"head_dim": 8}, "right"),
    "Mistral": ("a window shorter than the text", "MistralConfig", {"sliding_window": 8}, "right"),
    "Gemma 2": (
        "capped logits, windows in every second layer",
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 3.0},
        "right",
    ),
    "Gemma 3": ("two rotary bases", "Gemma3TextConfig", GEMMA_3, "right"),
    "Gemma 3, multimodal": ("saved under other names", "Gemma3Config", MULTIMODAL, "right"),
    "Phi-3": ("one matrix for query, key and value", "Phi3Config", {}, "right"),
    "Phi-3, longrope": (
        "frequencies change with the length",
        "Phi3Config",
        {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
        "depend on the longest sequence",
    ),
    "Granite": ("scaled logits", "GraniteConfig", {"logits_scaling": 8.0}, "right"),
    "OLMo 2": ("norms after each block", "Olmo2Config", {}, "right"),
    "SmolLM 3": ("layers without positions", "SmolLM3Config", {"no_rope_layers": [1, 0]}, "right"),
    "GPT-2": ("learned positions", "GPT2Config", {}, "right"),
    "GPT-NeoX (Pythia)": ("a head saved as embed_out", "GPTNeoXConfig", {}, "right"),
    "GPT-Neo": (
        "local attention that counts columns",
        "GPTNeoConfig",
        {"attention_types": [[["global", "local"], 1]], "window_size": 8, "num_layers": 2},
        "right",
    ),
    "OPT": (
        "positions from the mask",
        "OPTConfig",
        {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "right",
    ),
    "LFM 2": (
        "convolution layers",
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention"]},
        "no cache for: conv",
    ),
    "Qwen 3 MoE": ("a mixture of experts", "Qwen3MoeConfig", EXPERTS | {"head_dim": 8}, "right"),
    "Cohere": ("logits times a scale", "CohereConfig", {"logit_scale": 0.25}, "right"),
    "BLOOM": ("ALiBi from the mask", "BloomConfig", {"n_head": 4, "n_layer": 2}, "right"),
    "MPT": (
        "ALiBi from the columns",
        "MptConfig",
        {"d_model": 32, "n_heads": 4, "n_layers": 2},
        "right",
    ),
    "BioGPT": ("a head called output_projection", "BioGptConfig", {}, "right"),
    "GPT-J": ("rotary pairs that interleave", "GPTJConfig", {"rotary_dim": 4}, "right"),
    "DeepSeek V3": ("keys and values of two sizes", "DeepseekV3Config", LATENT, "right"),
    "Cohere 2": (
        "windows, and layers without positions",
        "Cohere2Config",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        "right",
    ),
    "gpt-oss": (
        "attention sinks",
        "GptOssConfig",
        {"num_local_experts": 4, "head_dim": 8, "sliding_window": 8},
        "right",
    ),
    "Llama, dynamic rope": (
        "frequencies change with the length",
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "depend on the longest sequence",
    ),
    "Llama 4": (
        "attention in chunks",
        "Llama4TextConfig",
        {"layer_types": ["chunked_attention", "full_attention"], "num_local_experts": 2},
        "no cache for: chunked_attention",
    ),
    "Mamba": ("state space layers", "MambaConfig", {}, "no cache for"),
    "Gemma 3n": (
        "layers that share keys and values",
        "Gemma3nTextConfig",
        {
            "num_kv_shared_layers": 1,
            "layer_types": ["full_attention"] * 2,
            "vocab_size_per_layer_input": 258,
            "head_dim": 8,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
        "layers without keys and values of their own",
    ),
    "Qwen 3 Next": (
        "linear attention",
        "Qwen3NextConfig",
        EXPERTS | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
        "no cache for: linear_attention",
    ),
}
SHARED = list(range(50, 70))
PROMPTS = [SHARED + [7, 8], SHARED + list(range(90, 105)), [3, 4, 5], list(range(20, 60))]


def model_folder(family, folder):
    """A tiny random model of a family, as the library saves it, with a tokenizer."""
    _, config_class, fields, _ = FAMILIES[family]
    sizes = {} if "text_config" in fields else SIZES
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**sizes | fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def verdict(family, scratch):
    """ "right", after all assertions, or the reason why load_model refuses the family."""
    folder = model_folder(family, scratch / "model")
    try:
        model, tokenizer = load_model(folder)
    except ValueError as error:
        return "refused: " + str(error).split("cannot be loaded: ")[1].rsplit(". Choose", 1)[0]
    rollout = greedy_like_generate(model)
    logprobs_like_full_pass(model, rollout)
    gradients_like_full_pass(model, rollout)
    resumes_bit_identically(model, tokenizer, folder, scratch)
    checkpointed_gradients_are_equal(model, rollout)
    return "right"


def full_logprobs(model, prompt, ids):
    """The oracle: log-probabilities of each token of one row, without padding or cache."""
    ids_1L = torch.tensor([prompt + ids])
    return model(input_ids=ids_1L, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def completion_of(rollout, row):
    return rollout.completion_ids_BT[row][rollout.completion_mask_BT[row]].tolist()


def greedy_like_generate(model):
    stop = {"eos_token_ids": [EOS], "pad_token_id": EOS}
    rollout = sample_completions(model, PROMPTS, max_new_tokens=NEW_TOKENS, temperature=0, **stop)
    for row, prompt in enumerate(PROMPTS):
        expected = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )
        assert completion_of(rollout, row) == expected[0, len(prompt) :].tolist(), f"row {row}"
    return rollout


def scored_logprobs(model, rollout):
    masks = rollout.completion_ids_BT, rollout.completion_mask_BT
    return output_head(model)(completion_hidden(model, PROMPTS, *masks)).log_softmax(-1)


@torch.no_grad()
def logprobs_like_full_pass(model, rollout):
    scored_BTV = scored_logprobs(model, rollout)
    for row, prompt in enumerate(PROMPTS):
        ids = completion_of(rollout, row)
        expected_TV = full_logprobs(model, prompt, ids)
        torch.testing.assert_close(scored_BTV[row, : len(ids)], expected_TV, rtol=0, atol=1e-4)


def our_gradient(model, rollout):
    ids_BT, mask_BT = rollout.completion_ids_BT, rollout.completion_mask_BT
    logprobs_BT = scored_logprobs(model, rollout).gather(2, ids_BT[..., None])[..., 0]
    logprobs_BT[mask_BT].sum().backward()
    return take_gradients(model)


def take_gradients(model):
    """All gradients in one vector, removed from the model; 0 where a weight takes no part."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    taken = gradients(model)
    model.zero_grad()
    return taken


def gradients_like_full_pass(model, rollout):
    for row, prompt in enumerate(PROMPTS):
        ids = completion_of(rollout, row)
        full_logprobs(model, prompt, ids)[range(len(ids)), ids].sum().backward()
    expected = take_gradients(model)
    assert (our_gradient(model, rollout) - expected).norm() < 1e-4 * expected.norm()


def resumes_bit_identically(model, tokenizer, folder, scratch):
    """Changed weights, saved as a checkpoint: load_checkpoint and load_model give the same bits."""
    for number, parameter in enumerate(model.parameters()):
        parameter.data += torch.randn(parameter.shape, generator=torch.manual_seed(number))
    prepare_for_training(model)
    optimizer = AdamW(model)
    saved = save_checkpoint(scratch, 1, model, tokenizer, model, optimizer, {}, keep_last=1)
    loaded = load_model(str(saved / "student"))[0]
    assert_same_weights(loaded, model)
    resumed = load_model(folder)[0]
    prepare_for_training(resumed)
    load_checkpoint(saved, resumed, resumed, AdamW(resumed))
    assert_same_weights(resumed, model)


def assert_same_weights(loaded, model):
    expected = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected.pop(name)), name
    assert not expected


def checkpointed_gradients_are_equal(model, rollout):
    """The same gradient, and more modules run: the layers' own, a second time in backward."""
    runs = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: runs.append(1))
    plain, plain_runs = our_gradient(model, rollout), len(runs)
    checkpoint_layers(model)
    assert torch.equal(plain, our_gradient(model, rollout))
    assert len(runs) - plain_runs > 1.3 * plain_runs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_right_or_refused(family, tmp_path):
    expected = FAMILIES[family][3]
    found = verdict(family, tmp_path)
    assert found == "right" if expected == "right" else expected in found, found


def test_shared_keys_are_refused_where_transformers_leaves_their_layers_out(tmp_path, monkeypatch):
    """transformers 5.17 lists the layer types of Gemma 3n without those that share their keys."""
    full = models.get_layer_types_and_kwargs

    def as_in_5_17(config):
        layer_types, more = full(config)
        return [kind for kind in layer_types if kind != "dummy"], more

    monkeypatch.setattr(models, "get_layer_types_and_kwargs", as_in_5_17)
    what = "refused: gemma3n_text has layers that the sampler has no cache for: layers without keys"
    assert verdict("Gemma 3n", tmp_path).startswith(what)
    assert verdict("Qwen 2", tmp_path / "other") == "right"


def test_a_family_that_transformers_lacks_is_refused_by_name(tmp_path):
    """As a model of a newer family is seen by an older transformers."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma9_text", "num_hidden_layers": 2}')
    what = "cannot be loaded: .*gemma9_text.* your version of Transformers is out of date"
    with pytest.raises(ValueError, match=what):
        load_model(str(tmp_path))


def write_table(file=ROOT / "docs" / "families.md"):
    """The verdicts as a table, between the two marks of docs/families.md."""
    lines = ["| family | its trait | verdict |", "|---|---|---|"]
    for family, (trait, *_) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as scratch:
            lines.append(f"| {family} | {trait} | {verdict(family, Path(scratch))} |")
    before, start, rest = file.read_text().partition("<!-- families -->\n")
    _, end, after = rest.partition("<!-- end families -->")
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    lines += ["", f"*Written with {versions}.*"]
    file.write_text(before + start + "\n".join(lines) + "\n" + end + after)


if __name__ == "__main__":
    sys.exit(write_table())
