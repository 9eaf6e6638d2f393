"""Low-rank adapters.

Oracles: dense weights W + (alpha / r) B A written out, torch's AdamW, the exact average of the
dense updates, the tensors that autograd keeps; and the library peft, where it is installed.
"""

import copy
import json
import sys
import types

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import ROOT, tiny_llama, tiny_model
from safetensors.torch import load_file
from test_families import FAMILIES, PROMPTS, SIZES
from torch.func import functional_call
from torch.nn import Parameter

sys.path.insert(0, str(ROOT / "benchmarks"))
from bench_adapters import OneLayer, average_errors, kept_for_backward  # noqa: E402

from lora import (
    adapted_layers,
    adapter_gap,
    add_adapters,
    merge,
    share_base,
)
from optim import AdamW, prepare_for_training
from sampling import packed_weights, prefill, sample_completions
from support.adapters import load_adapter, save_adapter
from support.models import checkpoint_layers

RANK, ALPHA = 4, 8
STOP = {"eos_token_ids": [1], "pad_token_id": 1}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = {"Qwen 3 MoE": ATTENTION, "gpt-oss": ATTENTION}  # the targets that are linear layers
# peft 0.21.2 takes gate_proj, up_proj and down_proj for experts in this family, and drops them
NO_MLP = {"DeepSeek V3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]}


def family_model(family, dtype=torch.float32):
    """A tiny random model of a family in tests/test_families.py."""
    _, config_class, fields, _ = FAMILIES[family]
    sizes = {} if "text_config" in fields else SIZES
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**sizes | fields)
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


RIGHT = [family for family, (_, _, _, verdict) in FAMILIES.items() if verdict == "right"]


def with_adapters(model, scale_B=0.1, **options):
    """Adapters whose B is random, so that they change the model."""
    add_adapters(model, RANK, ALPHA, **options)
    generator = torch.Generator().manual_seed(5)
    for layer in adapted_layers(model).values():
        layer.lora_B.data = scale_B * torch.randn(layer.lora_B.shape, generator=generator)
    return model


def dense_weights(model):
    """The oracle: {name of a weight: W + (alpha / r) B A}, a function of A and B."""
    weights = {}
    for name, layer in adapted_layers(model).items():
        update = ALPHA / RANK * layer.lora_B @ layer.lora_A
        transposed = isinstance(layer, transformers.pytorch_utils.Conv1D)
        weights[f"{name}.weight"] = layer.weight + (update.T if transposed else update)
    return weights


def some_ids(model, rows=2):
    V = model.get_input_embeddings().weight.shape[0]
    return torch.randint(0, V, (rows, 12), generator=torch.Generator().manual_seed(3))


def loss_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# ---- adding ----


def test_a_new_adapter_changes_nothing_and_all_else_is_frozen(tiny):
    ids = some_ids(tiny)
    plain = tiny(input_ids=ids).logits
    add_adapters(tiny, RANK, ALPHA)
    assert torch.equal(tiny(input_ids=ids).logits, plain)
    assert len(adapted_layers(tiny)) == 14 and "lm_head" not in adapted_layers(tiny)
    assert len(trainable(tiny)) == 28
    assert all(name.endswith(("lora_A", "lora_B")) for name in trainable(tiny))
    assert all(parameter.dtype == torch.float32 for parameter in trainable(tiny).values())


def test_adapters_are_float32_on_a_bfloat16_base():
    model = with_adapters(tiny_llama(dtype=torch.bfloat16))
    ids = some_ids(model)
    logits = model(input_ids=ids).logits
    loss_of(logits, ids).backward()
    assert logits.dtype == torch.bfloat16
    for parameter in trainable(model).values():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.norm() > 0


