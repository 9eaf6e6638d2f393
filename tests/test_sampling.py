"""The sampler and completion_hidden.

Oracles: row-by-row forwards of the whole sequence without cache or padding; Hugging Face's own
generate; the exact softmax (chi-square); hand-made distributions for the inverse CDF.
"""

import copy
import inspect
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_llama, tiny_model
from transformers import (
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo3Config,
    Qwen2Config,
)

import sampling
from sampling import (
    completion_hidden,
    draw,
    output_head,
    prefill,
    rows_that_fit,
    sample_completions,
    stop_tokens,
)

PROMPTS = [[5, 6, 7, 8, 9], [3], [10, 11, 12], [30, 31, 32, 33, 34, 35, 36, 37, 38, 5]]
STOP = {"eos_token_ids": [1], "pad_token_id": 1}  # pad is EOS, the common trap


def uniforms(B, T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, T, generator=generator, dtype=torch.float64)


def completion(rollout, b):
    """The unpadded completion of a row."""
    return rollout.completion_ids_BT[b][rollout.completion_mask_BT[b]].tolist()


def plain_logprobs(model, prompt, ids, temperature=1.0):
    """Log-probabilities at each token of a completion, from one unpadded, uncached forward."""
    logits_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return (logits_TV / temperature).log_softmax(-1)


@pytest.fixture
def seen_logits(monkeypatch):
    """The logits that draw receives in each step of a sampler that drops no row."""
    seen = []

    def noted_draw(logits_RV, *arguments):
        seen.append(logits_RV)
        return draw(logits_RV, *arguments)

    monkeypatch.setattr(sampling, "draw", noted_draw)
    return seen


@pytest.mark.parametrize(
    "config_class, more",
    [
        (None, {}),
        (Qwen2Config, {}),
        (Olmo3Config, {"sliding_window": 8, "num_hidden_layers": 4}),
        (MistralConfig, {"sliding_window": 8}),
    ],
    ids=["llama", "qwen2", "olmo3", "mistral"],
)
def test_cached_logprobs_equal_teacher_forced_ones(config_class, more, seen_logits):
    """Biases; layers with and without a window, named in layer_types; a window they do not name."""
    model = tiny_model(config_class, **more) if config_class else tiny_llama()
    options = {"max_new_tokens": 20, "uniforms_BT": uniforms(16, 20), **STOP}
    rollout = sample_completions(model, PROMPTS * 4, **options, check_every=100)
    sampled_BTV = torch.stack(seen_logits, dim=1).log_softmax(-1)
    ids_BT, mask_BT = rollout.completion_ids_BT, rollout.completion_mask_BT
    assert len(set(mask_BT.sum(1).tolist())) > 2
    hidden_BTD = completion_hidden(model, PROMPTS * 4, ids_BT, mask_BT)
    for b, prompt in enumerate(PROMPTS * 4):
        ids = completion(rollout, b)
        expected_TV = plain_logprobs(model, prompt, ids)
        for found_TV in (sampled_BTV[b, : len(ids)], model.lm_head(hidden_BTD[b, : len(ids)])):
            found_TV = found_TV.log_softmax(-1)
            torch.testing.assert_close(found_TV, expected_TV, rtol=0, atol=1e-4)


def test_a_bfloat16_model_is_drawn_from_in_float32(seen_logits):
    model = tiny_llama(dtype=torch.bfloat16)
    draws_BT = uniforms(len(PROMPTS), 3)
    sample_completions(model, PROMPTS, max_new_tokens=3, uniforms_BT=draws_BT, **STOP)
    assert {logits_RV.dtype for logits_RV in seen_logits} == {torch.float32}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_are_drawn_from_teacher_forced_distributions(tiny, temperature):
    """Rows leave while others run on, and each token is still the one that its uniform selects."""
    u_BT = uniforms(32, 20)
    options = {"max_new_tokens": 20, "uniforms_BT": u_BT, "temperature": temperature, **STOP}
    rollout = sample_completions(tiny, PROMPTS * 8, **options)
    assert len({len(completion(rollout, b)) for b in range(32)}) > 2
    for b, prompt in enumerate(PROMPTS * 8):
        ids = completion(rollout, b)
        cdf_TV = plain_logprobs(tiny, prompt, ids, temperature).exp().double().cumsum(-1)
        cdf_TV = torch.nn.functional.pad(cdf_TV, (1, 0))
        T = torch.arange(len(ids))
        low_T, high_T = cdf_TV[T, ids], cdf_TV[T, torch.tensor(ids) + 1]
        u_T = u_BT[b, : len(ids)]
        assert (low_T - 1e-4 <= u_T).all() and (u_T <= high_T + 1e-4).all()


