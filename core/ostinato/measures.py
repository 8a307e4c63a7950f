"""What a run measures: advantages, KL, the gap between proxy and gold, MMD, rank agreement.

Pure functions of tensors; nothing here knows a model, a plugin or a file. Shapes: B batch, T
tokens, V vocabulary. Logs are natural, so KL is in nats. Masks are 1 (or True) on real tokens. What
stands on padding never reaches a result, not even nan or inf. Halves are computed in float32.
Statistics of a sample are computed in float64 on the CPU, without gradient. Shapes or lengths that
differ, and should not, raise ValueError: broadcasting a mask would hide mistakes. So does a sample
that holds a value which is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Sample = Tensor | Sequence[float]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the real tokens of the whole batch: a scalar, differentiable.

    x, mask: any one shape, as a rule (B, T). Nan where no token is real, as torch.mean of nothing.
    """
    _same_shape(x=x, mask=mask)
    keep = mask.bool()
    return _float(x).masked_fill(~keep, 0.0).sum() / keep.sum()


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x shifted and scaled to mean 0 and variance 1 over the real tokens; 0 on padding.

    x, mask: (B, T) -> (B, T). Population variance, 1e-8 added to it under the root (Huang et al.
    2023, "The N implementation details of RLHF with PPO"); one real token, or equal ones, give 0.
    """
    _same_shape(x=x, mask=mask)
    keep = mask.bool()
    centred = (_float(x) - masked_mean(x, mask)).masked_fill(~keep, 0.0)
    scale = torch.rsqrt(masked_mean(centred.square(), mask) + 1e-8)
    return (centred * scale).masked_fill(~keep, 0.0)  # scale is nan where no token is real


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns that the value head is fitted to.

    rewards, values, mask: (B, T), padded right -> advantages, returns, both (B, T), 0 on padding.
    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return_t = A_t + V_t
    (Schulman et al. 2016, arXiv 1506.02438, equations 12 and 16). Nothing follows the last real
    token: V and A are 0 there, for a truncated response too. Neither is whitened. Differentiable,
    so pass values detached. Raises ValueError when a real token follows padding, or when gamma or
    lam lies outside [0, 1].
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    if rewards.dim() != 2:
        raise ValueError(f"gae wants (batch, tokens), not {tuple(rewards.shape)}")
    if not (0.0 <= gamma <= 1.0 and 0.0 <= lam <= 1.0):
        raise ValueError(f"gamma and lam must lie in [0, 1], not {gamma} and {lam}")
    keep = mask.bool()
    if bool((keep[:, 1:] & ~keep[:, :-1]).any()):
        raise ValueError("gae wants responses padded right, but a real token follows padding")
    rewards = _float(rewards).masked_fill(~keep, 0.0)
    values = _float(values).masked_fill(~keep, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values  # (B, T), 0 on padding
    steps = [deltas.new_zeros(len(deltas))]  # what follows the last token
    for delta in reversed(deltas.unbind(1)):
        steps.append(delta + gamma * lam * steps[-1])
    advantages = torch.stack(steps[::-1], dim=1)[:, :-1]
    return advantages, advantages + values


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip: float | None) -> Tensor:
    """min(rho A, clip(rho, 1 - clip, 1 + clip) A) with rho = exp(log_ratio), to be maximised.

    Any one shape: (B, T) for a ratio of tokens, (B,) for one of whole responses. Where rho is 1 its
    gradient is A times that of the log-probability; clip None is rho A, plain importance weights
    (Schulman et al. 2017, arXiv 1707.06347, equations 6 and 7).
    """
    _same_shape(log_ratio=log_ratio, advantages=advantages)
    ratio = log_ratio.exp()
    if clip is None:
        return ratio * advantages
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref of sampled tokens, nats per token: unbiased for KL(pi || pi_ref).

    Any one shape, as a rule (B, T). Single values may be negative; summed over a response, the mean
    is the KL per response. Schulman 2020, "Approximating KL Divergence".
    """
    _same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return _float(logprobs) - _float(ref_logprobs)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2, nats per token: biased, low variance, never negative.

    Shapes and source: as kl_k1.
    """
    return 0.5 * kl_k1(logprobs, ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """rho - 1 - log rho with rho = pi_ref / pi, nats per token: unbiased and never negative.

    A loss term of Shao et al. 2024 (arXiv 2402.03300, equation 4). Infinite in float32 once
    log rho passes 88. Shapes and source: as kl_k1.
    """
    log_ratio = -kl_k1(logprobs, ref_logprobs)
    return (torch.expm1(log_ratio) - log_ratio).clamp_min(0.0)  # where expm1 falls an ulp short


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(pi || pi_ref) of the next-token distributions over the whole vocabulary.

    logits, ref_logits (B, T, V) -> (B, T), nats per token, never negative. Row by row in float32:
    without gradient there is no second (B, T, V) table. Where pi is 0 (a logit of -inf) the term is
    0; where only pi_ref is 0 the KL is inf. Summed over the tokens of responses sampled from pi,
    its mean is the KL per response, with less variance than k1.
    """
    _same_shape(logits=logits, ref_logits=ref_logits)
    if logits.dim() != 3:
        raise ValueError(f"exact_kl wants (batch, tokens, vocabulary), not {tuple(logits.shape)}")
    rows: list[Tensor] = []
    for row, ref_row in zip(logits, ref_logits, strict=True):  # (T, V)
        logp = _float(row).log_softmax(-1)
        p = logp.exp()
        gap = (logp - _float(ref_row).log_softmax(-1)).masked_fill(p == 0, 0.0)  # no 0 * inf
        rows.append((p * gap).sum(-1).clamp_min(0.0))
    return torch.stack(rows)


