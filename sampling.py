"""Sampling from a causal language model with a key-value cache, written out, and the hidden states of given completions.

Needs torch and transformers. Shape key: B sequences, P padded prompt, T completion tokens, L = P + T, V vocabulary, D hidden.

Sampling and scoring use the same softmax. The model's own generation_config is never read: a top_k or a repetition
penalty that comes with a checkpoint would draw from another distribution than the one the loss differentiates.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache


@dataclass
class Rollout:
    """Completions of B prompts, padded on the right to the longest."""
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor    # true through the first EOS
    token_logprobs_BT: torch.Tensor     # nats, of the model's full softmax at the sampling temperature; 0 on padding
    finished_B: torch.Tensor            # true where an EOS was drawn, false where max_new_tokens ended it


@torch.no_grad()
def sample_completions(model, prompt_ids, *, max_new_tokens, uniforms_BT=None, temperature=1.0, top_p=1.0,
                       eos_token_ids, pad_token_id):
    """Sample one completion for each prompt -> Rollout.  Algorithm 1, l. 5-7: y ~ student(. | x).

    prompt_ids      a list of B lists of token ids, of any lengths
    uniforms_BT     [B, max_new_tokens] numbers in [0, 1): token t of row b is where the softmax's cumulative sum passes
                    uniforms_BT[b, t], so a row's draws do not depend on which rows stand beside it
    temperature     0 means greedy, which needs no uniforms (token_logprobs_BT is then at temperature 1)
    top_p           below 1: only the smallest set of tokens with at least this probability (ties by token id)
    eos_token_ids   any of them ends a row; the EOS belongs to the completion
    Raises ValueError for an empty prompt, and for a temperature above 0 without uniforms.
    """
    _check_sampling_arguments(prompt_ids, max_new_tokens, uniforms_BT, temperature, top_p)
    device = model.device
    B, T = len(prompt_ids), max_new_tokens
    input_ids, mask = _pad_left(prompt_ids, pad_token_id, device)            # [B, P]; mask grows by a column a step
    eos_token_ids = torch.tensor(sorted(eos_token_ids), device=device)
    completion_ids_BT = torch.full((B, T), pad_token_id, dtype=torch.long, device=device)
    token_logprobs_BT = torch.zeros(B, T, device=device)
    length_B = torch.full((B,), T, device=device)
    finished_B = torch.zeros(B, dtype=torch.bool, device=device)
    if uniforms_BT is not None:
        uniforms_BT = uniforms_BT.to(device)

    cache = DynamicCache(config=model.config)
    rows = torch.arange(B, device=device)                                    # the rows of the batch that still run
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)                         # explicit: padding on the left shifts nothing
    for t in range(T):
        logits_BV = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache,
                          use_cache=True, logits_to_keep=1).logits[:, -1].float()
        logprobs_BV = (logits_BV / (temperature or 1.0)).log_softmax(-1)
        if temperature == 0:
            next_ids = logits_BV.argmax(-1)
        else:
            next_ids = inverse_cdf_sample(logprobs_BV, uniforms_BT[rows, t], top_p)
        completion_ids_BT[rows, t] = next_ids
        token_logprobs_BT[rows, t] = logprobs_BV.gather(1, next_ids[:, None])[:, 0]

        ended = torch.isin(next_ids, eos_token_ids)
        finished_B[rows[ended]] = True
        length_B[rows[ended]] = t + 1
        keep = (~ended).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(rows):                                            # finished rows leave, their cache too
            rows, next_ids, mask, position_ids = rows[keep], next_ids[keep], mask[keep], position_ids[keep]
            for layer in cache.layers:
                layer.batch_select_indices(keep)
        input_ids = next_ids[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        position_ids = position_ids[:, -1:] + 1

    T = int(length_B.max())
    completion_mask_BT = torch.arange(T, device=device) < length_B[:, None]  # never ids != pad: pad may equal EOS
    return Rollout(completion_ids_BT[:, :T], completion_mask_BT, token_logprobs_BT[:, :T], finished_B)


def inverse_cdf_sample(logprobs_BV, uniforms_B, top_p=1.0):
    """The token at which the cumulative sum of the probabilities, in the order of the ids, first exceeds the uniform -> [B]."""
    probs_BV = logprobs_BV.double().exp()              # float64: 100,000 float32 terms do not add up to 1
    if top_p < 1:
        sorted_BV, ids_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p               # the mass before a token reaches top_p already
        probs_BV = probs_BV.scatter(1, ids_BV, sorted_BV.masked_fill(outside_BV, 0.0))
    cdf_BV = probs_BV.cumsum(-1)
    # times the total, so that u just below 1 stays inside; right=True, so that u = 0 never draws a token of probability 0
    thresholds_B1 = uniforms_B.double()[:, None] * cdf_BV[:, -1:]
    return torch.searchsorted(cdf_BV, thresholds_B1, right=True)[:, 0].clamp(max=cdf_BV.shape[1] - 1)


def completion_hidden(model, prompt_ids, completion_ids_BT, completion_mask_BT):
    """The final hidden state that predicts each completion token -> hidden_BTD (arbitrary where the mask is false).

    One pass over prompt + completion, joined without a gap and padded on the RIGHT: a causal model then needs neither
    mask nor position ids, and keeps its fast attention. `model.lm_head(hidden_BTD)` are the logits of the completion.
    """
    device = completion_ids_BT.device
    lengths = completion_mask_BT.sum(1).tolist()
    rows = [torch.cat([torch.tensor(prompt, device=device), ids_T[:length]])
            for prompt, ids_T, length in zip(prompt_ids, completion_ids_BT, lengths)]
    input_ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden_BLD = model.base_model(input_ids=input_ids_BL, use_cache=False).last_hidden_state
    # token t stands at len(prompt) + t, so the state one place earlier predicts it
    prompt_len_B1 = torch.tensor([[len(prompt)] for prompt in prompt_ids], device=device)
    index_BT = prompt_len_B1 - 1 + torch.arange(completion_ids_BT.shape[1], device=device)
    index_BT = index_BT.clamp(max=input_ids_BL.shape[1] - 1)
    return hidden_BLD.gather(1, index_BT[:, :, None].expand(-1, -1, hidden_BLD.shape[2]))


def _pad_left(prompt_ids, pad_token_id, device):
    P = max(len(prompt) for prompt in prompt_ids)
    ids_BP = torch.tensor([[pad_token_id] * (P - len(prompt)) + list(prompt) for prompt in prompt_ids], device=device)
    mask_BP = torch.tensor([[0] * (P - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids], device=device)
    return ids_BP, mask_BP


def _check_sampling_arguments(prompt_ids, max_new_tokens, uniforms_BT, temperature, top_p):
    for row, prompt in enumerate(prompt_ids):
        if len(prompt) == 0:
            raise ValueError(f"prompt_ids[{row}] is empty; a model needs at least one token to continue")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be >= 0 and top_p in (0, 1]; got {temperature} and {top_p}")
    if temperature > 0 and uniforms_BT is None:
        raise ValueError(f"temperature {temperature} needs uniforms_BT; pass them, or temperature=0 for greedy")
    if uniforms_BT is not None and (uniforms_BT.shape[0] != len(prompt_ids) or uniforms_BT.shape[1] < max_new_tokens):
        raise ValueError(f"uniforms_BT has shape {tuple(uniforms_BT.shape)}; "
                         f"{len(prompt_ids)} prompts and {max_new_tokens} new tokens need [{len(prompt_ids)}, {max_new_tokens}]")
