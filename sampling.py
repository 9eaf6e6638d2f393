"""Sampling from a causal language model with a key-value cache, written out, and the hidden states of given completions.

Needs torch and transformers. Shape key: B sequences, R of them in hand, P padded prompt, T completion tokens, C columns of
the cache, V vocabulary, D hidden.

Sampling and scoring use the same softmax. The model's own generation_config is never read: a top_k or a repetition
penalty that comes with a checkpoint would draw from another distribution than the one the loss differentiates.
"""

import itertools
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass
class Rollout:
    """Completions of B prompts, padded on the right to the longest."""
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor    # true through the first EOS
    token_logprobs_BT: torch.Tensor     # nats, of the model's full softmax at the sampling temperature; 0 on padding
    finished_B: torch.Tensor            # true where an EOS was drawn, false where max_new_tokens ended it


@dataclass
class RowsInHand:
    """The R rows that are being sampled, each one of the B completions."""
    rows_R: torch.Tensor            # which completion each is
    next_t_R: torch.Tensor          # which of its tokens comes next
    prompt_length_R: torch.Tensor
    mask_RC: torch.Tensor           # the columns of the cache that hold tokens of its own
    cache: Cache                    # of CacheLayer
    takes_any_mask: bool            # with four axes a mask is used as it is; with two, Hugging Face waits for the GPU to see if anything is padded

    def decode(self, model, ids_R):
        """The pass over each row's token, one column of the cache further -> logits_RV of the next one."""
        column = self.cache.layers[0].used
        self.mask_RC[:, column % self.mask_RC.shape[1]] = True
        mask = self.mask_RC[:, :column + 1]
        return model(input_ids=ids_R[:, None], attention_mask=mask[:, None, None] if self.takes_any_mask else mask, past_key_values=self.cache,
                     position_ids=(self.prompt_length_R + self.next_t_R - 1)[:, None], use_cache=True).logits[:, -1].float()

    def keep(self, kept):
        """Only the rows at these places stay."""
        self.rows_R, self.next_t_R, self.prompt_length_R, self.mask_RC = (
            tensor[kept] for tensor in (self.rows_R, self.next_t_R, self.prompt_length_R, self.mask_RC))
        for layer in self.cache.layers:
            layer.keep_rows(kept)

    def add(self, new):
        """Rows whose prompts have just been computed come behind; their columns turn, so that each prompt ends where the others are."""
        turned_RC = new.mask_RC.roll(self.cache.layers[0].used - new.cache.layers[0].used, dims=1)
        self.mask_RC = torch.cat([self.mask_RC, turned_RC])
        self.rows_R = torch.cat([self.rows_R, new.rows_R])
        self.next_t_R = torch.cat([self.next_t_R, new.next_t_R])
        self.prompt_length_R = torch.cat([self.prompt_length_R, new.prompt_length_R])
        for layer, added in zip(self.cache.layers, new.cache.layers):
            layer.add_rows(added)


