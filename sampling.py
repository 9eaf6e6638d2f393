"""Tokens, and the hidden states that predict them: a KV-cached sampler in plain parts.

Needs torch and transformers, and nothing of ours: copy it as it is.

    CacheLayer           one layer's keys and values, in buffers of full length
    prefill              the pass over the prompts, which fills the cache
    draw                 logits -> tokens: argmax, or inverse-CDF sampling
    sample_completions   as many rows at a time as memory holds, by decode
    decode               prefill; then draw, store, drop the rows that ended, run the next token
    completion_hidden    one pass over prompt and completion, without a cache, with gradients
    packed_weights       on a CPU: the same products, from weights in a layout that decodes faster
    decode_by_graph      on a GPU: decode, by replaying a step as a CUDA graph

Beside them output_head, from hidden states to logits, and stop_tokens, what ends a completion.

The checkpoint's generation_config is never read: its top_k or repetition penalty would sample from
another distribution than the one that the loss differentiates.
B sequences, R rows still running, P padded prompt, T completion tokens, L = P + T, V vocabulary,
D hidden, H key-value heads, E their size.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

PREFILL_ROWS = 8  # prompts that run through the model together
DRAW_BYTES = 28  # of a number of the logits: what draw holds at once, in float32 and float64
LOOK_EVERY = 16  # steps between two looks for finished rows, where a look makes Python wait


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
        # transformers leaves out a mask that hides nothing; to find out, Python would wait for the
        # GPU at each step. It does not ask for layers that call themselves compileable.
        self.is_compileable = keys_BHLE.is_cuda

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


def prefill(model, prompt_ids, max_new_tokens, group_size=PREFILL_ROWS):
    """Run the prompts -> (cache with max_new_tokens free columns, mask_BP, logits_BV).

    Prompts of similar length go together, padded on the left to their longest; in the cache all
    prompts end at column P. mask_BP is true at the columns that hold a row's own tokens.
    """
    B, P = len(prompt_ids), max(map(len, prompt_ids))
    L = P + max_new_tokens
    length_B = torch.tensor([len(prompt) for prompt in prompt_ids], device=model.device)
    mask_BP = torch.arange(P, device=model.device) >= P - length_B[:, None]
    logits, buffers = [], None
    by_length = sorted(range(B), key=lambda row: len(prompt_ids[row]))
    for start in range(0, B, group_size):
        rows = by_length[start : start + group_size]
        prompts = [torch.tensor(prompt_ids[row], device=model.device) for row in rows]
        ids_BP = pad_sequence(prompts, batch_first=True, padding_side="left")
        first, group_cache = P - ids_BP.shape[1], DynamicCache()
        logits.append(next_logits(model, ids_BP, mask_BP[rows, first:], group_cache))
        states = [(layer.keys, layer.values) for layer in group_cache.layers]
        if buffers is None:
            buffers = [[x.new_zeros(B, x.shape[1], L, x.shape[3]) for x in kv] for kv in states]
        for (keys_BHLE, values_BHLE), kv in zip(buffers, states, strict=True):
            keys_BHLE[rows, :, first:P], values_BHLE[rows, :, first:P] = kv
    logits_BV = torch.cat(logits)[torch.tensor(by_length).argsort()]  # in the prompts' order again
    return Cache(layers=[CacheLayer(*kv, P) for kv in buffers]), mask_BP, logits_BV


def next_logits(model, ids_RN, mask_RL, cache):
    """Run N more tokens of each row, the last of its L columns -> logits_RV after the last one."""
    # explicit: padding on the left must not shift the positions
    position_RN = (mask_RL.cumsum(1) - 1).clamp(min=0)[:, -ids_RN.shape[1] :]
    # transformers 5.24 renamed the argument, and 5.40 will take the new name alone
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    options = {name: cache, "use_cache": True, "logits_to_keep": 1}
    output = model(input_ids=ids_RN, attention_mask=mask_RL, position_ids=position_RN, **options)
    return output.logits[:, -1].float()


def draw(logits_RV, uniforms_R=None, temperature=1.0, top_p=1.0):
    """The first token id whose cumulative probability exceeds u; temperature 0: the likeliest."""
    if temperature == 0:
        return logits_RV.argmax(-1)
    # in place where it can be: on a CPU, fresh memory of this size costs more than the arithmetic
    probs_RV = (logits_RV / temperature).log_softmax(-1).exp_().double()  # float32 sums miss 1
    if top_p < 1:  # keep only the smallest set of tokens with at least this probability
        sorted_RV, ids_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
        outside_RV = sorted_RV.cumsum(-1) - sorted_RV >= top_p  # those before it reach top_p
        probs_RV = probs_RV.scatter(1, ids_RV, sorted_RV.masked_fill(outside_RV, 0.0))
    cdf_RV = probs_RV.cumsum_(-1)
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
    use_graph=None,
):
    """Sample one completion for each prompt -> Rollout.  Algorithm 1, l. 5-7: y ~ student(. | x).

    prompt_ids      a list of B lists of token ids, of any lengths
    eos_token_ids   any of them ends a row; the EOS belongs to the completion
    uniforms_BT     [B, max_new_tokens] numbers in [0, 1), one for each token, so that a row's draws
                    do not depend on the rows beside it; equal prompts differ by their numbers
                    alone; temperature 0 needs none
    check_every     how often to look for finished rows and drop them: each step on a CPU, every 16
                    on a GPU, where looking makes Python wait for the device
    use_graph       decode_by_graph, the default on a GPU, which drops rows when it records anew;
                    on a CPU its steps run without a graph
    On a CPU all rows are decoded together, on a GPU as many as its free memory holds; if it runs
    out, half as many are tried again. Raises ValueError, with the figures, for prompts that the
    model cannot take.
    """
    B, T = len(prompt_ids), max_new_tokens
    longest = max(map(len, prompt_ids)) + max_new_tokens
    if uniforms_BT is None and temperature == 0:
        uniforms_BT = torch.zeros(B, T)
    if uniforms_BT is None or uniforms_BT.shape != (B, T):
        raise ValueError(f"temperature {temperature} needs uniforms_BT of shape {(B, T)}")
    _check_prompts(model, prompt_ids, longest)
    on_gpu = model.device.type == "cuda"
    check_every = check_every or (LOOK_EVERY if on_gpu else 1)
    use_graph = on_gpu if use_graph is None else use_graph
    rows_at_once = rows_that_fit(model, prompt_ids, longest) if on_gpu else B
    uniforms_BT = uniforms_BT.to(model.device)
    eos_ids = torch.tensor(eos_token_ids, device=model.device)
    ids_BT = torch.full((B, T), pad_token_id, device=model.device)
    done = 0
    with packed_weights(model):
        while done < B:
            part = slice(done, done + rows_at_once)
            try:
                decode(
                    model,
                    prompt_ids[part],
                    uniforms_BT[part],
                    ids_BT[part],
                    eos_ids,
                    temperature,
                    top_p,
                    check_every,
                    use_graph,
                )
                done += rows_at_once
            except torch.OutOfMemoryError:  # whose tensors are freed when this block ends
                if rows_at_once == 1:
                    raise
                rows_at_once //= 2
                model.most_rows = rows_at_once  # the next call does not try more again
                print(f"out of memory: sampling continues with {rows_at_once} rows at a time")
    # trap: pad may equal EOS. A mask made by ids != pad would leave the EOS out of the loss, and
    # the model would never learn to stop. So the mask runs through the first EOS; a completion
    # that the limit cut off has none, and all of its tokens count.
    is_eos_BT = torch.isin(ids_BT, eos_ids)
    mask_BT = (is_eos_BT.cumsum(1) - is_eos_BT.int()) == 0  # no EOS before this token
    ids_BT = ids_BT.masked_fill(~mask_BT, pad_token_id)  # a row drew on until it was dropped
    longest_completion = int(mask_BT.sum(1).max())
    return Rollout(
        ids_BT[:, :longest_completion], mask_BT[:, :longest_completion], is_eos_BT.any(1)
    )


def decode(
    model, prompt_ids, uniforms_BT, ids_BT, eos_ids, temperature, top_p, check_every, use_graph
):
    """Fill ids_BT with the tokens of some rows, all decoded together."""
    T = ids_BT.shape[1]
    # fewer tokens are not worth a recording
    if use_graph and T > COMPARED_STEPS and not getattr(model, "refuses_graph", False):
        try:
            decode_by_graph(model, prompt_ids, uniforms_BT, ids_BT, eos_ids, temperature, top_p)
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a family may do anything that a graph cannot hold
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"decoding {model.config.model_type} step by step, without a graph: {reason}")
            model.refuses_graph = reason  # the rest of the run does not try again
    cache, mask_RL, logits_RV = prefill(model, prompt_ids, T)
    rows_R = torch.arange(len(prompt_ids), device=model.device)  # those that have not ended
    for t in range(T):
        ids_BT[rows_R, t] = draw(logits_RV, uniforms_BT[rows_R, t], temperature, top_p)
        if t == T - 1:
            break
        if (t + 1) % check_every == 0:
            ended_R = torch.isin(ids_BT[rows_R, : t + 1], eos_ids).any(1)
            kept = (~ended_R).nonzero()[:, 0]
            if len(kept) == 0:
                break
            if len(kept) < len(rows_R):
                rows_R, mask_RL = rows_R[kept], mask_RL[kept]
                for layer in cache.layers:
                    layer.keep_rows(kept)
        mask_RL = torch.cat([mask_RL, mask_RL.new_ones(len(rows_R), 1)], dim=1)
        logits_RV = next_logits(model, ids_BT[rows_R, t, None], mask_RL, cache)


def rows_that_fit(model, prompt_ids, L):
    """How many rows of L tokens a GPU's free memory holds beside a pass over some prompts."""
    B = len(prompt_ids)
    cache, _, logits_1V = prefill(model, [[0]], L - 1)  # one row, to measure it
    row = sum(x.nbytes for layer in cache.layers for x in layer.buffers)
    row += DRAW_BYTES * logits_1V.numel()
    tokens = min(B, PREFILL_ROWS) * max(map(len, prompt_ids))
    prompts = tokens * pass_numbers(model.config) * model.dtype.itemsize
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    fitting = (0.8 * (torch.cuda.mem_get_info()[0] + unused) - prompts) / row
    return max(1, min(B, int(fitting), getattr(model, "most_rows", B)))


