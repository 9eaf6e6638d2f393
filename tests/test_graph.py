"""Decoding by recorded steps, and packed weights.

Oracles: the plain decoding loop of sampling.decode, row for row; a dispatcher that refuses every
operation by which Python reads a number of the device; torch.nn.functional.linear in float64.
On a CPU the step that a GPU records runs as it stands, and torch.cuda is stood in for.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import tiny_llama, tiny_model
from test_families import FAMILIES, SIZES
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPTNeoConfig, Qwen2Config

import sampling
from optim import AdamW, prepare_for_training
from sampling import next_logits, packed_weights, prefill, sample_completions

PROMPTS = [[50, 51, 7, 8], [50, 51, *range(20, 39)], [3, 4, 5], list(range(20, 38))] * 3
SHORT = [[5, 6, 7, 8, 9], [3], [10, 11, 12], [30, 31, 32, 33, 34, 35, 36, 37, 38, 5]] * 3
T = 24
STOP = {"eos_token_ids": list(range(1, 258, 12)), "pad_token_id": 1}


def uniforms(B, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, T, generator=generator, dtype=torch.float64)


def assert_same(found, expected):
    for name in ("completion_ids_BT", "completion_mask_BT", "finished_B"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def sample(model, use_graph, prompts=SHORT, **options):
    options = {"uniforms_BT": uniforms(len(prompts)), "max_new_tokens": T} | STOP | options
    return sample_completions(model, prompts, use_graph=use_graph, **options)


def tiny_family(family):
    _, config_class, fields, _ = FAMILIES[family]
    sizes = {} if "text_config" in fields else SIZES
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**sizes | fields)
    return AutoModelForCausalLM.from_config(config).eval()


RIGHT = [family for family, (*_, verdict) in FAMILIES.items() if verdict == "right"]


@pytest.mark.parametrize("family", RIGHT)
def test_recorded_steps_draw_the_tokens_of_plain_steps(family, monkeypatch, capsys):
    """Greedy and sampled; unequal prompts; rows that end at different times, in several buckets.

    GPT-Neo counts columns from the end of the buffer, so it keeps the plain loop.
    """
    monkeypatch.setattr(sampling, "GRAPH_COLUMNS", 4)
    model = tiny_family(family)
    lengths = set()
    for options in ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.95}):
        expected = sample(model, False, PROMPTS, **options)
        lengths |= set(expected.completion_mask_BT.sum(1).tolist())
        assert_same(sample(model, True, PROMPTS, **options), expected)
    assert len(lengths) > 2
    said = capsys.readouterr().out
    if family == "GPT-Neo":
        assert said.startswith("decoding gpt_neo step by step, without a graph: it would change")
    else:
        assert said == "" and model.columns_by_graph == 21 + T


# ---- rows and columns ----


def noted_steps(monkeypatch):
    """(rows, columns read) of each decoding step."""
    seen, plain = [], sampling.next_logits

    def noted(model, ids_RN, mask_RL, cache):
        if ids_RN.shape[1] == 1 and isinstance(cache.layers[0], sampling.GraphLayer):
            seen.append((len(ids_RN), mask_RL.shape[1]))
        return plain(model, ids_RN, mask_RL, cache)

    monkeypatch.setattr(sampling, "next_logits", noted)
    return seen


def test_a_graph_reads_one_to_two_buckets_and_then_rows_are_dropped(tiny, monkeypatch):
    """Prompts end at column 10, so the last of 24 tokens stands at 33 and 32 is the last one run.

    After 8 compared steps over all 34 columns, the next is column 18: in buckets of 5 columns that
    is bucket 3, and the graph reads up to the end of bucket 4; then from column 25 up to 34.
    """
    monkeypatch.setattr(sampling, "GRAPH_COLUMNS", 5)
    lengths_B = sample(tiny, False, eos_token_ids=[1]).completion_mask_BT.sum(1)
    seen = noted_steps(monkeypatch)
    sample(tiny, True, eos_token_ids=[1])
    running = [int((lengths_B > t).sum()) for t in range(T + 1)]
    assert 0 < running[16] < 12
    expected = [(12, 34)] * 8 + [(12, 25)] * 7 + [(running[16], 34)] * 8
    assert seen == expected


def test_decoding_ends_when_all_rows_have_ended(tiny, monkeypatch):
    """Every token is an EOS: the compared steps are run, one bucket's first step, and no more."""
    monkeypatch.setattr(sampling, "LOOK_EVERY", 1)
    seen = noted_steps(monkeypatch)
    rollout = sample(tiny, True, eos_token_ids=list(range(40)))
    assert rollout.completion_mask_BT.sum(1).tolist() == [1] * 12
    assert len(seen) == sampling.COMPARED_STEPS + 1