@torch.no_grad()
def sample_completions(model, prompt_ids, *, max_new_tokens, uniforms_BT=None, temperature=1.0, top_p=1.0,
                       eos_token_ids, pad_token_id, max_rows=None):
    """Sample one completion for each prompt -> Rollout.  Algorithm 1, l. 5-7: y ~ student(. | x).

    prompt_ids      a list of B lists of token ids, of any lengths
    uniforms_BT     [B, max_new_tokens] numbers in [0, 1): token t of row b is where the softmax's cumulative sum passes
                    uniforms_BT[b, t], so a row's draws do not depend on which rows stand beside it
    temperature     0 means greedy, which needs no uniforms (token_logprobs_BT is then at temperature 1)
    top_p           below 1: only the smallest set of tokens with at least this probability (ties by token id)
    eos_token_ids   any of them ends a row; the EOS belongs to the completion
    max_rows        at most so many rows at a time: the next prompts take the places of those that have ended (default: all at once)
    Raises ValueError for an empty prompt, and for a temperature above 0 without uniforms.
    """
    _check_sampling_arguments(prompt_ids, max_new_tokens, uniforms_BT, temperature, top_p)
    device, B, T = model.device, len(prompt_ids), max_new_tokens
    eos_token_ids = torch.tensor(sorted(eos_token_ids), device=device)
    completion_ids_BT = torch.full((B, T), pad_token_id, dtype=torch.long, device=device)
    token_logprobs_BT = torch.zeros(B, T, device=device)
    length_B = torch.full((B,), T, device=device)
    finished_B = torch.zeros(B, dtype=torch.bool, device=device)
    if uniforms_BT is not None:
        uniforms_BT = uniforms_BT.to(device)

    columns = max(len(prompt) for prompt in prompt_ids) + T
    started = max_rows = min(max_rows or B, B)
    hand, logits_RV = _prefill(model, prompt_ids, range(started), columns, pad_token_id)
    look_every, leave_at = _pace(device)
    began = 0           # the step before the oldest row in hand drew its first token
    for step in itertools.count(1):
        # each row in hand draws a token; one that has ended stays until somebody looks, and writes nothing more
        rows_R, t_R = hand.rows_R, hand.next_t_R.clamp(max=T - 1)
        running_R = ~finished_B[rows_R] & (hand.next_t_R < T)
        logprobs_RV = (logits_RV / (temperature or 1.0)).log_softmax(-1)
        if temperature == 0:
            next_ids_R = logits_RV.argmax(-1)
        else:
            next_ids_R = inverse_cdf_sample(logprobs_RV, uniforms_BT[rows_R, t_R], top_p)
        next_logprobs_R = logprobs_RV.gather(1, next_ids_R[:, None])[:, 0]
        completion_ids_BT[rows_R, t_R] = torch.where(running_R, next_ids_R, completion_ids_BT[rows_R, t_R])
        token_logprobs_BT[rows_R, t_R] = torch.where(running_R, next_logprobs_R, token_logprobs_BT[rows_R, t_R])
        ended_R = running_R & torch.isin(next_ids_R, eos_token_ids)
        length_B[rows_R] = torch.where(ended_R, t_R + 1, length_B[rows_R])
        finished_B[rows_R] |= ended_R
        hand.next_t_R += 1

        looking = (step - began) % look_every == 0 or step - began == T
        if looking:
            kept = (~finished_B[rows_R] & (hand.next_t_R < T)).nonzero()[:, 0]
            if len(kept) == 0 and started == B:
                break
            if len(kept) < len(rows_R) and len(kept) <= leave_at * len(rows_R):
                hand.keep(kept)
                next_ids_R = next_ids_R[kept]
        logits_RV = hand.decode(model, next_ids_R) if len(next_ids_R) > 0 else logits_RV[:0]
        if looking and started < B and _has_room(hand, len(next_ids_R), max_rows):
            new_rows = range(started, min(B, started + max_rows - len(next_ids_R)))
            new, new_logits_RV = _prefill(model, prompt_ids, new_rows, columns, pad_token_id)
            if len(next_ids_R) > 0:
                hand.add(new)
            else:
                hand, began = new, step
            logits_RV, started = torch.cat([logits_RV, new_logits_RV]), new_rows.stop

    T = int(length_B.max())
    completion_mask_BT = torch.arange(T, device=device) < length_B[:, None]  # never ids != pad: pad may equal EOS
    return Rollout(completion_ids_BT[:, :T], completion_mask_BT, token_logprobs_BT[:, :T], finished_B)


def _pace(device):
    """(look every so many steps whether rows have ended, let them leave when at most this share is left): on a GPU looking means
    waiting for it, and a new batch size is slow once, so both are kept rare."""
    return (16, 0.5) if device.type == "cuda" else (1, 1.0)


def _has_room(hand, rows, max_rows):
    """Whether new prompts shall start now: some at once, since they are prefilled together; beside others only where any mask is taken."""
    return rows == 0 or (rows <= 0.75 * max_rows and hand.takes_any_mask)