def pass_numbers(config):
    """Numbers of a token that stand at once in a pass without gradients: those of one layer."""
    text = config.get_text_config(decoder=True)
    intermediate = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return 3 * intermediate + 4 * text.hidden_size


def _check_prompts(model, prompt_ids, L):
    if [] in prompt_ids:
        raise ValueError(f"prompt_ids[{prompt_ids.index([])}] is empty; a model needs a token")
    V = model.get_input_embeddings().weight.shape[0]
    if max(map(max, prompt_ids)) >= V:
        raise ValueError(f"a prompt has token ids beyond the {V} that the model embeds")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and L > positions:
        raise ValueError(f"prompt and answer of {L} tokens exceed {positions} positions")


# ---- scoring: the states that predict given tokens ----


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
    return hidden_BLD.take_along_dim(index_BT.clamp(max=ids_BL.shape[1] - 1)[:, :, None], dim=1)


def pad_completions(completions, pad_token_id, device):
    """Lists of token ids -> (ids_BT, mask_BT), padded on the right to the longest."""
    rows = [torch.tensor(ids, dtype=torch.long, device=device) for ids in completions]
    ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    length_B1 = torch.tensor([[len(ids)] for ids in completions], device=device)
    return ids_BT, torch.arange(ids_BT.shape[1], device=device) < length_B1