@pytest.mark.parametrize("new_tokens, steps", [(1, 0), (8, 0), (9, 8), (10, 9)])
def test_few_tokens(tiny, new_tokens, steps, monkeypatch):
    """Too few for a recording; all but the first drawn in the comparison; one after it."""
    options = {"max_new_tokens": new_tokens, "uniforms_BT": uniforms(12)[:, :new_tokens]}
    seen = noted_steps(monkeypatch)
    found = sample(tiny, True, **options)
    assert len(seen) == steps
    assert_same(found, sample(tiny, False, **options))


def test_weights_that_have_been_updated_are_read(tiny):
    """Nothing recorded or packed outlives a call."""
    before = sample(tiny, True)
    prepare_for_training(tiny)
    optimizer = AdamW(tiny)
    tiny(torch.tensor([[5, 6, 7]])).logits.square().sum().backward()
    optimizer.step(0.1)
    after = sample(tiny, True)
    assert_same(after, sample(tiny, False))
    assert not torch.equal(after.completion_ids_BT, before.completion_ids_BT)


# ---- a graph proves itself ----


def wrong_column(layer, keys_RH1E, values_RH1E, *_, **__):
    for buffer_RHLE, new_RH1E in zip(layer.buffers, (keys_RH1E, values_RH1E), strict=True):
        buffer_RHLE.index_copy_(2, layer.column_1 - 1, new_RH1E)
    return [buffer_RHLE[:, :, : layer.length] for buffer_RHLE in layer.buffers]


def one_column_short(layer, *new, plain=sampling.GraphLayer.update, **__):
    keys_RHLE, values_RHLE = plain(layer, *new)
    return keys_RHLE, values_RHLE.roll(1, dims=2)


def not_a_number(layer, *new, plain=sampling.GraphLayer.update, **__):
    return [x + torch.nan for x in plain(layer, *new)]


def no_capture(*_, **__):
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors …")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "wrong, reason",
    [
        (wrong_column, "it would change log-probabilities by"),
        (one_column_short, "it would change log-probabilities by"),
        (not_a_number, "it would"),
        (no_capture, "operation not permitted when stream is capturing\n"),
    ],
)
def test_a_wrong_step_means_one_line_and_the_plain_loop(wrong, reason, dtype, monkeypatch, capsys):
    monkeypatch.setattr(sampling.GraphLayer, "update", wrong)
    model = tiny_llama(dtype=dtype)
    expected = sample(model, False)
    assert_same(sample(model, True), expected)
    said = capsys.readouterr().out
    assert said.startswith(f"decoding llama step by step, without a graph: {reason}")
    assert said.count("\n") == 1
    monkeypatch.setattr(sampling, "decode_by_graph", None)  # it would raise, and be reported
    assert_same(sample(model, True), expected)
    assert capsys.readouterr().out == ""


def test_a_step_that_draws_with_another_number_is_found(tiny, monkeypatch, capsys):
    def wrong(model, cache, state, *options, plain=sampling.graph_step):
        state.uniforms_RL = 1 - state.uniforms_RL
        logits_RV = plain(model, cache, state, *options)
        state.uniforms_RL = 1 - state.uniforms_RL
        return logits_RV

    monkeypatch.setattr(sampling, "graph_step", wrong)
    assert_same(sample(tiny, True), sample(tiny, False))
    assert capsys.readouterr().out.endswith("it would draw other tokens\n")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_step_is_trusted_in_both_dtypes(dtype, capsys):
    model = tiny_llama(dtype=dtype)
    sample(model, True)
    assert model.columns_by_graph == 10 + T and capsys.readouterr().out == ""


