"""The divergences of SDFT and the three estimators of their gradient (arXiv 2601.19897, appendix A.1). Only needs torch.

Shape key: B sequences, T completion tokens, V vocabulary, D hidden. "logprobs" are log-softmax outputs, in nats.

    divergence of one step t           reverse_kl, forward_kl, jensen_shannon    _BTV, _BTV -> _BT
    estimator of the sequence's KL     a surrogate _BT: the gradient of its masked sum over t IS the estimator
    reduction                          sequence_mean, sequence_sum               _BT, mask_BT -> _B

A surrogate's value means nothing; log the KL instead.
"""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


# ---- divergences between two next-token distributions ----

def reverse_kl(student_logprobs_BTV, teacher_logprobs_BTV):
    """KL(student || teacher) = sum_v p_S(v) [log p_S(v) - log p_T(v)] -> [B, T], nats.  Eq. 1 of the paper, one step."""
    return _kl(student_logprobs_BTV, teacher_logprobs_BTV)


def forward_kl(student_logprobs_BTV, teacher_logprobs_BTV):
    """KL(teacher || student) = sum_v p_T(v) [log p_T(v) - log p_S(v)] -> [B, T], nats.  What the authors' code minimises."""
    return _kl(teacher_logprobs_BTV, student_logprobs_BTV)


def jensen_shannon(student_logprobs_BTV, teacher_logprobs_BTV):
    """[KL(student || M) + KL(teacher || M)] / 2 with M = (student + teacher) / 2 -> [B, T], nats, at most log 2."""
    # a token that both exclude: any finite number will do, its weight is 0; logaddexp(-inf, -inf) has no gradient
    excluded_BTV = (student_logprobs_BTV == -math.inf) & (teacher_logprobs_BTV == -math.inf)
    mixture_logprobs_BTV = torch.logaddexp(student_logprobs_BTV.masked_fill(excluded_BTV, 0.0),
                                           teacher_logprobs_BTV.masked_fill(excluded_BTV, 0.0)) - math.log(2)
    return 0.5 * (_kl(student_logprobs_BTV, mixture_logprobs_BTV) + _kl(teacher_logprobs_BTV, mixture_logprobs_BTV))


DIVERGENCES = {"reverse": reverse_kl, "forward": forward_kl, "jsd": jensen_shannon}


def _kl(p_logprobs_BTV, q_logprobs_BTV):
    """sum_v p(v) [log p(v) - log q(v)]; a token that p excludes counts 0, one that only q excludes counts infinity."""
    log_ratio_BTV = (p_logprobs_BTV - q_logprobs_BTV).masked_fill(p_logprobs_BTV == -math.inf, 0.0)
    return (p_logprobs_BTV.exp() * log_ratio_BTV).sum(-1)


# ---- estimators: write l_t = log p_S(y_t) - log p_T(y_t) on the sampled token, k_t = KL(student || teacher) at step t ----

def analytic_surrogate(kl_BT):
    """sum_t grad k_t: the full-vocabulary gradient of each step; the prefix is taken as given.  The paper's choice (Eq. 2, v2)."""
    return kl_BT


def token_surrogate(student_token_logprobs_BT, teacher_token_logprobs_BT):
    """sum_t l_t grad log p_S(y_t): same expectation as `analytic_surrogate`, higher variance. Reverse KL only."""
    log_ratio_BT = (student_token_logprobs_BT - teacher_token_logprobs_BT).detach()
    return log_ratio_BT * student_token_logprobs_BT


def rao_blackwell_surrogate(kl_BT, student_token_logprobs_BT):
    """sum_t [grad k_t + k_t sum_{i<t} grad log p_S(y_i)]: unbiased for the gradient of the sequence's KL. Reverse KL only.

    The inner sum runs over ALL earlier tokens: mask t in the result, never i. Reduce with `sequence_sum`: a 1/T
    depends on later tokens and would bias it.
    """
    earlier_logprobs_BT = F.pad(student_token_logprobs_BT.cumsum(1)[:, :-1], (1, 0))  # exclusive: i < t
    return kl_BT + kl_BT.detach() * earlier_logprobs_BT


# ---- losses of the baselines, on completions that were given ----

def likelihood_loss(token_logprobs_BT):
    """-log p of each token: supervised fine-tuning (SFT), and continued pre-training (CPT) on plain text."""
    return -token_logprobs_BT