# ---- decoding on a CPU: weights in oneDNN's layout ----


@contextmanager
def packed_weights(model):
    """Inside, linear layers on a CPU multiply by a copy of their weights in oneDNN's own layout.

    The same products up to rounding. Few rows take half to three quarters of the time, since the
    weights are no longer rearranged at each step. Does nothing where torch lacks the operators.
    """
    layers = []
    try:
        if can_pack(model):
            for layer in model.modules():
                # only torch's own forward is replaced
                if type(layer) is torch.nn.Linear and "forward" not in vars(layer):
                    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
                    layers.append(layer)
                    layer.forward = partial(multiply_packed, packed, layer.bias)
        yield
    finally:
        for layer in layers:
            del layer.forward


def can_pack(model):
    operators = getattr(torch.ops, "mkldnn", None)
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(operators, "_reorder_linear_weight"):
        return False
    if model.dtype == torch.bfloat16:
        return operators._is_mkldnn_bf16_supported()
    return model.dtype == torch.float32


def multiply_packed(packed, bias, x):
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


# ---- decoding on a GPU, by a CUDA graph ----

# A step launches some thousand small kernels, and the GPU waits for Python between them. A CUDA
# graph records the launches of one step and repeats them at once, on tensors that stay where they
# are. So graph_step finds its column in a tensor, reads the cache up to a fixed length, and no
# number of it is seen by Python. The same lines run on a CPU, where the tests compare the tokens.
GRAPH_COLUMNS = 256  # a graph is recorded for at least as many columns, and at most twice as many
COMPARED_STEPS = 8  # run both ways before a graph is trusted


