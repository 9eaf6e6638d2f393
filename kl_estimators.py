"""The divergences of SDFT and the three estimators of A.1. Needs only torch.

Source: arXiv 2601.19897, Eq. 1, Eq. 2 (in its version 2) and appendix A.1. Read it after sdft.py.

    divergence at one step t          reverse_kl, forward_kl, jensen_shannon    _BTV, _BTV -> _BT
    estimators of its gradient        analytic, token and Rao-Blackwell surrogates      -> _BT
    reduction over the tokens         sequence_mean, sequence_sum               _BT, mask_BT -> _B
    all of it from hidden states      compare_completions; for baselines completion_logprobs

A surrogate is a function whose gradient is the estimator; its value is not, in general, the KL.
B sequences, T completion tokens, V vocabulary, D hidden; N positions of B x T, flattened.
"logprobs" are log-softmax outputs; every divergence is in nats.
"""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# ---- divergences between two next-token distributions ----


def reverse_kl(student_logprobs_BTV, teacher_logprobs_BTV):
    """KL(student || teacher) = sum_v p_S(v) [log p_S(v) - log p_T(v)] -> [B, T].  Eq. 1, one step.

    Mode seeking: its gradient is weighted by p_S, and hardly reaches what the student never says.
    The paper's objective, and the default.
    """
    return _kl(student_logprobs_BTV, teacher_logprobs_BTV)


def forward_kl(student_logprobs_BTV, teacher_logprobs_BTV):
    """KL(teacher || student) = sum_v p_T(v) [log p_T(v) - log p_S(v)] -> [B, T].  Authors' code.

    Mass covering: its gradient by the student's logits is p_S - p_T, also for tokens that the
    student almost never says. The paper's figures were made with it.
    """
    return _kl(teacher_logprobs_BTV, student_logprobs_BTV)


def jensen_shannon(student_logprobs_BTV, teacher_logprobs_BTV):
    """[KL(student || M) + KL(teacher || M)] / 2, M = (student + teacher) / 2 -> [B, T]."""
    # a token that both exclude may have any finite number: logaddexp(-inf, -inf) has no gradient
    excluded_BTV = (student_logprobs_BTV == -math.inf) & (teacher_logprobs_BTV == -math.inf)
    mixture_logprobs_BTV = torch.logaddexp(
        student_logprobs_BTV.masked_fill(excluded_BTV, 0.0),
        teacher_logprobs_BTV.masked_fill(excluded_BTV, 0.0),
    ) - math.log(2)
    student_part_BT = _kl(student_logprobs_BTV, mixture_logprobs_BTV)
    return 0.5 * (student_part_BT + _kl(teacher_logprobs_BTV, mixture_logprobs_BTV))


DIVERGENCES = {"reverse": reverse_kl, "forward": forward_kl, "jsd": jensen_shannon}


def _kl(p_logprobs_BTV, q_logprobs_BTV):
    """sum_v p(v) [log p(v) - log q(v)]; 0 where p excludes v, infinite where only q does."""
    log_ratio_BTV = (p_logprobs_BTV - q_logprobs_BTV).masked_fill(p_logprobs_BTV == -math.inf, 0.0)
    return (p_logprobs_BTV.exp() * log_ratio_BTV).sum(-1)


# ---- the three estimators of appendix A.1 ----
#
# At step t of a completion y, k_t = KL(student || teacher) over the vocabulary, and
# l_t = log p_S(y_t) - log p_T(y_t). How each estimates the gradient of the sequence's reverse KL:
#
#     analytic   grad k_t                                       biased: lacks rb's second term
#     token      l_t grad log p_S(y_t)                          same expectation, more noise
#     rb         grad k_t + k_t sum_{i<t} grad log p_S(y_i)     unbiased
#
# These hold for sums over t, and for y drawn from the student's own softmax at temperature 1.
# config.py refuses token and rb with another divergence or temperature, and rb with a mean over
# tokens or with skipped first tokens. All take the three results of compare_completions.


def analytic_surrogate(kl_BT, student_token_logprobs_BT, teacher_token_logprobs_BT):
    """The exact gradient at each step, however the prefixes before it were sampled.

    With the reverse KL and sequence_sum it is Eq. 2.
    """
    return kl_BT


def token_surrogate(kl_BT, student_token_logprobs_BT, teacher_token_logprobs_BT):
    """One token in place of the sum over the vocabulary.

    With sequence_mean its expectation is no longer that of analytic, since the length depends on
    the token itself (EOS). Other implementations use it so, and so may you.
    """
    log_ratio_BT = (student_token_logprobs_BT - teacher_token_logprobs_BT).detach()
    return log_ratio_BT * student_token_logprobs_BT


