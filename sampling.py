"""A KV-cached sampler in five plain parts, to read and to copy. Needs torch and transformers.

    CacheLayer           one layer's keys and values, in buffers of full length
    prefill              the pass over the prompts, which fills the cache
    draw                 logits -> tokens: argmax, or inverse-CDF sampling
    sample_completions   prefill; then draw, store, drop the rows that ended, decode
    completion_hidden    one pass over prompt and completion, without a cache, with gradients

The checkpoint's generation_config is never read: its top_k or repetition penalty would sample from
another distribution than the one that the loss differentiates.
B sequences, R rows still running, P padded prompt, T completion tokens, L = P + T, V vocabulary,
D hidden, H key-value heads, E their size.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass
class Rollout:
    """Completions of B prompts, padded on the right to the longest."""

    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor  # true through the first EOS
    finished_B: torch.Tensor  # true where an EOS was drawn, false where max_new_tokens cut it off


class CacheLayer(DynamicLayer):
    """One layer's keys and values in buffers [B, H, L, E]; a step writes one column in place."""

    def __init__(self, keys_BHLE, values_BHLE, columns):
        super().__init__()
        self.lazy_initialization(keys_BHLE, values_BHLE)
        self.buffers, self.columns = [keys_BHLE, values_BHLE], columns

    def update(self, keys_RH1E, values_RH1E, *args, **kwargs):
        """Called by the model's attention: append one token of each row, return all of them."""
        for buffer_RHLE, new_RH1E in zip(self.buffers, (keys_RH1E, values_RH1E), strict=True):
            buffer_RHLE[:, :, self.columns] = new_RH1E[:, :, 0]
        self.columns += 1
        return [buffer_RHLE[:, :, : self.columns] for buffer_RHLE in self.buffers]

    def keep_rows(self, rows):
        self.buffers = [buffer_RHLE[rows] for buffer_RHLE in self.buffers]

    def get_seq_length(self):
        return self.columns


def prefill(model, prompt_ids, max_new_tokens, pad_token_id, rows_at_once=8):
    """Run the prompts -> (cache with max_new_tokens free columns, mask_BL, logits_BV).

    Prompts of similar length go together, padded on the left to their longest; in the cache all
    prompts end at column P. mask_BL is true at the columns that hold a row's own tokens.
    """
    B, P = len(prompt_ids), max(map(len, prompt_ids))
    L = P + max_new_tokens
    length_B = torch.tensor([len(prompt) for prompt in prompt_ids], device=model.device)
    column_L = torch.arange(L, device=model.device)
    mask_BL = (column_L >= P - length_B[:, None]) & (column_L < P)
    logits, buffers = [], None
    by_length = sorted(range(B), key=lambda row: len(prompt_ids[row]))
    for start in range(0, B, rows_at_once):
        rows = by_length[start : start + rows_at_once]
        prompts = [torch.tensor(prompt_ids[row], device=model.device) for row in rows]
        ids_BP = pad_sequence(prompts, True, pad_token_id, padding_side="left")
        mask_BP = mask_BL[rows, (first := P - ids_BP.shape[1]) : P]
        group_cache = DynamicCache()
        output = model(
            input_ids=ids_BP,
            attention_mask=mask_BP,
            # explicit: padding on the left must not shift the positions
            position_ids=(mask_BP.cumsum(1) - 1).clamp(min=0),
            past_key_values=group_cache,
            use_cache=True,
            logits_to_keep=1,
        )
        states = [(layer.keys, layer.values) for layer in group_cache.layers]
        if buffers is None:
            buffers = [[x.new_zeros(B, x.shape[1], L, x.shape[3]) for x in kv] for kv in states]
        for (keys_BHLE, values_BHLE), kv in zip(buffers, states, strict=True):
            keys_BHLE[rows, :, first:P], values_BHLE[rows, :, first:P] = kv
        logits.append(output.logits[:, -1].float())
    logits_BV = torch.cat(logits)[torch.tensor(by_length).argsort()]  # in the prompts' order again
    return Cache(layers=[CacheLayer(*kv, P) for kv in buffers]), mask_BL, logits_BV


def draw(logits_RV, uniforms_R=None, temperature=1.0, top_p=1.0):
    """One token for each row -> ids_R; temperature 0 takes the likeliest, without uniforms."""
    if temperature == 0:
        return logits_RV.argmax(-1)
    return inverse_cdf_sample((logits_RV / temperature).log_softmax(-1), uniforms_R, top_p)


def inverse_cdf_sample(logprobs_RV, uniforms_R, top_p=1.0):
    """The first token, in the order of the ids, whose cumulative probability exceeds u -> ids_R."""
    probs_RV = logprobs_RV.exp().double()  # 100,000 float32 terms do not add up to 1
    if top_p < 1:  # keep only the smallest set of tokens with at least this probability
        sorted_RV, ids_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
        outside_RV = sorted_RV.cumsum(-1) - sorted_RV >= top_p  # those before it reach top_p
        probs_RV = probs_RV.scatter(1, ids_RV, sorted_RV.masked_fill(outside_RV, 0.0))
    cdf_RV = probs_RV.cumsum(-1)
    # times the total, so that u just below 1 stays inside; right=True, so that u = 0 never draws
    # a token of probability 0
    thresholds_R1 = uniforms_R.double()[:, None] * cdf_RV[:, -1:]
    tokens_R1 = torch.searchsorted(cdf_RV, thresholds_R1, right=True)
    return tokens_R1[:, 0].clamp(max=cdf_RV.shape[1] - 1)