@pytest.mark.parametrize("config_class", [Qwen2Config, Olmo3Config])
@pytest.mark.parametrize("T", [16, 20, 33])
def test_looking_rarely_for_finished_rows_draws_the_same(config_class, T):
    """Rows that have ended stay a while, as on a GPU."""
    window = {"sliding_window": 8} if config_class is Olmo3Config else {}
    model = tiny_model(config_class, num_hidden_layers=4, **window)
    options = {"max_new_tokens": T, "uniforms_BT": uniforms(12, T), **STOP}
    expected = sample_completions(model, PROMPTS * 3, **options, check_every=1)
    found = sample_completions(model, PROMPTS * 3, **options, check_every=16)
    for name in ("completion_ids_BT", "completion_mask_BT", "finished_B"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_the_cache_goes_by_the_name_that_the_model_gives_it(tiny):
    """transformers 5.24 calls it `cache`, earlier versions past_key_values."""
    options = {"max_new_tokens": 6, "uniforms_BT": uniforms(len(PROMPTS), 6), **STOP}
    expected = sample_completions(tiny, PROMPTS, **options)
    own = {"cache", "past_key_values"} & inspect.signature(tiny.forward).parameters.keys()
    for name in ("cache", "past_key_values"):

        def forward(input_ids, plain=tiny.forward, passed=name, **inputs):
            return plain(input_ids=input_ids, **{next(iter(own)): inputs.pop(passed)}, **inputs)

        named = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        forward.__signature__ = inspect.Signature([named])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "forward", forward)
            found = sample_completions(tiny, PROMPTS, **options)
        assert torch.equal(found.completion_ids_BT, expected.completion_ids_BT)


def test_rows_that_ended_are_dropped_as_often_as_asked(tiny):
    """Rows in each pass: all of them until the first look after an end."""
    u_BT, sizes, plain = uniforms(16, 12), [], tiny.forward
    tiny.forward = lambda input_ids, **more: (
        sizes.append(len(input_ids)) or plain(input_ids=input_ids, **more)
    )
    options = {"max_new_tokens": 12, "uniforms_BT": u_BT, **STOP}
    lengths_B = sample_completions(tiny, PROMPTS * 4, **options).completion_mask_BT.sum(1)
    running = [int((lengths_B > t).sum()) for t in range(1, 12)]
    assert sizes == [8, 8] + [rows for rows in running if rows]
    sizes.clear()
    sample_completions(tiny, PROMPTS * 4, **options, check_every=4)
    assert sizes == [8, 8] + [16] * 3 + [running[3]] * 4 + [running[7]] * 4


def test_greedy_tokens_equal_generate_row_by_row(tiny):
    rollout = sample_completions(tiny, PROMPTS, max_new_tokens=12, temperature=0, **STOP)
    for b, prompt in enumerate(PROMPTS):
        expected = tiny.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=1,
        )
        assert completion(rollout, b) == expected[0, len(prompt) :].tolist()


def test_mask_ends_with_the_first_eos_though_pad_is_eos(tiny):
    options = {"max_new_tokens": 20, "uniforms_BT": uniforms(24, 20)}
    rollout = sample_completions(tiny, PROMPTS * 6, **options, **STOP)
    assert rollout.finished_B.any() and not rollout.finished_B.all()
    for b in range(24):
        ids = completion(rollout, b)
        assert (ids[-1] == 1) == bool(rollout.finished_B[b])
        assert 1 not in ids[:-1] and (rollout.finished_B[b] or len(ids) == 20)
    assert rollout.completion_ids_BT.shape[1] == rollout.completion_mask_BT.sum(1).max()