class GraphLayer(CacheLayer):
    """The same buffers, written at a column that a tensor holds, and read up to a fixed length."""

    def __init__(self, layer, column_1, length):
        super().__init__(*layer.buffers, columns=None)
        self.column_1, self.length = column_1, length
        self.is_compileable = True

    def update(self, keys_RH1E, values_RH1E, *args, **kwargs):
        for buffer_RHLE, new_RH1E in zip(self.buffers, (keys_RH1E, values_RH1E), strict=True):
            buffer_RHLE.index_copy_(2, self.column_1, new_RH1E)
        return [buffer_RHLE[:, :, : self.length] for buffer_RHLE in self.buffers]

    def get_mask_sizes(self, query_length):
        return self.length, 0

    def get_seq_length(self):
        return self.column_1


@dataclass
class GraphState:
    """What a step reads and writes for each row; L columns, those of the prompt among them."""

    ids_RL: torch.Tensor  # the tokens drawn so far
    uniforms_RL: torch.Tensor
    mask_RL: torch.Tensor  # true at a row's own tokens in the cache
    ended_R: torch.Tensor  # true once an EOS was drawn
    column_1: torch.Tensor  # of the last token drawn, the same in all rows

    def keep_rows(self, rows):
        kept = self.ids_RL[rows], self.uniforms_RL[rows], self.mask_RL[rows], self.ended_R[rows]
        return GraphState(*kept, self.column_1)


def graph_step(model, cache, state, length, eos_ids, temperature, top_p):
    """Run each row's last token and draw the next -> the logits_RV that it was drawn from."""
    state.mask_RL.index_fill_(1, state.column_1, True)
    last_R1 = state.ids_RL.index_select(1, state.column_1)
    logits_RV = next_logits(model, last_R1, state.mask_RL[:, :length], cache)
    state.column_1 += 1
    uniforms_R = state.uniforms_RL.index_select(1, state.column_1)[:, 0]
    next_R1 = draw(logits_RV, uniforms_R, temperature, top_p)[:, None]
    state.ids_RL.index_copy_(1, state.column_1, next_R1)
    state.ended_R |= (next_R1 == eos_ids).any(1)
    return logits_RV


def record(model, cache, state, length, *options):
    """Run graph_step once, then record it -> (its logits_RV, a function that runs it again).

    On a GPU the function replays a CUDA graph; on a CPU it calls graph_step.
    """
    layers = [GraphLayer(layer, state.column_1, length) for layer in cache.layers]
    step = partial(graph_step, model, Cache(layers=layers), state, length, *options)
    if model.device.type != "cuda":
        return step(), step
    # Raise where the step makes Python wait for a number: no graph can hold that, and a recording
    # that fails half-way leaves the allocator in disorder.
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits_RV = step()  # also loads the kernels, which cannot be done while recording
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded_RV = step()  # does not run now; each replay writes the same recorded_RV

    def replay():
        graph.replay()
        return recorded_RV

    return logits_RV, replay


