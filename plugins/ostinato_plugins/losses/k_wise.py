"""The Plackett-Luce loss of a ranking of K responses."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato import PreferenceBatch, RMOutputs, hookimpl

LEAST = 1e-30  # a label of 0, so that its logarithm is finite and a response's losses add up


class KWise:
    """Rank all K responses to a prompt at once, not pair by pair (Book 7.4.3, Plackett-Luce)."""

    paper = "A Little Bit of RLHF, section 7.4.3; Zhu et al. 2023"

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> Tensor:
        """-log P(ranking) of each comparison's whole group, nats a ranking; (V, C).

        At each choice the best of the responses that are left is picked from a softmax over their
        logits; several heads add up. Soft labels make the target a distribution, see
        :func:`targets`; K = 2 is Bradley-Terry.
        """
        group = batch.group
        left = (group[:, None] == group[None, :]) & (batch.rank[None, :] >= batch.rank[:, None])
        logits = outputs.logits.transpose(1, 2)[:, :, None]  # (V, heads, 1, N)
        chances = logits.masked_fill(~left, -torch.inf).log_softmax(-1).masked_fill(~left, 0.0)
        choices = -(targets(batch, left) * chances).sum((1, 3))  # (V, N): nats of each choice
        rankings = choices.new_zeros(len(choices), len(group)).index_add(1, group, choices)
        return rankings[:, group[batch.pairs[:, 0]]]


def targets(batch: PreferenceBatch, left: Tensor) -> Tensor:
    """P(response j is the best of those left) at each choice i, by the labels; (N, N).

    Proportional to the product of P(j beats l) over the others left, as if comparisons were
    independent: all on the top rank where labels are sure and agree, shared equally in a cycle. A
    pair without a comparison counts one half. ``left`` (N, N): j is there at choice i.
    """
    beats = torch.full(left.shape, 0.5, device=left.device).fill_diagonal_(1.0)
    chosen, rejected = batch.pairs.unbind(1)
    beats[chosen, rejected] = batch.label
    beats[rejected, chosen] = 1 - batch.label
    wins = left.float() @ beats.clamp_min(LEAST).log().T  # (N, N): sum over l of log P(j beats l)
    return wins.masked_fill(~left, -torch.inf).softmax(-1)