def test_the_first_A_comes_from_the_seed_alone():
    """Uniform in +- 1 / sqrt(inputs), which is Kaiming's with a = sqrt(5)."""
    drawn = []
    for torch_seed, seed in ((1, 7), (2, 7), (2, 8)):
        model = tiny_llama()
        torch.manual_seed(torch_seed)
        state = torch.get_rng_state()
        add_adapters(model, 64, 64, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append([layer.lora_A for layer in adapted_layers(model).values()])
    assert all(map(torch.equal, drawn[0], drawn[1]))
    assert not any(map(torch.equal, drawn[1], drawn[2]))
    for A in drawn[0]:
        bound = A.shape[1] ** -0.5
        assert 0.98 * bound < A.abs().max() <= bound
        assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_targets_are_ends_of_names(tiny):
    add_adapters(tiny, RANK, ALPHA, targets=["v_proj", "mlp.up_proj", "0.self_attn.q_proj"])
    names = {name.removeprefix("model.layers.") for name in adapted_layers(tiny)}
    ends = "0.self_attn.v_proj 1.self_attn.v_proj 0.mlp.up_proj 1.mlp.up_proj 0.self_attn.q_proj"
    assert names == set(ends.split())


@pytest.mark.parametrize(
    "targets, words",
    [
        (["q_proj", "c_attn"], 'target "c_attn" is not there; choose from down_proj'),
        (["proj"], 'target "proj" is not there'),  # an end of a name, not of a word
        (["embed_tokens"], "is no linear layer but Embedding"),
        (["lm_head"], "is the output head"),
    ],
)
def test_what_takes_no_adapter_is_refused_and_nothing_is_changed(tiny, targets, words):
    with pytest.raises(ValueError, match=words):
        add_adapters(tiny, RANK, ALPHA, targets)
    assert not adapted_layers(tiny) and all(p.requires_grad for p in tiny.parameters())


def test_a_second_adapter_and_a_rank_of_0_are_refused(tiny):
    with pytest.raises(ValueError, match="rank 0"):
        add_adapters(tiny, 0, ALPHA)
    add_adapters(tiny, RANK, ALPHA)
    with pytest.raises(ValueError, match="adapters already"):
        add_adapters(tiny, RANK, ALPHA)


@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_experts_are_refused_unless_targets_are_named(family):
    with pytest.raises(ValueError, match="experts.*name the targets among .*q_proj"):
        add_adapters(family_model(family), RANK, ALPHA)
    with pytest.raises(ValueError, match="gate_up_proj"):
        add_adapters(family_model(family), RANK, ALPHA, ["gate_up_proj"])


# ---- right in every family ----


@pytest.mark.parametrize("family", RIGHT)
def test_logits_gradients_and_greedy_answers_are_those_of_dense_weights(family):
    """Also that each layer's adapter is used: a module that never runs would have no gradient."""
    model = with_adapters(family_model(family), targets=EXPERTS.get(family))
    ids, parameters = some_ids(model), trainable(model)
    base = share_base(model, adapters=False)

    logits = model(input_ids=ids).logits
    found = torch.autograd.grad(loss_of(logits, ids), list(parameters.values()))
    expected_logits = functional_call(base, dense_weights(model), kwargs={"input_ids": ids}).logits
    expected = torch.autograd.grad(loss_of(expected_logits, ids), list(parameters.values()))
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    for name, gradient, exact in zip(parameters, found, expected, strict=True):
        assert exact.norm() > 0, name
        assert (gradient - exact).norm() < 1e-3 * exact.norm(), name

    merged, lost = merge(model)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert lost < 1e-5 and not adapted_layers(merged)
    assert not torch.allclose(base(input_ids=ids).logits, logits, atol=1e-2)
    answers = [
        sample_completions(one, PROMPTS, max_new_tokens=8, temperature=0, **STOP).completion_ids_BT
        for one in (model, merged)
    ]
    assert torch.equal(*answers)


@torch.no_grad()
def test_the_sampler_draws_from_the_softmax_that_scoring_sees(tiny):
    """With adapters: 1e-4 nats, as with all weights."""
    model = with_adapters(tiny)
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10]]
    with packed_weights(model):
        _, _, logits_BV = prefill(model, prompts, 1)
    for prompt, logits_V in zip(prompts, logits_BV, strict=True):
        scored_V = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        difference_V = logits_V.log_softmax(-1) - scored_V.log_softmax(-1)
        assert difference_V.abs().max() < 1e-4