def given_rollout(completions, *, eos_token_ids, pad_token_id, device=None):
    """Completions that somebody else wrote (lists of token ids) in the form of a Rollout; their log-probabilities are left at 0."""
    T = max(len(completion) for completion in completions)
    ids_BT = torch.tensor([completion + [pad_token_id] * (T - len(completion)) for completion in completions], device=device)
    mask_BT = torch.tensor([[True] * len(completion) + [False] * (T - len(completion)) for completion in completions], device=device)
    finished_B = torch.tensor([completion[-1] in eos_token_ids for completion in completions], device=device)
    return Rollout(ids_BT, mask_BT, torch.zeros(ids_BT.shape, device=device), finished_B)


class SharedStart(DynamicLayer):
    """One layer's keys and values [1, heads, S, D] of S tokens that all rows begin with.

    Without them it notes those of the pass it is used in; with them it puts them before each row's own and keeps nothing, so
    that gradient checkpointing may run a layer twice. Gradients reach the shared tokens through every row.
    """

    def __init__(self, noted=None):
        super().__init__()
        self.noted, self.length = noted, 0 if noted is None else noted[0].shape[2]

    def update(self, key_states, value_states, *args, **kwargs):
        if self.length == 0:
            self.noted = key_states, value_states
            return self.noted
        return tuple(torch.cat([start.expand(len(own), -1, -1, -1), own], dim=2) for start, own in zip(self.noted, (key_states, value_states)))

    def get_seq_length(self):
        return self.length


def _shared_start(model, prompt_ids, at_least=8):
    """What all prompts begin with, such as one system turn, is computed once -> (its length S, [(keys, values)] of each layer).

    (0, None) where it is shorter than at_least tokens, and for models whose layers do not all see the whole sequence. Each prompt
    keeps one token of its own.
    """
    shortest = min(len(prompt) for prompt in prompt_ids) - 1
    S = next((t for t in range(shortest) if len({prompt[t] for prompt in prompt_ids}) > 1), shortest)
    if len(prompt_ids) == 1 or S < at_least or not _only_full_attention(model):
        return 0, None
    cache = Cache(layers=[SharedStart() for _ in range(model.config.num_hidden_layers)])
    model.base_model(input_ids=torch.tensor([prompt_ids[0][:S]], device=model.device), past_key_values=cache, use_cache=True)
    return S, [layer.noted for layer in cache.layers]


class CacheLayer(DynamicLayer):
    """One layer's keys and values in buffers [B, heads, C, D]: a step writes one column, the next one in turn, and copies nothing.

    Which column a token stands in does not matter: its position is in its key, and the mask says which columns are a row's own.
    """

    def __init__(self, keys_BHCD, values_BHCD, used):
        super().__init__()
        self.lazy_initialization(keys_BHCD, values_BHCD)
        self.buffers, self.rows, self.used = (keys_BHCD, values_BHCD), len(keys_BHCD), used
        self.keys, self.values = (buffer[:, :, :used] for buffer in self.buffers)

    def update(self, key_states, value_states, *args, **kwargs):
        for buffer, states in zip(self.buffers, (key_states, value_states)):
            buffer[:self.rows, :, self.used % buffer.shape[2]] = states[:, :, 0]
        self.used += 1
        self.keys, self.values = (buffer[:self.rows, :, :self.used] for buffer in self.buffers)
        return self.keys, self.values

    def keep_rows(self, rows):
        for buffer in self.buffers:
            buffer[:len(rows), :, :self.used] = buffer[rows, :, :self.used]
        self.rows = len(rows)

    def add_rows(self, other):
        """Rows whose prompts have just been computed; they are moved so that each prompt ends in the column that was written last."""
        for buffer, new in zip(self.buffers, other.buffers):
            buffer[self.rows:self.rows + other.rows] = new.roll(self.used - other.used, dims=2)
        self.rows += other.rows
        self.used = self.used % buffer.shape[2] + buffer.shape[2]       # a turn further: all columns are in use now