def test_every_eos_ends_a_row(tiny):
    options = {"max_new_tokens": 20, "uniforms_BT": uniforms(24, 20)}
    options |= {"eos_token_ids": [1, 4, 9], "pad_token_id": 0}
    rollout = sample_completions(tiny, PROMPTS * 6, **options)
    last = {completion(rollout, b)[-1] for b in range(24) if rollout.finished_B[b]}
    assert len(last) > 1 and last <= {1, 4, 9}
    assert rollout.completion_ids_BT[~rollout.completion_mask_BT].unique().tolist() == [0]


def test_a_row_alone_draws_what_it_draws_in_a_batch(tiny):
    u_BT, options = uniforms(4, 20), {"max_new_tokens": 20, **STOP}
    together = sample_completions(tiny, PROMPTS, uniforms_BT=u_BT, **options)
    for b, prompt in enumerate(PROMPTS):
        alone = sample_completions(tiny, [prompt], uniforms_BT=u_BT[b : b + 1], **options)
        assert completion(alone, 0) == completion(together, b)


def test_groups_of_a_prefill_end_at_one_column(tiny):
    """Oracle: each prompt's own pass. mask_BP is true where a prompt's own keys are cached."""
    for group_size in (1, 3, 4):
        cache, mask_BP, logits_BV = prefill(tiny, PROMPTS, 5, group_size)
        for b, prompt in enumerate(PROMPTS):
            assert mask_BP[b].tolist() == [column >= 10 - len(prompt) for column in range(10)]
            alone = tiny(torch.tensor([prompt]), use_cache=True)
            torch.testing.assert_close(logits_BV[b], alone.logits[0, -1], rtol=0, atol=1e-5)
            keys_HLE = cache.layers[1].buffers[0][b]
            assert keys_HLE.shape[1] == 15
            expected_HPE = alone.past_key_values.layers[1].keys[0]
            found_HPE = keys_HLE[:, :10][:, mask_BP[b]]
            torch.testing.assert_close(found_HPE, expected_HPE, rtol=0, atol=1e-5)