def test_two_steps_are_those_of_dense_weights_under_torchs_adamw(tiny):
    model = with_adapters(tiny)
    oracle = {name: Parameter(p.detach().clone()) for name, p in trainable(model).items()}
    theirs = torch.optim.AdamW(oracle.values(), lr=1e-2, weight_decay=0.1)
    prepare_for_training(model)
    optimizer, base = AdamW(model, weight_decay=0.1), share_base(model, adapters=False)
    for step in range(2):
        ids = some_ids(model, rows=2 + step)
        loss_of(model(input_ids=ids).logits, ids).backward()
        optimizer.step(1e-2)
        dense = {
            f"{name}.weight": layer.weight
            + ALPHA / RANK * oracle[f"{name}.lora_B"] @ oracle[f"{name}.lora_A"]
            for name, layer in adapted_layers(model).items()
        }
        logits = functional_call(base, dense, kwargs={"input_ids": ids}).logits
        theirs.zero_grad()
        loss_of(logits, ids).backward()
        theirs.step()
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(parameter, oracle[name], rtol=1e-5, atol=1e-5)
    plain = dict(tiny_llama().named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, plain[name])


def test_gradients_flow_through_checkpointed_layers(tiny):
    """Nothing that enters the first layer requires a gradient: the embedding is frozen."""
    model = with_adapters(tiny)
    ids, parameters = some_ids(model), list(trainable(model).values())
    plain = torch.autograd.grad(loss_of(model(input_ids=ids).logits, ids), parameters)
    checkpoint_layers(model)
    again = torch.autograd.grad(loss_of(model(input_ids=ids).logits, ids), parameters)
    assert all(map(torch.equal, plain, again))
    assert all(gradient.norm() > 0 for gradient in plain)


# ---- memory ----