def test_it_is_compared_again_only_for_longer_sequences(tiny, monkeypatch):
    compared, plain = [], sampling.compare_steps

    def noted(model, cache, state, column, L, *options):
        compared.append(L)
        return plain(model, cache, state, column, L, *options)

    monkeypatch.setattr(sampling, "compare_steps", noted)
    for prompts in (SHORT[:2], SHORT, SHORT[:1], SHORT, [[5] * 11]):
        sample(tiny, True, prompts)
    assert compared == [5 + T, 10 + T, 11 + T]


def test_a_window_that_a_short_buffer_hides_is_found_in_a_longer_one(monkeypatch, capsys):
    """GPT-Neo's window of 40 columns: 34 columns show nothing, 46 do."""
    monkeypatch.setattr(sampling, "GRAPH_COLUMNS", 4)
    kinds = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}
    model = tiny_model(GPTNeoConfig, window_size=40, **kinds)
    assert_same(sample(model, True), sample(model, False))
    assert capsys.readouterr().out == ""
    longer = [[*range(5, 27)], [3, 4]]
    assert_same(sample(model, True, longer), sample(model, False, longer))
    assert "without a graph" in capsys.readouterr().out


def test_memory_that_runs_out_is_not_taken_for_a_model_without_graphs(tiny, monkeypatch, capsys):
    plain = sampling.GraphLayer.update

    def short_of_memory(layer, keys_RH1E, *more, **__):
        if len(keys_RH1E) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(layer, keys_RH1E, *more)

    expected = sample(tiny, False)
    monkeypatch.setattr(sampling.GraphLayer, "update", short_of_memory)
    assert_same(sample(tiny, True), expected)
    line = "out of memory: sampling continues with 6 rows at a time\n"
    assert capsys.readouterr().out == line and tiny.columns_by_graph == 10 + T


# ---- what only a GPU does ----


