"""The Plackett-Luce loss of a ranking of K responses."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato import PreferenceBatch, RMOutputs, hookimpl

Array = NDArray[np.float64]

LEAST = 1e-9  # a chance below it is what rounding left of none


class KWise:
    """Rank all K responses to a prompt at once, not pair by pair (Book 7.4.3, Plackett-Luce)."""

    paper = "A Little Bit of RLHF, section 7.4.3; Zhu et al. 2023; Negahban et al. 2017"

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> Tensor:
        """-log P(ranking) of each comparison's whole group, nats a ranking; (V, C).

        At each choice the best of the responses that are left is picked from a softmax over their
        logits; several heads add up. With soft labels it is the mean over the rankings that
        :func:`choices` draws. K = 2 is Bradley-Terry.
        """
        left, target, owner = (t.to(outputs.logits.device) for t in ranked(batch))
        logits = outputs.logits.transpose(1, 2)[:, :, None]  # (V, heads, 1, N)
        chances = logits.masked_fill(~left, -torch.inf).log_softmax(-1).masked_fill(~left, 0.0)
        nats = -(target * chances).sum((1, 3))  # (V, M), of each choice
        rankings = nats.new_zeros(len(nats), len(batch.group)).index_add(1, owner, nats)
        return rankings[:, batch.group[batch.pairs[:, 0]]]


def ranked(batch: PreferenceBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The choices of all groups: who is left (M, N), the chance of each (M, N), the group (M,)."""
    size = len(batch.group)
    beats = np.full((size, size), 0.5)  # P(row beats column); one half where nobody compared them
    chosen, rejected = batch.pairs.T.cpu().numpy()
    beats[chosen, rejected] = batch.label.double().cpu().numpy()
    beats[rejected, chosen] = 1 - beats[chosen, rejected]
    group = batch.group.cpu().numpy()
    found = []
    for owner in np.unique(group):
        rows = np.flatnonzero(group == owner)
        found += [(owner, rows[list(c)], t) for c, t in choices(beats[np.ix_(rows, rows)])]
    left, target = torch.zeros(len(found), size, dtype=torch.bool), torch.zeros(len(found), size)
    for place, (_, rows, chances) in enumerate(found):
        left[place, rows] = True
        target[place, rows] = torch.from_numpy(chances).float()
    return left, target, torch.tensor([owner for owner, _, _ in found])


def choices(beats: Array) -> list[tuple[tuple[int, ...], Array]]:
    """Every choice that may come up in ranking K responses: who is left, and the chance of each.

    ``beats`` (K, K): P(row beats column). A chance is that the choice comes up and is made so: the
    ranking is drawn from the top, and each choice by :func:`best`. Where labels are sure and agree
    there is one ranking, of K - 1 choices; else up to 2^K - K - 1 choices.
    """
    reached, found = {tuple(range(len(beats))): 1.0}, []
    while len(next(iter(reached))) > 1:
        following: dict[tuple[int, ...], float] = defaultdict(float)
        for left, chance in reached.items():
            picked = chance * best(beats[np.ix_(left, left)])
            found.append((left, picked))
            for place in np.flatnonzero(picked > LEAST):
                following[left[:place] + left[place + 1 :]] += picked[place]
        reached = following
    return found


def best(beats: Array) -> Array:
    """The chance of each response to be the best of these, by P(row beats column), (n, n) -> (n,).

    Where a Plackett-Luce model of weights w has these chances of pairs, w over its sum: as
    w_i P(j beats i) = w_j P(i beats j), a walk that steps from i to j at the rate P(j beats i) is
    at i for that share of time (rank centrality, Negahban et al. 2017). It is taken for all labels:
    sure ones put all on the top response, and those that go round in a circle share it.
    """
    rates = beats * (1 - np.eye(len(beats)))
    flow = rates - np.diag(rates.sum(0))  # (n, n): into a row from a column
    flow[-1] = 1  # one equation says nothing new; the shares add up to 1
    share: Array = np.linalg.solve(flow, np.eye(len(beats))[-1])
    return share.clip(0)