# ---- memory: no test needs a GPU ----


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_rows_are_bounded_by_the_memory_that_is_free(dtype, size, monkeypatch):
    """A row of 60 columns: keys and values of 2 layers, 2 heads of 4 numbers; 28 bytes an id.

    Beside them 8 prompts of 10 tokens pass, of which a layer has 4 hidden and 3 inner widths. All
    take four fifths of what is free, and of what the allocator holds without using it.
    """
    memory = {"free": 0, "reserved": 0, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (memory["free"], 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: memory["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: memory["allocated"])
    model, row = tiny_llama(dtype=dtype), 2 * 2 * 2 * 4 * size * 60 + 28 * 40
    config, prompts = model.config, [[1] * 10] * 100
    pass_of_prompts = 8 * 10 * (4 * config.hidden_size + 3 * config.intermediate_size) * size
    for rows in (2, 7, 99):
        needed = (row * rows + pass_of_prompts) * 5 // 4
        memory |= {"free": needed + 2, "reserved": 0, "allocated": 0}
        assert rows_that_fit(model, prompts, 60) == rows
        memory["free"] = needed - 2
        assert rows_that_fit(model, prompts, 60) == rows - 1
        memory |= {"free": 2, "reserved": 10**9 + needed, "allocated": 10**9}
        assert rows_that_fit(model, prompts, 60) == rows
    memory["reserved"] = 10**12
    assert rows_that_fit(model, prompts, 60) == 100  # never more than there are
    model.most_rows = 7  # memory ran out with more before
    assert rows_that_fit(model, prompts, 60) == 7
    memory["reserved"] = memory["allocated"]
    assert rows_that_fit(model, prompts, 60) == 1  # is tried, whatever is free


def test_a_gpu_decodes_as_many_rows_as_fit_and_a_cpu_all(tiny, monkeypatch):
    """The model says once that it is on a GPU; PROMPTS of at most 10 tokens and 20 new ones."""
    together, plain = [], sampling.decode

    def noted_decode(model, prompt_ids, *arguments):
        together.append(len(prompt_ids))
        plain(model, prompt_ids, *arguments)

    monkeypatch.setattr(sampling, "decode", noted_decode)
    options = {"max_new_tokens": 20, "temperature": 0, **STOP}
    expected = sample_completions(tiny, PROMPTS, **options)
    devices, cpu = iter([SimpleNamespace(type="cuda")]), torch.device("cpu")
    monkeypatch.setattr(type(tiny), "device", property(lambda _: next(devices, cpu)))
    monkeypatch.setattr(sampling, "rows_that_fit", lambda model, prompts, L: {30: 3}[L])
    found = sample_completions(tiny, PROMPTS, **options)
    assert together == [4, 3, 1]
    assert torch.equal(found.completion_ids_BT, expected.completion_ids_BT)


def card_of(rows, column, monkeypatch):
    """Passes with at least so many columns run out of memory above so many rows.

    Asserts that the cache of a pass that failed is freed before the next one.
    """
    plain, failed = sampling.next_logits, []

    def pass_on_the_card(model, ids_RN, mask_RL, cache):
        assert all(reference() is None for reference in failed)
        if mask_RL.shape[1] >= column and len(mask_RL) > rows:
            failed.append(weakref.ref(cache))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(model, ids_RN, mask_RL, cache)

    monkeypatch.setattr(sampling, "next_logits", pass_on_the_card)


@pytest.mark.parametrize("column", [1, 11, 15], ids=["prompts", "first token", "fifth token"])
@pytest.mark.parametrize("fitting, halved_to", [(16, []), (5, [8, 4]), (1, [8, 4, 2, 1])])
def test_out_of_memory_halves_the_rows_and_changes_no_token(
    fitting, halved_to, column, tiny, monkeypatch, capsys
):
    """Groups of 8 prompts pass together, so those fit as soon as 8 or fewer rows do."""
    options = {"max_new_tokens": 8, "uniforms_BT": uniforms(16, 8), **STOP}
    expected = sample_completions(tiny, PROMPTS * 4, **options)
    card_of(fitting, column, monkeypatch)
    found = sample_completions(tiny, PROMPTS * 4, **options, check_every=100)
    for name in ("completion_ids_BT", "completion_mask_BT", "finished_B"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    line = "out of memory: sampling continues with {} rows at a time\n"
    assert capsys.readouterr().out == "".join(line.format(rows) for rows in halved_to)
    assert getattr(tiny, "most_rows", None) == (halved_to[-1] if halved_to else None)


def test_one_row_that_does_not_fit_is_an_error(tiny, monkeypatch):
    card_of(0, 11, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        sample_completions(tiny, PROMPTS, max_new_tokens=20, temperature=0, **STOP)


# ---- what else decides a draw ----


def test_generation_config_of_the_checkpoint_changes_nothing(tiny):
    options = {"max_new_tokens": 20, "uniforms_BT": uniforms(4, 20), **STOP}
    before = sample_completions(tiny, PROMPTS, **options)
    tiny.generation_config.update(top_k=1, repetition_penalty=5.0, do_sample=True, temperature=0.1)
    after = sample_completions(tiny, PROMPTS, **options)
    assert torch.equal(before.completion_ids_BT, after.completion_ids_BT)


def test_draws_follow_the_softmax():
    """Chi-square of 20,000 first tokens, 9 degrees of freedom: above 27.9 in one of 1,000."""
    model, n = tiny_llama(vocab_size=10), 20_000
    probs = model(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    _, _, logits_1V = prefill(model, [[5, 6]], 1)
    drawn = draw(logits_1V.expand(n, -1), uniforms(n, 1)[:, 0])
    counts = torch.bincount(drawn, minlength=10)
    assert ((counts - n * probs).square() / (n * probs)).sum() < 27.9


ONE_LESS_THAN_1 = 1 - 2**-53
BY_HAND = torch.tensor([[0.2, 0.0, 0.5, 0.3]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    "u, token", [(0.0, 0), (0.1999, 0), (0.2001, 2), (0.6999, 2), (0.7001, 3), (ONE_LESS_THAN_1, 3)]
)
def test_inverse_cdf_by_hand(u, token):
    """The cumulative sum passes u at token 0 below 0.2, at 2 below 0.7, else at 3; never at 1."""
    u_R = torch.tensor([u], dtype=torch.float64)
    assert draw(BY_HAND, u_R).item() == token
    zero_first = torch.tensor([[0.0, 1.0]]).log()
    assert draw(zero_first, torch.tensor([0.0])).item() == 1


@pytest.mark.parametrize(
    "top_p, u, token",
    [(0.6, 0, 2), (0.6, 0.62, 2), (0.6, 0.63, 3), (0.5, 0.999, 2), (0.81, 0.1, 0)],
)
def test_top_p_by_hand(top_p, u, token):
    """0.6 keeps 0.5 and 0.3: token 2 below 5/8, token 3 above. 0.5 keeps 0.5 alone."""
    u_R = torch.tensor([u], dtype=torch.float64)
    assert draw(BY_HAND, u_R, top_p=top_p).item() == token


def test_temperature_by_hand():
    """At 1/2 the probabilities 0.2, 0.5, 0.3 become 4, 25 and 9 parts of 38; at 0 the largest."""
    for u, token in [(4 / 38 - 1e-6, 0), (4 / 38 + 1e-6, 2), (29 / 38 - 1e-6, 2), (0.77, 3)]:
        assert draw(BY_HAND, torch.tensor([u], dtype=torch.float64), 0.5).item() == token
    assert draw(BY_HAND, None, 0).item() == 2


def test_padding_at_the_end_is_never_drawn_far_out():
    """At V = 150,000 the cumulative sum of float32 probabilities is off by more than 1e-4."""
    logits = torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0))
    logits[0, -1000:] = -torch.inf
    u_R = torch.tensor([ONE_LESS_THAN_1], dtype=torch.float64)
    assert draw(logits, u_R).item() < 149_000


def test_completion_hidden_equals_unpadded_rows(tiny):
    options = {"max_new_tokens": 20, "uniforms_BT": uniforms(4, 20)}
    rollout = sample_completions(tiny, PROMPTS, **options, **STOP)
    ids_BT, mask_BT = rollout.completion_ids_BT, rollout.completion_mask_BT
    hidden_BTD = completion_hidden(tiny, PROMPTS, ids_BT, mask_BT)
    for b, prompt in enumerate(PROMPTS):
        ids = completion(rollout, b)
        expected_LD = tiny.base_model(torch.tensor([prompt + ids])).last_hidden_state[0]
        expected_TD = expected_LD[len(prompt) - 1 : -1]
        torch.testing.assert_close(hidden_BTD[b, : len(ids)], expected_TD, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt_ids": [[3], []], "uniforms_BT": uniforms(2, 4)}, r"prompt_ids\[1\] is empty"),
        ({"prompt_ids": [[3]]}, "needs uniforms_BT"),
        ({"prompt_ids": [[3]], "uniforms_BT": uniforms(1, 3)}, r"of shape \(1, 4\)"),
        ({"prompt_ids": [[3]], "uniforms_BT": uniforms(2, 4)}, r"of shape \(1, 4\)"),
        ({"prompt_ids": [[3], [40]], "temperature": 0}, "ids beyond the 40 that the model embeds"),
        ({"prompt_ids": [[3] * 2045], "temperature": 0}, "2049 tokens exceed 2048 positions"),
    ],
)
def test_refusals(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_completions(tiny, max_new_tokens=4, **STOP, **arguments)


# ---- the output head, and what ends a completion ----


def test_stop_tokens_are_all_eos_of_model_and_tokenizer(tiny, tokenizer):
    tiny.generation_config.eos_token_id = [7, 9]
    tiny.config.eos_token_id = 5
    tokenizer.pad_token = "<|im_start|>"
    assert stop_tokens(tiny, tokenizer) == {"eos_token_ids": [1, 5, 7, 9], "pad_token_id": 0}
    tokenizer.pad_token = None
    assert stop_tokens(tiny, tokenizer)["pad_token_id"] == 1


@pytest.mark.parametrize(
    "config_class, fields",
    [
        (LlamaConfig, {}),
        (Gemma2Config, {"head_dim": 4, "final_logit_softcapping": 3.0}),
        (GraniteConfig, {"logits_scaling": 8.0}),
        (CohereConfig, {"logit_scale": 0.25}),
    ],
)
def test_a_copied_head_stays_as_it_was(config_class, fields):
    """Oracle: the model's own logits, before and after its weights change."""
    model, ids_BL = tiny_model(config_class, **fields), torch.tensor([[3, 4, 5]])
    frozen = copy.deepcopy(output_head(model))
    before, hidden = model(ids_BL).logits, model.base_model(ids_BL).last_hidden_state
    torch.testing.assert_close(frozen(hidden), before)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    torch.testing.assert_close(frozen(hidden), before)
    assert not torch.allclose(output_head(model)(hidden), before, atol=1e-2)
