"""Gold against KL, an iteration's proxy at a time: means in buckets of KL, Gao's fit, its peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ostinato.measures import GaoFit, gao_fit
from ostinato.report.results import Group
from ostinato.report.tables import number

BUCKETS = 8
RESAMPLES = 400
NONE = "No evaluation has gold and a KL: there was no gold model, or it says the same of all."
FIT = (
    "Gao's fit, gold = d (α - β log d) with d = √KL, to each iteration's evaluations. A peak is "
    "named where evaluations lie on both sides of it, with the 95% interval of its KL (bootstrap "
    "over evaluations)."
)
FIT_HEADS = ("iter.", "points", "α", "β", "RMS", "peak")


@dataclass(frozen=True)
class Frontier:
    """The evaluations of one iteration of a group's runs as points; ``edges`` are the buckets'.

    ``kl`` (n,), nats per response to the SFT policy, and ``gold`` (n,), which is 0 at SFT. One
    iteration has one proxy, and Gao's law is of one proxy.
    """

    iteration: int
    kl: list[float]
    gold: list[float]
    edges: list[float]

    @cached_property
    def buckets(self) -> dict[int, tuple[float, float, float, int]]:
        """(mean KL, mean gold, its population std, points) by place between ``edges``.

        Empty buckets are left out (Wolf et al. 2025, appendix A.1, who do not name the edges).
        """
        kl, gold = np.array(self.kl), np.array(self.gold)
        places = np.digitize(kl, self.edges[1:-1])
        found = {place: places == place for place in sorted({*places.tolist()})}
        return {
            place: (kl[here].mean(), gold[here].mean(), gold[here].std(), int(here.sum()))
            for place, here in found.items()
        }

    @cached_property
    def moved(self) -> list[float]:
        """The different KLs above 0, where the curve is not held to 0."""
        return sorted({kl for kl in self.kl if kl > 0})

    @cached_property
    def fit(self) -> GaoFit | None:
        """Gao et al. 2023's curve for RL; None with fewer than three points of different KL."""
        return gao_fit(self.kl, self.gold) if len(self.moved) >= 3 else None

    @property
    def peak(self) -> tuple[float, float] | None:
        """(KL, gold) where the fit is highest, if evaluations lie on both sides of it."""
        found = self.fit and self.fit.peak
        return found if found and self.moved[0] < found[0] < self.moved[-1] else None

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of the peaks' KLs over resampled evaluations; a fit that has none peaks at inf."""
        kl, gold = np.array(self.kl), np.array(self.gold)
        draws = np.random.default_rng(0).integers(len(kl), size=(RESAMPLES, len(kl)))
        fits = [gao_fit(kl[d].tolist(), gold[d].tolist()) for d in draws if len({*kl[d]} - {0}) > 1]
        peaks = sorted(fit.peak[0] if fit.peak else math.inf for fit in fits)
        return peaks[len(peaks) // 40], peaks[-1 - len(peaks) // 40]

    def cells(self) -> list[str]:
        """The fit as a row of a table under ``FIT_HEADS``."""
        count = [str(self.iteration), str(len(self.kl))]
        if self.fit is None:
            return [*count, *["–"] * 3, "needs three evaluations of different KL"]
        errors = np.array(self.gold) - [self.fit.height(kl) for kl in self.kl]
        first, last = self.moved[0], self.moved[-1]
        if self.peak is not None:
            low, high = self.interval
            start = f"{low:.3g}" if low > first else f"<{first:.3g}"
            end = f"{high:.3g}" if high < last else f">{last:.3g}"
            kl, gold = self.peak
            peak = f"{number(gold, '+.2f')} at KL {kl:.3g} ({start} to {end})"
        elif self.fit.beta <= 0:
            peak = "none: β is not above 0"
        elif self.fit.height(first) > self.fit.height(last):
            peak = f"none: falls from KL {first:.3g}, the first seen"
        else:
            peak = f"none: rises to KL {last:.3g}, the last seen"
        numbers = (
            (self.fit.alpha, "+.2f"),
            (self.fit.beta, "+.2f"),
            (np.sqrt(np.mean(errors**2)), ".2f"),
        )
        return [*count, *(number(*one) for one in numbers), peak]


def frontiers(groups: Sequence[Group]) -> list[list[Frontier]]:
    """One an iteration, group by group; all have the same buckets, so that they compare.

    What did not move from the SFT policy has the first bucket, the others are of equal width.
    """
    found = [
        [(k, group.points(k, "kl", "gold_sft_std")) for k in group.evaluated] for group in groups
    ]
    kls = [kl for iterations in found for _, points in iterations for kl, _ in points]
    largest = max(kls, default=0.0) or 1.0
    edges = [0.0, largest / 1000, *(largest * i / BUCKETS for i in range(1, BUCKETS + 1))]
    return [
        [
            Frontier(k, [kl for kl, _ in points], [gold for _, gold in points], edges)
            for k, points in iterations
            if points
        ]
        for iterations in found
    ]