def standardise(x: Tensor, mean: float, std: float) -> Tensor:
    """(x - mean) / std, any shape: rewards on the scale of the sample that gave mean and std.

    Reward functions that differ by a positive affine map become equal (Wolf et al. 2025, appendix
    A.2 and proposition B.1). Raises ValueError unless mean is finite and std is finite and > 0.
    """
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"cannot standardise with mean {mean} and std {std}")
    return (_float(x) - mean) / std


def mean_and_std(x: Sample) -> tuple[float, float | None]:
    """Mean and standard deviation (ddof 1) of x (n,).

    The std is None with fewer than two values, and where it is float32's rounding, below 1e-6 of
    the largest value's size: no scale is ever made of noise. Raises ValueError when x is empty.
    """
    values = _sample("x", x)
    if not len(values):
        raise ValueError("mean_and_std needs a value")
    std = values.std().item() if len(values) > 1 else 0.0
    return values.mean().item(), std if std > 1e-6 * values.abs().max().item() else None


def wins(score: Sample, other: Sample, same: Tensor) -> Tensor:
    """1 where score beats other, 0 where it is beaten, 1/2 where they tie or are the ``same``.

    score, other (n,), same (n,) bool -> (n,) float64: the mean is the share of prompts on which one
    response beats another, the same under any increasing change of the score. ``same`` marks equal
    responses, which rounding may score apart.
    """
    a, b = _paired(score=score, other=other)
    return torch.sign(a - b).masked_fill(same.cpu(), 0.0).add(1).div(2)


def mean_and_error(x: Tensor) -> tuple[float, float]:
    """Mean of x (n,) over prompts and its standard error; 0 of one value."""
    error = x.std().item() / math.sqrt(len(x)) if len(x) > 1 else 0.0
    return x.mean().item(), error


def temperature(differences: Sample, labels: Sample) -> float:
    """The T > 0 at which sigmoid(difference / T) is calibrated: the likeliest for the labels.

    differences (n,): score of the chosen response minus the rejected one's; labels (n,): P(chosen
    preferred). Labels are drawn to 1/2 by one comparison either way (Platt 1999, "Probabilistic
    outputs for support vector machines", section 2.2), so that a model which orders all of them
    right keeps a T above 0. Inf where the scores order them no better than chance. Raises
    ValueError when n is 0.
    """
    d, p = _paired(differences=differences, labels=labels)
    if not len(d):
        raise ValueError("temperature needs a comparison")
    target = (len(p) * p + 1) / (len(p) + 2)

    def slope(a: float) -> float:  # of the negative log-likelihood, convex in a = 1 / T
        return (d * (torch.sigmoid(a * d) - target)).sum().item()

    if slope(0.0) >= 0:
        return math.inf
    low, high = 0.0, 1.0 / d.abs().max().item()
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def mmd2(x: Sample, y: Sample) -> float:
    """Unbiased squared maximum mean discrepancy between two samples of rewards.

    x (n,), y (m,) -> a float, which may be negative; its kernel is
    exp(-(a - b)^2 / (2 bandwidth^2)) (Gretton et al. 2012, lemma 6, equation 3; Wolf et al. 2025,
    appendix A.2). The bandwidth follows the sample, by the median heuristic (Gretton et al.,
    section 8): the median |a - b| over all pairs of the pooled sample; where ties make that 0, the
    median of the positive distances; all values equal give 0.0. Memory grows with (n + m)^2.
    Raises ValueError when n or m is below 2.
    """
    a, b = _sample("x", x), _sample("y", y)
    n, m = len(a), len(b)
    if n < 2 or m < 2:
        raise ValueError(f"mmd2 needs at least two values in each sample, not {n} and {m}")
    distances = torch.pdist(torch.cat([a, b]).unsqueeze(1))
    bandwidth = _median(distances) or _median(distances[distances > 0])
    if bandwidth == 0:
        return 0.0

    def kernel_sum(u: Tensor, v: Tensor) -> float:
        scaled = (u.unsqueeze(1) - v) / bandwidth
        return torch.exp(-0.5 * scaled.square()).sum().item()

    within_x = (kernel_sum(a, a) - n) / (n * (n - 1))  # k(a, a) = 1 on the diagonal
    within_y = (kernel_sum(b, b) - m) / (m * (m - 1))
    return within_x + within_y - 2 * kernel_sum(a, b) / (n * m)