@pytest.mark.parametrize("train_A", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_its_input_only_for_a_learning_A(train_A, dtype):
    model = with_adapters(tiny_llama(dtype=dtype), train_A=train_A)
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(64, 16, dtype=dtype).requires_grad_() * 1  # as an earlier layer's output
    kept = kept_for_backward(model, lambda: layer(x))
    address = x.untyped_storage().data_ptr()
    assert (address in kept) == train_A
    others = sum(size for key, size in kept.items() if key != address)
    # A x, and on bfloat16 the rounded A and B; no float32 copy of x
    factors = 0 if dtype == torch.float32 else (16 * RANK + 16 * RANK) * 2
    assert others <= 64 * RANK * x.element_size() + factors


def float32_product(layer, inputs, output):
    """As peft computes it on a bfloat16 base: x is cast to the dtype of A, and kept in it."""
    product = F.linear(F.linear(inputs[0].to(layer.lora_A.dtype), layer.lora_A), layer.lora_B)
    return (output + ALPHA / RANK * product).to(output.dtype)


def test_a_product_in_bfloat16_has_hardly_worse_gradients_and_keeps_less():
    """On a bfloat16 base, whose own rounding is the greater part of the gradients' error.

    The oracle is the same model in float64.
    """
    config = transformers.LlamaConfig(**SIZES | {"hidden_size": 64, "initializer_range": 0.1})
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    ids, gradients, kept = some_ids(base, rows=8), {}, {}
    for form in ("ours", "in float32", "oracle"):
        model = with_adapters(copy.deepcopy(base))
        for layer in adapted_layers(model).values():
            if form != "ours":
                layer.lora_hook.remove()
                layer.register_forward_hook(float32_product)
        if form == "oracle":
            model = model.double()
        kept[form] = sum(kept_for_backward(model, lambda m=model: m(input_ids=ids)).values())
        loss_of(model(input_ids=ids).logits, ids).backward()
        learning = trainable(model).values()
        gradients[form] = torch.cat([p.grad.flatten().double() for p in learning])
    errors = {form: (g - gradients["oracle"]).norm().item() for form, g in gradients.items()}
    assert errors["ours"] < 1.2 * errors["in float32"] < 0.05 * gradients["oracle"].norm()
    assert kept["ours"] < 0.75 * kept["in float32"]


def test_activations_of_a_whole_model_take_less():
    """Bytes that autograd keeps: all weights learn > adapters > adapters with a frozen A."""
    bytes_kept = []
    for options in (None, {}, {"train_A": False}):
        model = tiny_llama()
        if options is not None:
            add_adapters(model, 1, 1, **options)
        ids = some_ids(model, rows=8)
        kept = kept_for_backward(model, lambda m=model, i=ids: m(input_ids=i).logits)
        bytes_kept.append(sum(kept.values()))
    assert bytes_kept[0] > bytes_kept[1] > bytes_kept[2]


# ---- sharing ----


def storages(model):
    return {name: p.data_ptr() for name, p in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("train_A", [True, False])
def test_a_teacher_shares_what_is_frozen_and_owns_the_rest(tiny, train_A):
    student = with_adapters(tiny, train_A=train_A)
    teacher, ids = share_base(student), some_ids(tiny)
    before = student(input_ids=ids).logits
    for name, address in storages(student).items():
        owned = name.endswith("lora_B") or (train_A and name.endswith("lora_A"))
        assert (storages(teacher)[name] != address) == owned, name
    assert torch.equal(teacher(input_ids=ids).logits, before)
    for parameter in trainable(student).values():
        parameter.data += 0.1
    assert torch.equal(teacher(input_ids=ids).logits, before)
    assert not torch.allclose(student(input_ids=ids).logits, before, atol=1e-2)
    assert teacher.lm_head.weight is teacher.model.embed_tokens.weight  # still tied


def test_the_base_has_no_adapters_and_no_tensors_of_its_own(tiny):
    ids = some_ids(tiny)
    plain = tiny(input_ids=ids).logits
    student = with_adapters(tiny)
    adapted = student(input_ids=ids).logits
    base = share_base(student, adapters=False)
    assert torch.equal(base(input_ids=ids).logits, plain)
    assert torch.equal(student(input_ids=ids).logits, adapted)  # its hooks are still there
    addresses = storages(student)
    assert all(addresses[name] == address for name, address in storages(base).items())
    assert not adapted_layers(base)


def test_a_model_without_frozen_weights_is_copied(tiny):
    teacher = share_base(tiny)
    assert storages(teacher).keys() == storages(tiny).keys()
    assert not set(storages(teacher).values()) & set(storages(tiny).values())


def test_a_forward_that_would_run_the_originals_layers_is_not_copied(tiny):
    """A function bound to the layer itself is copied with it; a closure is not."""
    student = with_adapters(tiny)
    layer, ids = student.model.layers[1], some_ids(tiny)
    layer.forward = types.MethodType(type(layer).forward, layer)
    base = share_base(student, adapters=False)
    assert torch.equal(base(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)
    layer.forward = lambda *args, plain=layer.forward, **kwargs: plain(*args, **kwargs)
    with pytest.raises(ValueError, match="layers.1.forward was replaced"):
        share_base(student)


# ---- the EMA teacher ----


@pytest.mark.parametrize("learning_rate", [1e-4, 2e-3])
def test_with_a_frozen_A_the_teacher_is_the_exact_average(learning_rate):
    assert max(average_errors("frozen A", learning_rate)) < 1e-5


def test_with_a_learning_A_the_teacher_starts_right_and_strays_as_A_moves():
    """Only the first step is exact, for B is 0 until then and A has hardly moved."""
    slow = average_errors("copied A", 1e-4)
    fast = average_errors("copied A", 2e-3)
    assert slow[0] < 0.01 and max(slow) < 0.1
    assert fast[0] < 0.1 and max(slow) < max(fast) < 0.6


def test_factors_that_start_at_zero_hardly_follow():
    """After one step the product has come rate of the way that rate B A should: rate^2 B A."""
    errors = average_errors("both from zero", 1e-4)
    assert errors[0] == pytest.approx(0.99, abs=1e-3)
    assert errors[1] > 0.75 and errors[2] > 0.5 and errors[3] > 0.1


# ---- merging ----


def test_merging_leaves_the_student_and_what_it_shares_alone(tiny):
    ids, student = some_ids(tiny), with_adapters(tiny)
    teacher = share_base(student)
    adapted = student(input_ids=ids).logits
    merged, _ = merge(student)
    for model in (student, teacher):
        assert torch.equal(model(input_ids=ids).logits, adapted)
    adapted_names = {f"{name}.weight" for name in adapted_layers(student)}
    own = {n for n, address in storages(merged).items() if address != storages(student)[n]}
    assert own == adapted_names
    assert not any(parameter.requires_grad for parameter in merged.parameters())


def test_what_rounding_takes_from_a_merged_update():
    """W = 1 in bfloat16, whose neighbours are 1 - 1/256 and 1 + 1/128.

    B A = 1/64 survives; 1/512 of it is less than half way up, and vanishes; 3/512 becomes 4/512.
    """
    for B, weight, lost in (
        (1 / 64, 1 + 1 / 64, 0),
        (1 / 512, 1, 1),
        (3 / 512, 1 + 1 / 128, 1 / 3),
    ):
        model = OneLayer().bfloat16()
        add_adapters(model, 1, 1)
        model.linear.weight.data.fill_(1)
        model.linear.lora_A.data.fill_(1)
        model.linear.lora_B.data.fill_(B)
        merged, found = merge(model)
        assert merged.linear.weight.dtype == torch.bfloat16
        assert (merged.linear.weight == weight).all()
        assert found == pytest.approx(lost)


def test_a_new_adapter_merges_into_the_base(tiny):
    add_adapters(tiny, RANK, ALPHA)
    merged, lost = merge(tiny)
    base = dict(tiny.named_parameters())
    assert lost == 0.0
    assert all(torch.equal(weight, base[name]) for name, weight in merged.named_parameters())


def all_weights(model):
    merged = merge(model)[0] if adapted_layers(model) else model
    return torch.cat([parameter.detach().flatten() for parameter in merged.parameters()])


@pytest.mark.parametrize("config_class", [transformers.LlamaConfig, transformers.GPT2Config])
def test_the_gap_is_that_of_the_merged_weights(config_class):
    student = with_adapters(tiny_model(config_class))
    teacher, base = share_base(student), share_base(student, adapters=False)
    assert adapter_gap(teacher, student) == 0
    for parameter in trainable(student).values():
        parameter.data *= 1.5
    weights = all_weights(student)
    for other in (teacher, base):
        expected = (all_weights(other) - weights).norm() / weights.norm()
        assert adapter_gap(other, student) == pytest.approx(expected.item(), rel=1e-4)


# ---- files ----


def test_saved_and_loaded_bit_for_bit(tiny, tmp_path):
    save_adapter(tmp_path, with_adapters(tiny), "some/base")
    fresh = tiny_llama()
    load_adapter(tmp_path, fresh)
    used = with_adapters(tiny_llama(), scale_B=0.7, seed=9, train_A=False)
    teacher = share_base(used)
    load_adapter(tmp_path, used)
    load_adapter(tmp_path, teacher)
    ids = some_ids(tiny)
    for model in (fresh, used, teacher):
        assert adapted_layers(model).keys() == adapted_layers(tiny).keys()
        for name, layer in adapted_layers(tiny).items():
            loaded = model.get_submodule(name)
            assert torch.equal(loaded.lora_A, layer.lora_A)
            assert torch.equal(loaded.lora_B, layer.lora_B)
        assert torch.equal(model(input_ids=ids).logits, tiny(input_ids=ids).logits)
    assert teacher.get_submodule(name).lora_A is loaded.lora_A is used.get_submodule(name).lora_A


def test_target_modules_are_last_names_unless_those_name_more(tiny, tmp_path):
    save_adapter(
        tmp_path, with_adapters(copy.deepcopy(tiny), targets=["q_proj", "mlp.up_proj"]), "b"
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    save_adapter(tmp_path, with_adapters(tiny, targets=["0.self_attn.q_proj"]), "some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    keys = {f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"}
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == keys


def test_the_transposed_weights_of_gpt2_are_declared(tmp_path):
    for config_class, transposed in (
        (transformers.GPT2Config, True),
        (transformers.LlamaConfig, False),
    ):
        save_adapter(tmp_path, with_adapters(tiny_model(config_class)), "some/base")
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["fan_in_fan_out"] == transposed


@pytest.mark.parametrize(
    "field, value",
    [
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("init_lora_weights", "pissa"),
        ("a_field_of_the_future", 1),
    ],
)
def test_an_adapter_that_is_more_than_A_and_B_is_refused(tiny, tmp_path, field, value):
    save_adapter(tmp_path, with_adapters(tiny), "some/base")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=f"{field} .* is not supported"):
        load_adapter(tmp_path, tiny_llama())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"targets": ["q_proj"]}, "differs at model.layers.0"),
        ({"rank": 2}, "differs at model.layers.0"),
        ({"alpha": 16}, "has alpha 8"),
    ],
)
def test_the_adapter_of_another_model_is_refused(tiny, tmp_path, options, words):
    save_adapter(tmp_path, with_adapters(tiny), "some/base")
    other = tiny_llama()
    add_adapters(other, **{"rank": RANK, "alpha": ALPHA} | options)
    with pytest.raises(ValueError, match=words):
        load_adapter(tmp_path, other)
    with pytest.raises(ValueError, match="is not there"):
        load_adapter(tmp_path, tiny_model(transformers.GPT2Config))