@torch.no_grad()
def sample_completions(
    model,
    prompt_ids,
    *,
    max_new_tokens,
    eos_token_ids,
    pad_token_id,
    uniforms_BT=None,
    temperature=1.0,
    top_p=1.0,
    check_every=None,
):
    """Sample one completion for each prompt -> Rollout.  Algorithm 1, l. 5-7: y ~ student(. | x).

    prompt_ids      a list of B lists of token ids, of any lengths
    eos_token_ids   any of them ends a row; the EOS belongs to the completion
    uniforms_BT     [B, max_new_tokens] numbers in [0, 1), one for each token: a row's draws then do
                    not depend on the rows beside it; temperature 0 needs none
    check_every     how often to look for finished rows and drop them: each step on a CPU, every 16
                    on a GPU, where looking makes Python wait for the device
    Raises ValueError, with the figures, for prompts that the model cannot take.
    """
    _check_arguments(model, prompt_ids, max_new_tokens, uniforms_BT, temperature)
    device, B, T = model.device, len(prompt_ids), max_new_tokens
    check_every = check_every or (16 if device.type == "cuda" else 1)
    uniforms_BT = (torch.zeros(B, T) if uniforms_BT is None else uniforms_BT).to(device)
    eos_ids = torch.tensor(eos_token_ids, device=device)
    completion_ids_BT = torch.full((B, T), pad_token_id, device=device)

    cache, mask_RL, logits_RV = prefill(model, prompt_ids, T, pad_token_id)
    rows_R = torch.arange(B, device=device)  # which completion each running row is
    position_R = torch.tensor([len(prompt) for prompt in prompt_ids], device=device)
    finished_R = torch.zeros(B, dtype=torch.bool, device=device)
    for t in range(T):
        next_ids_R = draw(logits_RV, uniforms_BT[rows_R, t], temperature, top_p)
        completion_ids_BT[rows_R, t] = next_ids_R
        finished_R |= torch.isin(next_ids_R, eos_ids)
        if t == T - 1:
            break
        if (t + 1) % check_every == 0 and finished_R.any():
            kept = (~finished_R).nonzero()[:, 0]
            if len(kept) == 0:
                break
            running = rows_R, position_R, finished_R, next_ids_R, mask_RL
            rows_R, position_R, finished_R, next_ids_R, mask_RL = (x[kept] for x in running)
            for layer in cache.layers:
                layer.keep_rows(kept)
        column = cache.layers[0].columns
        mask_RL[:, column] = True
        output = model(
            input_ids=next_ids_R[:, None],
            attention_mask=mask_RL[:, : column + 1],
            position_ids=(position_R + t)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits_RV = output.logits[:, -1].float()
    return _rollout(completion_ids_BT, eos_ids, pad_token_id)


def _rollout(ids_BT, eos_ids, pad_token_id):
    """Cut each row after its first EOS: until it was dropped, the row went on drawing."""
    # the mask comes from the position of the EOS, never from ids != pad: pad may equal EOS
    is_eos_BT = torch.isin(ids_BT, eos_ids)
    mask_BT = (is_eos_BT.cumsum(1) - is_eos_BT.int()) == 0  # no EOS before this token
    T = int(mask_BT.sum(1).max())
    ids_BT = ids_BT.masked_fill(~mask_BT, pad_token_id)
    return Rollout(ids_BT[:, :T], mask_BT[:, :T], is_eos_BT.any(1))


def _check_arguments(model, prompt_ids, max_new_tokens, uniforms_BT, temperature):
    if [] in prompt_ids:
        row = prompt_ids.index([])
        raise ValueError(f"prompt_ids[{row}] is empty; a model needs at least one token")
    V = model.get_input_embeddings().weight.shape[0]
    if max(map(max, prompt_ids)) >= V:
        raise ValueError(f"a prompt has token ids beyond the {V} that the model embeds")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompt_ids)) + max_new_tokens
    if positions and longest > positions:
        raise ValueError(f"prompt and answer of {longest} tokens exceed {positions} positions")
    if temperature > 0 and uniforms_BT is None:
        raise ValueError(f"temperature {temperature} needs uniforms_BT; temperature=0 is greedy")
    needed = len(prompt_ids), max_new_tokens
    if uniforms_BT is not None and uniforms_BT.shape != needed:
        raise ValueError(f"uniforms_BT has shape {tuple(uniforms_BT.shape)}, needed is {needed}")


def completion_hidden(model, prompt_ids, completion_ids_BT, completion_mask_BT):
    """The final hidden state that predicts each completion token -> hidden_BTD.

    Joins prompt and completion without a gap and pads on the RIGHT: a causal model then needs no
    mask and no position ids, and keeps its fast attention. Arbitrary where the mask is false.
    """
    device, lengths = completion_ids_BT.device, completion_mask_BT.sum(1).tolist()
    rows = [
        torch.cat([torch.tensor(prompt, device=device), ids_T[:length]])
        for prompt, ids_T, length in zip(prompt_ids, completion_ids_BT, lengths, strict=True)
    ]
    ids_BL = pad_sequence(rows, batch_first=True)
    hidden_BLD = model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state
    # token t stands at len(prompt) + t, so the state one place earlier predicts it
    prompt_length_B1 = torch.tensor([[len(prompt)] for prompt in prompt_ids], device=device)
    index_BT = prompt_length_B1 - 1 + torch.arange(completion_ids_BT.shape[1], device=device)
    index_BT1 = index_BT.clamp(max=ids_BL.shape[1] - 1)[:, :, None]
    return hidden_BLD.gather(1, index_BT1.expand(-1, -1, hidden_BLD.shape[2]))