def spearman(x: Sample, y: Sample) -> float:
    """Spearman's rank correlation of x (n,) and y (n,), tied values sharing their mean rank.

    Pearson's correlation of the ranks; nan where either is constant. Raises ValueError if n < 2.
    """
    a, b = _paired(x=x, y=y)
    if len(a) < 2:
        raise ValueError(f"spearman needs at least two values, not {len(a)}")
    a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(a.dot(a).item() * b.dot(b).item())
    return max(-1.0, min(1.0, a.dot(b).item() / scale)) if scale > 0 else math.nan


def pairwise_accuracy(score_a: Sample, score_b: Sample, gold_a: Sample, gold_b: Sample) -> float:
    """Share of pairs that the scores order as gold does, over pairs that gold does not tie.

    Four samples (n,) -> a float in [0, 1]. A pair tied by the scores alone counts one half, so a
    constant reward model has .5. Nan where gold ties every pair.
    """
    score_a, score_b, gold_a, gold_b = _paired(
        score_a=score_a, score_b=score_b, gold_a=gold_a, gold_b=gold_b
    )
    score, gold = torch.sign(score_a - score_b), torch.sign(gold_a - gold_b)
    decided = gold != 0
    agreement = (1 + score[decided] * gold[decided]) / 2  # 1 agrees, 0 disagrees, 1/2 is tied
    return agreement.mean().item()


@dataclass(frozen=True)
class GaoFit:
    """A fitted overoptimisation curve: gold = d (alpha - beta log d), d = sqrt(KL), KL in nats."""

    alpha: float
    beta: float

    def height(self, kl: float) -> float:
        """Gold on the curve at a KL, 0 at KL 0."""
        d = math.sqrt(kl)
        return d * (self.alpha - self.beta * math.log(d)) if d else 0.0

    @property
    def peak(self) -> tuple[float, float] | None:
        """(KL, gold) where the curve is highest, at d = exp(alpha / beta - 1).

        None where beta <= 0, since the curve then has no peak, and where its KL passes any float.
        """
        if self.beta <= 0 or self.alpha / self.beta > 350:
            return None
        d = math.exp(self.alpha / self.beta - 1)
        return d * d, self.beta * d  # alpha - beta log d = beta at the peak


def gao_fit(kl: Sample, gold: Sample) -> GaoFit:
    """Least-squares fit of gold reward against d = sqrt(KL), the curve for RL.

    kl (n,), nats per response, >= 0; gold (n,), with the gold reward of the initial policy
    subtracted, since the curve passes through 0 at KL 0 (Gao et al. 2023, arXiv 2210.10760,
    section 1). A peak beyond the observed KL is an extrapolation. Raises ValueError when a KL is
    negative, or fewer than two positive KL values differ.
    """
    kls, golds = _paired(kl=kl, gold=gold)
    if bool((kls < 0).any()):
        raise ValueError(f"gao_fit needs KL >= 0, not {kls.min().item()}")
    positive = kls[kls > 0]
    if len(positive) < 2 or bool(positive.min() == positive.max()):
        raise ValueError("gao_fit needs at least two different positive values of KL")
    d = kls.sqrt()
    columns = torch.stack([d, -torch.special.xlogy(d, d)], dim=1)  # 0 log 0 = 0
    alpha, beta = torch.linalg.lstsq(columns, golds.unsqueeze(1)).solution.flatten().tolist()
    return GaoFit(alpha, beta)


def _float(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}")


def _sample(name: str, x: Sample) -> Tensor:
    """x (n,) as float64 on the CPU, detached; ValueError unless it is flat and finite."""
    whole = (
        x.detach().cpu() if isinstance(x, Tensor) else torch.tensor(list(x), dtype=torch.float64)
    )
    values = whole.double()
    if values.dim() != 1:
        raise ValueError(f"{name} must have one dimension, not shape {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds a value that is not finite")
    return values


def _paired(**samples: Sample) -> list[Tensor]:
    """Each sample through _sample; ValueError unless all have one length."""
    values = {name: _sample(name, sample) for name, sample in samples.items()}
    _same_shape(**values)
    return list(values.values())


def _median(x: Tensor) -> float:
    """Median of x (n,), the mean of the middle two for even n; 0.0 of nothing."""
    return ((x.median() - (-x).median()) / 2).item() if len(x) else 0.0


def _ranks(x: Tensor) -> Tensor:
    """Ranks of x (n,) from 1, tied values sharing their mean rank."""
    ordered = x.sort().values
    below, not_above = torch.searchsorted(ordered, x), torch.searchsorted(ordered, x, right=True)
    return (below + not_above + 1).double() / 2