def dynamic_loss(token_logprobs_BT):
    """-stopgrad(p) log p of each token: dynamic fine-tuning (DFT, Wu et al. 2025), SFT without the 1/p in its gradient."""
    return -token_logprobs_BT.exp().detach() * token_logprobs_BT


# ---- reductions: of each sequence; the mean over the batch is the caller's ----

def sequence_sum(values_BT, mask_BT):
    """Sum over the tokens where the mask is true -> [B].  Algorithm 1, l. 16."""
    return torch.where(mask_BT, values_BT, 0.0).sum(1)  # where, not *: what padding holds must not matter, not even NaN


def sequence_mean(values_BT, mask_BT):
    """Mean over the tokens where the mask is true -> [B]; 0 for a sequence without any.  What the authors' code does."""
    return sequence_sum(values_BT, mask_BT) / mask_BT.sum(1).clamp(min=1)


# ---- by name ----

ESTIMATORS = {  # each turns three [B, T] tensors into the [B, T] whose gradient is the estimator
    "analytic": lambda kl_BT, student_logprobs_BT, teacher_logprobs_BT: analytic_surrogate(kl_BT),
    "token": lambda kl_BT, student_logprobs_BT, teacher_logprobs_BT: token_surrogate(student_logprobs_BT, teacher_logprobs_BT),
    "rb": lambda kl_BT, student_logprobs_BT, teacher_logprobs_BT: rao_blackwell_surrogate(kl_BT, student_logprobs_BT),
}
LIKELIHOODS = {"nll": likelihood_loss, "dft": dynamic_loss}
REDUCTIONS = {"mean": sequence_mean, "sum": sequence_sum}


# ---- both models' vocabulary projection and the divergence, without [T, V] ever standing whole ----

def compare_completions(student_hidden_BTD, student_head, teacher_hidden_BTD, teacher_head, completion_ids_BT, divergence,
                        chunk_size=256):
    """The divergence at each position, and both models' log-probability of the sampled token.

    student_hidden_BTD, teacher_hidden_BTD   the states that predict completion_ids_BT
    student_head, teacher_head               the models' `lm_head` modules; no gradient reaches the teacher's
    divergence                               "reverse" | "forward" | "jsd"; anything else: ValueError
    chunk_size                               positions projected at a time: peak memory grows with chunk_size x V, not with T x V
    returns kl_BT, student_token_logprobs_BT, teacher_token_logprobs_BT (unmasked; float32, or float64 from float64)

    The student's logits are not kept but computed again in backward: one more projection, in exchange for B x T x V floats.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f'divergence "{divergence}" is unknown; choose from {", ".join(DIVERGENCES)}')
    B, T = completion_ids_BT.shape

    def compare_chunk(student_hidden_ND, teacher_hidden_ND, ids_N):
        with torch.no_grad():
            teacher_logprobs_NV = _log_softmax(teacher_head(teacher_hidden_ND))
        student_logprobs_NV = _log_softmax(student_head(student_hidden_ND))
        positions = torch.arange(len(ids_N), device=ids_N.device)
        # one tensor, so that backward visits all of the chunk, whichever of the three a loss uses: what it does not visit
        # would stay in memory until the last chunk is done. Indexed, because gather would keep its [N, V] input
        return torch.stack([DIVERGENCES[divergence](student_logprobs_NV, teacher_logprobs_NV),
                            student_logprobs_NV[positions, ids_N], teacher_logprobs_NV[positions, ids_N]])

    chunks = zip(student_hidden_BTD.flatten(0, 1).split(chunk_size), teacher_hidden_BTD.flatten(0, 1).split(chunk_size),
                 completion_ids_BT.flatten().split(chunk_size))
    results = [checkpoint(compare_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(results, dim=1).view(3, B, T).unbind()


def completion_logprobs(hidden_BTD, head, completion_ids_BT, chunk_size=256):
    """Log-probability of each given token under one model -> [B, T], in chunks of positions like `compare_completions`."""
    def chunk_logprobs(hidden_ND, ids_N):
        return _log_softmax(head(hidden_ND))[torch.arange(len(ids_N), device=ids_N.device), ids_N]

    chunks = zip(hidden_BTD.flatten(0, 1).split(chunk_size), completion_ids_BT.flatten().split(chunk_size))
    results = [checkpoint(chunk_logprobs, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(results).view(completion_ids_BT.shape)


def _log_softmax(logits_NV):
    # at least fp32: a bf16 log-probability near -16 is only known to 1/16
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)