# ---- against the library peft ----


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="compares with peft: pip install peft==0.21.2")


@pytest.mark.parametrize("family", RIGHT)
def test_peft_reads_our_adapters(family, peft, tmp_path):
    ours = with_adapters(family_model(family), targets=(EXPERTS | NO_MLP).get(family))
    save_adapter(tmp_path, ours, "some/base")
    theirs = peft.PeftModel.from_pretrained(family_model(family), tmp_path)
    tuned = [m for m in theirs.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert len(tuned) == len(adapted_layers(ours))
    ids = some_ids(ours)
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Phi-3"])
def test_we_read_pefts_adapters(family, peft, tmp_path):
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    config.init_lora_weights = False  # B is random
    theirs = peft.get_peft_model(family_model(family), config)
    theirs.save_pretrained(tmp_path)
    ours = family_model(family)
    load_adapter(tmp_path, ours)
    ids = some_ids(ours)
    assert not torch.allclose(
        ours(input_ids=ids).logits, family_model(family)(input_ids=ids).logits
    )
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["Llama", "Qwen 2", "Gemma 2", "GPT-NeoX (Pythia)", "GPT-2"])
def test_gradients_and_two_steps_are_pefts(family, peft, tmp_path):
    ours = with_adapters(family_model(family))
    save_adapter(tmp_path, ours, "some/base")
    theirs = peft.PeftModel.from_pretrained(family_model(family), tmp_path, is_trainable=True)
    named = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): p
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert named.keys() == trainable(ours).keys()
    prepare_for_training(ours)
    optimizer = AdamW(ours, weight_decay=0.1)
    torchs = torch.optim.AdamW(named.values(), lr=1e-3, weight_decay=0.1)
    for step in range(2):
        ids = some_ids(ours, rows=2 + step)
        loss_of(ours(input_ids=ids).logits, ids).backward()
        torchs.zero_grad()
        loss_of(theirs(input_ids=ids).logits, ids).backward()
        for name, parameter in trainable(ours).items():
            torch.testing.assert_close(parameter.grad, named[name].grad, rtol=1e-5, atol=1e-5)
        optimizer.step(1e-3)
        torchs.step()
    for name, parameter in trainable(ours).items():
        torch.testing.assert_close(parameter, named[name], rtol=1e-5, atol=1e-5)