class NothingIsRead(TorchDispatchMode):
    """Refuses the operations that make Python wait for a number, or for how many there are."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        reads = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")
        if operation.overloadpacket.__name__ in reads:
            raise AssertionError(f"{operation} is read by Python")
        return operation(*args, **kwargs or {})


READ_BY_PYTHON = {"MPT"}  # it asks whether its bias is longer than the text


@pytest.mark.parametrize("family", RIGHT)
@torch.no_grad()
def test_python_reads_no_number_of_a_step(family, monkeypatch):
    """Neither in a recorded step nor in a plain one, whose layers are as on a GPU."""
    seen, plain = [], sampling.graph_step

    def guarded(*arguments):
        with NothingIsRead():
            seen.append(plain(*arguments))
        return seen[-1]

    monkeypatch.setattr(sampling, "graph_step", guarded)
    model = tiny_family(family)
    sample(model, True, PROMPTS)
    assert bool(seen) == (family not in READ_BY_PYTHON)


@torch.no_grad()
def test_a_plain_step_on_a_gpu_reads_no_mask(tiny):
    for model in (tiny, tiny_model(Gemma3TextConfig, head_dim=4, sliding_window=8)):
        for prompts in (SHORT, [[5, 6, 7]] * 2):
            cache, mask_BP, logits_BV = prefill(model, prompts, 4)
            for layer in cache.layers:
                layer.is_compileable = True
            mask_BL = torch.cat([mask_BP, torch.ones(len(prompts), 1, dtype=torch.bool)], dim=1)
            with NothingIsRead():
                next_logits(model, logits_BV.argmax(-1)[:, None], mask_BL, cache)


def test_a_gpu_records_after_a_run_that_may_not_wait(monkeypatch):
    """The order of calls: a guarded run, the recording, replays; the guard goes off on errors."""
    calls = []
    monkeypatch.setattr(sampling, "graph_step", lambda *_: calls.append("step") or len(calls))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", calls.append)
    graph = SimpleNamespace(replay=lambda: calls.append("replay"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: calls.append("record") or nullcontext())
    model = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    arguments = model, SimpleNamespace(layers=[]), SimpleNamespace(column_1=None), 8
    logits, step = sampling.record(*arguments)
    assert (logits, step(), step()) == (2, 5, 5)
    assert calls == ["error", "step", "default", "record", "step", "replay", "replay"]
    calls.clear()

    def waits(*_):
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(sampling, "graph_step", waits)
    with pytest.raises(RuntimeError, match="synchronizing"):
        sampling.record(*arguments)
    assert calls == ["error", "default"]


# ---- packed weights on a CPU ----


packs = pytest.mark.skipif(not sampling.can_pack(tiny_llama()), reason="torch without oneDNN")


@packs
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (3, 7)])
@torch.no_grad()
def test_packed_products_are_those_of_float64(dtype, tolerance, shape):
    """Each linear layer of a model with biases, and its head; in float64 from the same weights."""
    model = tiny_model(Qwen2Config, dtype=dtype)
    if not sampling.can_pack(model):
        pytest.skip("no bfloat16 in this processor's oneDNN")
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    assert 0 < len(biases) < len(layers)
    for bias in biases:
        bias.normal_()  # a new model has zeros
    with packed_weights(model):
        for layer in layers:
            assert "forward" in vars(layer)
            x = torch.randn(*shape, layer.in_features, dtype=dtype)
            bias = None if layer.bias is None else layer.bias.double()
            expected = torch.nn.functional.linear(x.double(), layer.weight.double(), bias)
            scale = expected.abs().max()
            assert (layer(x).double() - expected).abs().max() <= tolerance * scale


@packs
def test_the_model_is_left_as_it_was(tiny):
    """Also after an exception, in the sampler or while packing; a replaced forward stays."""
    weights = {name: weight.clone() for name, weight in tiny.state_dict().items()}
    own = tiny.model.layers[0].mlp.up_proj
    own.forward = lambda x, plain=own.forward: plain(x)
    before = {id(module): dict(vars(module)) for module in tiny.modules()}
    with pytest.raises(KeyboardInterrupt), packed_weights(tiny):
        assert "forward" in vars(tiny.lm_head)
        raise KeyboardInterrupt
    reordered = []

    def fail(weight):
        reordered.append(weight)
        if len(reordered) == 3:
            raise RuntimeError("could not create a memory")
        return weight

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", fail)
        with packed_weights(tiny):
            pass
    assert len(reordered) == 3
    for module in tiny.modules():
        assert vars(module).keys() == before[id(module)].keys()
    assert vars(own)["forward"] is before[id(own)]["forward"]
    assert all(torch.equal(weight, weights[name]) for name, weight in tiny.state_dict().items())


@packs
def test_the_sampler_multiplies_by_packed_weights_and_draws_the_same(tiny, monkeypatch):
    packed = []

    def noted(*arguments, plain=sampling.multiply_packed):
        packed.append(1)
        return plain(*arguments)

    monkeypatch.setattr(sampling, "multiply_packed", noted)
    found = sample(tiny, False)
    assert packed
    packed.clear()
    monkeypatch.setattr(sampling, "can_pack", lambda model: False)
    assert_same(sample(tiny, False), found)
    assert not packed


@pytest.mark.parametrize("missing", ["operators", "oneDNN", "dtype", "bfloat16", "device"])
def test_the_plain_product_stays_where_oneDNN_cannot_pack(missing, monkeypatch):
    dtypes = {"dtype": torch.float64, "bfloat16": torch.bfloat16}
    model = tiny_llama(dtype=dtypes.get(missing, torch.float32))
    if missing == "operators":
        monkeypatch.setattr(torch, "ops", SimpleNamespace())
    if missing == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    if missing == "bfloat16":
        unsupported = SimpleNamespace(
            _reorder_linear_weight=None, _is_mkldnn_bf16_supported=lambda: False
        )
        monkeypatch.setattr(torch, "ops", SimpleNamespace(mkldnn=unsupported))
    if missing == "device":
        model = model.to("meta")
    with packed_weights(model):
        assert not any("forward" in vars(module) for module in model.modules())