def _prefill(model, all_prompt_ids, new_rows, columns, pad_token_id, rows_at_once=8):
    """The pass over the prompts of some rows -> (RowsInHand with a cache of so many columns, logits_BV of the first new token).

    The tokens that all begin with come first, once; then prompts of similar length together, padded on the left to their own
    longest; equal prompts once. The cache has the shared tokens in its first places, and all prompts end at P.
    """
    prompt_ids = [all_prompt_ids[row] for row in new_rows]
    B, P = len(prompt_ids), max(len(prompt) for prompt in prompt_ids)
    S, start = _shared_start(model, prompt_ids)
    rows_of = {}
    for row in sorted(range(B), key=lambda row: len(prompt_ids[row])):
        rows_of.setdefault(tuple(prompt_ids[row]), []).append(row)
    prompts, logits, layers = list(rows_of), [None] * B, None
    for first in range(0, len(prompts), rows_at_once):
        some = prompts[first:first + rows_at_once]
        input_ids_BP, mask_BP = _pad_left([prompt[S:] for prompt in some], pad_token_id, model.device)
        position_ids_BP = S + (mask_BP.cumsum(1) - 1).clamp(min=0)           # explicit: padding on the left shifts nothing
        part = DynamicCache(config=model.config)
        for number, states in enumerate(start or ()):
            part.update(*(shared.expand(len(some), -1, -1, -1) for shared in states), number)
        output = model(input_ids=input_ids_BP, attention_mask=torch.cat([mask_BP.new_ones(len(some), S), mask_BP], dim=1),
                       position_ids=position_ids_BP, past_key_values=part, use_cache=True, logits_to_keep=1)
        rows = [row for prompt in some for row in rows_of[prompt]]
        place = [i for i, prompt in enumerate(some) for _ in rows_of[prompt]]
        for row, logits_V in zip(rows, output.logits[place, -1].float()):
            logits[row] = logits_V
        if layers is None:
            layers = [[states.new_zeros(B, states.shape[1], columns, states.shape[3]) for states in (layer.keys, layer.values)]
                      for layer in part.layers]
        for buffers, layer in zip(layers, part.layers):
            for buffer_BHLD, states in zip(buffers, (layer.keys, layer.values)):
                buffer_BHLD[rows, :, :S] = states[place, :, :S]
                buffer_BHLD[rows, :, P - states.shape[2] + S:P] = states[place, :, S:]
    prompt_length_B = torch.tensor([len(prompt) for prompt in prompt_ids], device=model.device)
    column_C = torch.arange(columns, device=model.device)
    mask_BC = (column_C < S) | ((column_C >= P - prompt_length_B[:, None] + S) & (column_C < P))
    hand = RowsInHand(torch.tensor(new_rows, device=model.device), torch.zeros_like(prompt_length_B), prompt_length_B, mask_BC,
                      Cache(layers=[CacheLayer(*buffers, P) for buffers in layers]),
                      takes_any_mask=model.config._attn_implementation == "sdpa" and _only_full_attention(model))
    return hand, torch.stack(logits)


def _only_full_attention(model):
    """Whether every layer sees the whole sequence: a sliding window, which some configurations have beside no layer_types, does not."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def inverse_cdf_sample(logprobs_BV, uniforms_B, top_p=1.0):
    """The token at which the cumulative sum of the probabilities, in the order of the ids, first exceeds the uniform -> [B]."""
    probs_BV = logprobs_BV.exp().double()              # added up in float64: 100,000 float32 terms do not add up to 1
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
    mask nor position ids. What all prompts begin with is computed once. `model.lm_head(hidden_BTD)` are the completion's logits.
    """
    device = completion_ids_BT.device
    lengths = completion_mask_BT.sum(1).tolist()
    S, start = _shared_start(model, prompt_ids)
    cache = Cache(layers=[SharedStart(states) for states in start]) if S else None
    rows = [torch.cat([torch.tensor(prompt[S:], device=device), ids_T[:length]])
            for prompt, ids_T, length in zip(prompt_ids, completion_ids_BT, lengths)]
    input_ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden_BLD = model.base_model(input_ids=input_ids_BL, past_key_values=cache, use_cache=S > 0).last_hidden_state
    # token t stands at len(prompt) + t, so the state one place earlier predicts it
    own_length_B1 = torch.tensor([[len(prompt) - S] for prompt in prompt_ids], device=device)
    index_BT = own_length_B1 - 1 + torch.arange(completion_ids_BT.shape[1], device=device)
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
