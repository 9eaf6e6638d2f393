"""The sampler and completion_hidden.

Oracles: row-by-row forwards of the whole sequence without cache or padding; Hugging Face's own generate; the exact softmax
(chi-square); hand-made distributions for the inverse CDF.
"""

import pytest
import torch

from transformers import MistralConfig, Olmo3Config, Qwen2Config

import sampling
from conftest import gradients, tiny_llama, tiny_model
from models import checkpoint_layers
from sampling import completion_hidden, inverse_cdf_sample, sample_completions

PROMPTS = [[5, 6, 7, 8, 9], [3], [10, 11, 12]]
START = [30, 31, 32, 33, 34, 35, 36, 37, 38]             # long enough to be computed once for all rows
SHARING = [START + prompt for prompt in PROMPTS + [[3]]]   # two of them equal
STOP = {"eos_token_ids": [1], "pad_token_id": 1}      # pad is EOS, the common trap


def uniforms(B, T, seed=0):
    return torch.rand(B, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(rollout, b):
    """The unpadded completion of a row and its log-probabilities."""
    mask = rollout.completion_mask_BT[b]
    return rollout.completion_ids_BT[b][mask].tolist(), rollout.token_logprobs_BT[b][mask]


def plain_logprobs(model, prompt, completion, temperature=1.0):
    """Log-probabilities of the completion from one unpadded, uncached forward."""
    logits_TV = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1]
    return (logits_TV / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("prompts", [PROMPTS * 8, SHARING * 6], ids=["apart", "sharing a start"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_cached_logprobs_equal_teacher_forced_ones(tiny, temperature, prompts):
    rollout = sample_completions(tiny, prompts, max_new_tokens=20, uniforms_BT=uniforms(24, 20), temperature=temperature, **STOP)
    assert len({len(row(rollout, b)[0]) for b in range(24)}) > 2       # rows ended at different lengths, so some left early
    for b, prompt in enumerate(prompts):
        completion, logprobs = row(rollout, b)
        torch.testing.assert_close(logprobs, plain_logprobs(tiny, prompt, completion, temperature), rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_rows, attention", [(2, "sdpa"), (5, "sdpa"), (15, "sdpa"), (5, "eager")])
def test_rows_that_take_free_places_draw_what_they_draw_at_once(max_rows, attention):
    """Longer prompts come later, shorter ones in between, and the columns of the cache are used in turn several times over."""
    model = tiny_llama()
    model.set_attn_implementation(attention)        # eager takes no mask of ours: there a new group starts when all rows have ended
    prompts = (PROMPTS + SHARING + [[4] * 30]) * 2
    options = dict(max_new_tokens=20, uniforms_BT=uniforms(16, 20), **STOP)
    together, in_turns = sample_completions(model, prompts, **options), sample_completions(model, prompts, max_rows=max_rows, **options)
    for b, prompt in enumerate(prompts):
        completion, logprobs = row(in_turns, b)
        assert completion == row(together, b)[0] and in_turns.finished_B[b] == together.finished_B[b]
        torch.testing.assert_close(logprobs, plain_logprobs(model, prompt, completion), rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_rows", [None, 5])
@pytest.mark.parametrize("config_class, more", [(Qwen2Config, {}), (Olmo3Config, {"sliding_window": 8, "num_hidden_layers": 4}),
                                                (MistralConfig, {"sliding_window": 8})], ids=["qwen2", "olmo3", "mistral"])
def test_other_architectures(config_class, more, max_rows):
    """Biases; layers with and without a sliding window, named in layer_types; a window that no layer_types tell of."""
    model, prompts = tiny_model(config_class, **more), (PROMPTS + SHARING + [[4] * 30]) * 2
    rollout = sample_completions(model, prompts, max_new_tokens=20, uniforms_BT=uniforms(16, 20), max_rows=max_rows, **STOP)
    hidden_BTD = completion_hidden(model, prompts, rollout.completion_ids_BT, rollout.completion_mask_BT)
    for b, prompt in enumerate(prompts):
        completion, logprobs = row(rollout, b)
        expected = plain_logprobs(model, prompt, completion)
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-4)
        scored = model.lm_head(hidden_BTD[b, :len(completion)]).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(scored, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("T", [16, 20, 33])
@pytest.mark.parametrize("config_class", [Qwen2Config, Olmo3Config])
def test_the_pace_of_a_gpu_draws_the_same(config_class, T, monkeypatch):
    """It looks rarely whether rows have ended, so that some stand there ended; with a sliding window groups begin one after the other."""
    model, prompts = tiny_model(config_class, num_hidden_layers=4, **{"sliding_window": 8} if config_class is Olmo3Config else {}), PROMPTS * 4
    options = dict(max_new_tokens=T, uniforms_BT=uniforms(12, T), max_rows=3, **STOP)
    expected = sample_completions(model, prompts, **options)
    monkeypatch.setattr(sampling, "_pace", lambda device: (16, 0.5))
    found = sample_completions(model, prompts, **options)
    assert [row(found, b)[0] for b in range(12)] == [row(expected, b)[0] for b in range(12)]


def test_greedy_tokens_equal_generate_row_by_row(tiny):
    rollout = sample_completions(tiny, PROMPTS, max_new_tokens=12, temperature=0, **STOP)
    for b, prompt in enumerate(PROMPTS):
        expected = tiny.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                                 max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=1)[0, len(prompt):].tolist()
        assert row(rollout, b)[0] == expected


def test_mask_ends_with_the_first_eos_though_pad_is_eos(tiny):
    rollout = sample_completions(tiny, PROMPTS * 8, max_new_tokens=20, uniforms_BT=uniforms(24, 20), **STOP)
    assert rollout.finished_B.any() and not rollout.finished_B.all()
    for b in range(24):
        completion, _ = row(rollout, b)
        assert (completion[-1] == 1) == bool(rollout.finished_B[b])
        assert 1 not in completion[:-1] and (rollout.finished_B[b] or len(completion) == 20)
    assert rollout.completion_ids_BT.shape[1] == rollout.completion_mask_BT.sum(1).max()


def test_every_eos_ends_a_row(tiny):
    rollout = sample_completions(tiny, PROMPTS * 8, max_new_tokens=20, uniforms_BT=uniforms(24, 20), eos_token_ids=[1, 4, 9], pad_token_id=0)
    last = {row(rollout, b)[0][-1] for b in range(24) if rollout.finished_B[b]}
    assert len(last) > 1 and last <= {1, 4, 9}


def test_a_row_alone_draws_what_it_draws_in_a_batch(tiny):
    u = uniforms(3, 20)
    together = sample_completions(tiny, PROMPTS, max_new_tokens=20, uniforms_BT=u, **STOP)
    for b, prompt in enumerate(PROMPTS):
        alone = sample_completions(tiny, [prompt], max_new_tokens=20, uniforms_BT=u[b:b + 1], **STOP)
        assert row(alone, 0)[0] == row(together, b)[0]


def test_generation_config_of_the_checkpoint_changes_nothing(tiny):
    u = uniforms(3, 20)
    before = sample_completions(tiny, PROMPTS, max_new_tokens=20, uniforms_BT=u, **STOP)
    tiny.generation_config.update(top_k=1, repetition_penalty=5.0, do_sample=True, temperature=0.1)
    after = sample_completions(tiny, PROMPTS, max_new_tokens=20, uniforms_BT=u, **STOP)
    assert torch.equal(before.completion_ids_BT, after.completion_ids_BT)


def test_draws_follow_the_softmax():
    """Chi-square of 20,000 first tokens against the exact distribution, 9 degrees of freedom: above 27.9 in one of 1,000."""
    model = tiny_llama(vocab_size=10)
    n = 20_000
    probs = model(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    rollout = sample_completions(model, [[5, 6]] * n, max_new_tokens=1, uniforms_BT=uniforms(n, 1), eos_token_ids=[0], pad_token_id=0)
    counts = torch.bincount(rollout.completion_ids_BT[:, 0], minlength=10)
    assert ((counts - n * probs).square() / (n * probs)).sum() < 27.9


def test_inverse_cdf_by_hand():
    """Probabilities 0.2, 0, 0.5, 0.3: the cumulative sum passes u at token 0 below 0.2, at 2 below 0.7, else at 3; never at 1."""
    logprobs = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).log()
    for u, token in [(0.0, 0), (0.1999, 0), (0.2001, 2), (0.6999, 2), (0.7001, 3), (1 - 2 ** -53, 3)]:
        assert inverse_cdf_sample(logprobs, torch.tensor([u], dtype=torch.float64)).item() == token
    zero_first = torch.tensor([[0.0, 1.0]]).log()
    assert inverse_cdf_sample(zero_first, torch.tensor([0.0])).item() == 1


def test_top_p_by_hand():
    """top_p 0.6 of 0.2, 0, 0.5, 0.3 keeps 0.5 and 0.3: token 2 below 0.625, token 3 above. top_p 0.5 keeps 0.5 alone."""
    logprobs = torch.tensor([[0.2, 0.0, 0.5, 0.3]], dtype=torch.float64).log()
    for top_p, u, token in [(0.6, 0.0, 2), (0.6, 0.62, 2), (0.6, 0.63, 3), (0.5, 0.999, 2), (0.81, 0.1, 0)]:
        assert inverse_cdf_sample(logprobs, torch.tensor([u], dtype=torch.float64), top_p).item() == token


def test_padding_at_the_end_is_never_drawn_far_out():
    """At V = 150,000 the cumulative sum of float32 probabilities is off by more than 1e-4; the last token of mass 0 is not drawn."""
    logits = torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0))
    logits[0, -1000:] = -torch.inf
    assert inverse_cdf_sample(logits.log_softmax(-1), torch.tensor([1 - 2 ** -53], dtype=torch.float64)).item() < 149_000


def test_completion_hidden_equals_unpadded_rows(tiny):
    rollout = sample_completions(tiny, PROMPTS, max_new_tokens=20, uniforms_BT=uniforms(3, 20), **STOP)
    hidden_BTD = completion_hidden(tiny, PROMPTS, rollout.completion_ids_BT, rollout.completion_mask_BT)
    for b, prompt in enumerate(PROMPTS):
        completion, _ = row(rollout, b)
        expected_TD = tiny.base_model(torch.tensor([prompt + completion])).last_hidden_state[0, len(prompt) - 1:-1]
        torch.testing.assert_close(hidden_BTD[b, :len(completion)], expected_TD, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arguments, message", [
    (dict(prompt_ids=[[3], []], uniforms_BT=uniforms(2, 4)), r"prompt_ids\[1\] is empty"),
    (dict(prompt_ids=[[3]]), "needs uniforms_BT"),
    (dict(prompt_ids=[[3]], uniforms_BT=uniforms(1, 3)), "shape"),
    (dict(prompt_ids=[[3]], uniforms_BT=uniforms(1, 4), top_p=0.0), "top_p"),
    (dict(prompt_ids=[[3]], temperature=-1.0), "temperature"),
])
def test_refusals(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_completions(tiny, max_new_tokens=4, **STOP, **arguments)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_shared_start_changes_neither_states_nor_gradients(checkpointed):
    """Against one row at a time, which shares nothing; a wrong place or a lost path would differ by much more."""
    model = tiny_llama(dtype=torch.float64)
    ids_BT, mask_BT = torch.randint(2, 40, (4, 6)), torch.arange(6) < torch.tensor([[6], [2], [4], [6]])
    weights_BTD = torch.randn(4, 6, 16, dtype=torch.float64) * mask_BT[:, :, None]
    alone_BTD = [completion_hidden(model, [prompt], ids_BT[b:b + 1], mask_BT[b:b + 1])[0] for b, prompt in enumerate(SHARING)]
    (torch.stack(alone_BTD) * weights_BTD).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    if checkpointed:
        checkpoint_layers(model)
    lengths, plain = [], model.base_model.forward
    model.base_model.forward = lambda input_ids, **more: lengths.append(tuple(input_ids.shape)) or plain(input_ids=input_ids, **more)
    hidden_BTD = completion_hidden(model, SHARING, ids_BT, mask_BT)
    assert lengths == [(1, len(START)), (4, 11)]            # the start once, then what is each row's own
    for b in range(4):
        torch.testing.assert_close(hidden_BTD[b][mask_BT[b]], alone_BTD[b][mask_BT[b]], rtol=0, atol=1e-12)
    (hidden_BTD * weights_BTD).sum().backward()
    torch.testing.assert_close(gradients(model), expected, rtol=0, atol=1e-6 * expected.abs().max().item())    # norms are in float32