def decode_by_graph(model, prompt_ids, uniforms_BT, ids_BT, eos_ids, temperature, top_p):
    """Fill ids_BT with the tokens of some rows, as decode does, by replaying recorded steps.

    Raises an exception if a graph cannot hold this model's step or changes its logits, which the
    first call finds out.
    """
    B, T = ids_BT.shape
    cache, mask_BP, logits_BV = prefill(model, prompt_ids, T)
    P = mask_BP.shape[1]
    L = P + T
    ids_BT[:, 0] = draw(logits_BV, uniforms_BT[:, 0], temperature, top_p)
    state = GraphState(
        ids_RL=pad(ids_BT, (P, 0)),
        uniforms_RL=pad(uniforms_BT, (P, 0)),
        mask_RL=pad(mask_BP, (0, T)),
        ended_R=torch.isin(ids_BT[:, 0], eos_ids),
        column_1=torch.tensor([P], device=model.device),
    )
    rows_R = torch.arange(B, device=model.device)  # those that have not ended
    options = eos_ids, temperature, top_p
    column = P  # what state.column_1 holds, counted by Python
    # a family that counts columns (GPT-Neo) may be right in short buffers and wrong in longer ones
    if getattr(model, "columns_by_graph", 0) < L:
        column = compare_steps(model, cache, state, column, L, *options)
        model.columns_by_graph = L
        ids_BT[:] = state.ids_RL[:, P:]
    while column < L - 1 and len(rows_R) > 0:
        length = min(L, (column // GRAPH_COLUMNS + 2) * GRAPH_COLUMNS)
        _, step = record(model, cache, state, length, *options)
        column += 1
        while column < min(length, L - 1):
            if column % LOOK_EVERY == 0 and state.ended_R.all():
                break
            step()
            column += 1
        del step  # and with it the graph, before other tensors are made
        ids_BT[rows_R] = state.ids_RL[:, P:]
        kept = (~state.ended_R).nonzero()[:, 0]
        if len(kept) < len(rows_R):
            rows_R, state = rows_R[kept], state.keep_rows(kept)
            for layer in cache.layers:
                layer.keep_rows(kept)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # the memory of a graph is of use to nobody else


def compare_steps(model, cache, state, column, L, eos_ids, temperature, top_p):
    """Decode COMPARED_STEPS tokens, each by a graph and without -> the column of the last one.

    The graph reads whole buffers of L columns. Raises ValueError if it draws other tokens from its
    logits than draw does, or if its log-probabilities differ from those of next_logits by more than
    rounding: weighted by the probabilities, and in the mean over rows and steps.
    """
    differences = []
    step = None
    for _ in range(COMPARED_STEPS):
        if step is None:
            found_RV, step = record(model, cache, state, L, eos_ids, temperature, top_p)
        else:
            found_RV = step()
        last_R1 = state.ids_RL[:, column, None]
        column += 1
        drawn_R = draw(found_RV, state.uniforms_RL[:, column], temperature, top_p)
        if not torch.equal(drawn_R, state.ids_RL[:, column]):
            raise ValueError("it would draw other tokens")
        expected_RV = next_logits(model, last_R1, state.mask_RL[:, :column], cache).log_softmax(-1)
        difference_RV = (found_RV.log_softmax(-1) - expected_RV).abs()
        differences.append((expected_RV.exp() * difference_RV).sum(-1).mean())
    difference = torch.stack(differences).mean().item()
    # nats; rounding in bfloat16 makes 0.03 for SmolLM2, a key that is missing 0.13
    if not difference < (1e-4 if model.dtype == torch.float32 else 0.1):  # nor NaN
        raise ValueError(f"it would change log-probabilities by {difference:.1e} nats")
    return column


# ---- what the sampler and the loss ask of a model ----


class OutputHead(torch.nn.Module):
    """logits = scale * embedding(hidden), then cap * tanh(logits / cap) if there is a cap."""

    def __init__(self, embedding, scale, cap):
        super().__init__()
        self.embedding, self.scale, self.cap = embedding, scale, cap

    def forward(self, hidden):
        logits = self.embedding(hidden) * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def output_head(model):
    """The module from final hidden states to logits; copy.deepcopy freezes it as it is now.

    The output embedding, with the scale of Granite and Cohere or the cap of Gemma after it.
    """
    embedding, config = model.get_output_embeddings(), model.config.get_text_config(decoder=True)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return embedding if scale == 1 and not cap else OutputHead(embedding, scale, cap)


def named_eos_tokens(model, tokenizer):
    """The ids that generation_config, config or tokenizer name as EOS -> set."""
    eos_token_ids = set()
    for source in (model.generation_config, model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        eos_token_ids |= set(ids) if isinstance(ids, (list, tuple)) else {ids} - {None}
    return eos_token_ids


def stop_tokens(model, tokenizer):
    """{"eos_token_ids": all of them, "pad_token_id": one}, arguments of sample_completions.

    The EOS ids are the one thing taken from a checkpoint's generation_config.
    """
    eos_token_ids = named_eos_tokens(model, tokenizer)
    if not eos_token_ids:
        raise ValueError("neither model nor tokenizer names an EOS token; no completion would end")
    pad, first = tokenizer.pad_token_id, min(eos_token_ids)
    return {"eos_token_ids": sorted(eos_token_ids), "pad_token_id": first if pad is None else pad}