def rao_blackwell_surrogate(kl_BT, student_token_logprobs_BT, teacher_token_logprobs_BT):
    """The second term charges a token with all the divergence that comes after it.

    - k_t has no gradient in the second term, where it only weighs the score functions
      grad log p_S(y_i) of the earlier tokens: grad k_t is already the first term.
    - The inner sum runs over ALL earlier tokens: mask the result, not the inner sum.
    - Reduce with sequence_sum: a mean divides by a length that later tokens decide.
    - Skip no first tokens: ending among them would cost nothing, and the model would learn to.
    """
    earlier_logprobs_BT = F.pad(student_token_logprobs_BT.cumsum(1)[:, :-1], (1, 0))  # i < t
    return kl_BT + kl_BT.detach() * earlier_logprobs_BT


ESTIMATORS = {
    "analytic": analytic_surrogate,
    "token": token_surrogate,
    "rb": rao_blackwell_surrogate,
}


# ---- reductions over the tokens of each sequence; the caller takes the mean over the batch ----


def sequence_sum(values_BT, mask_BT):
    """Sum over the tokens where the mask is true -> [B].  The paper's Algorithm 1, l. 16."""
    # where, not *: what padding holds must not matter, and 0 * NaN is NaN
    return torch.where(mask_BT, values_BT, 0.0).sum(1)


def sequence_mean(values_BT, mask_BT):
    """Mean over the tokens where the mask is true -> [B]; 0 without any.  The authors' code."""
    return sequence_sum(values_BT, mask_BT) / mask_BT.sum(1).clamp(min=1)


REDUCTIONS = {"mean": sequence_mean, "sum": sequence_sum}


# ---- from hidden states: vocabulary projection and divergence, a chunk of positions at a time ----

CHUNK_SIZE = 256  # positions


def compare_completions(
    student_hidden_BTD,
    student_head,
    teacher_hidden_BTD,
    teacher_head,
    completion_ids_BT,
    divergence,
    chunk_size=CHUNK_SIZE,
):
    """Divergence at each position, and both models' log-probability of the token that stands there.

    student_hidden_BTD, teacher_hidden_BTD   the states that predict completion_ids_BT
    student_head, teacher_head               functions from hidden states to logits; no gradient
                                             reaches the teacher's
    divergence                               "reverse", "forward" or "jsd", else ValueError
    returns kl_BT, student_token_logprobs_BT, teacher_token_logprobs_BT, in float32; no mask is
                                             applied, so padding has values, too

    One float32 [T, V] tensor of a sequence takes 1.2 GB at T = 2048 and V = 152,000, and a loss
    needs several.
    So each chunk's logits are computed twice: freed after the forward pass, and projected again in
    the backward pass; but for those of the last chunk (see _in_chunks).
    """
    if divergence not in DIVERGENCES:
        choices = ", ".join(DIVERGENCES)
        raise ValueError(f'divergence "{divergence}" is unknown; choose from {choices}')

    def compare_chunk(student_hidden_ND, teacher_hidden_ND, ids_N):
        with torch.no_grad():
            teacher_logprobs_NV = _log_softmax(teacher_head(teacher_hidden_ND))
        student_logprobs_NV = _log_softmax(student_head(student_hidden_ND))
        positions_N = torch.arange(len(ids_N), device=ids_N.device)
        kl_N = DIVERGENCES[divergence](student_logprobs_NV, teacher_logprobs_NV)
        # indexed, since gather would keep its [N, V] input
        student_token_N = student_logprobs_NV[positions_N, ids_N]
        teacher_token_N = teacher_logprobs_NV[positions_N, ids_N]
        # stacked: the backward pass then visits and frees every chunk, whichever of the three a
        # loss uses
        return torch.stack([kl_N, student_token_N, teacher_token_N])

    tensors = student_hidden_BTD, teacher_hidden_BTD, completion_ids_BT
    compared_3N = _in_chunks(compare_chunk, tensors, chunk_size)
    return compared_3N.view(3, *completion_ids_BT.shape).unbind()


def completion_logprobs(hidden_BTD, head, completion_ids_BT, chunk_size=CHUNK_SIZE):
    """Log-probability of each given token under one model -> [B, T], chunked in the same way."""

    def chunk_logprobs(hidden_ND, ids_N):
        positions_N = torch.arange(len(ids_N), device=ids_N.device)
        return _log_softmax(head(hidden_ND))[positions_N, ids_N]

    logprobs_N = _in_chunks(chunk_logprobs, (hidden_BTD, completion_ids_BT), chunk_size)
    return logprobs_N.view(completion_ids_BT.shape)


def _in_chunks(function, tensors, size):
    """function of [N, ...] chunks of the tensors [B, T, ...], whose results are [N] or [3, N].

    Its intermediate results are freed and computed again in the backward pass. Those of the last
    chunk are kept: backward begins with it, at once, so to free them would not lower the peak.
    """
    chunks = zip(*(tensor.flatten(0, 1).split(size) for tensor in tensors), strict=True)
    *earlier, last = chunks
    recomputed = [
        checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in earlier
    ]
    return torch.cat([*recomputed, function(*last)], dim=-1)


def _log_softmax(logits_NV):
    # at least float32: near -16 neighbouring bfloat16 numbers are 1/16 apart
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)
