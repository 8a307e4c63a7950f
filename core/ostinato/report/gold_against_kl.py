"""Gold against KL, an iteration's proxy at a time: means in buckets of KL, Gao's fit, its peak."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ostinato.measures import GaoFit, gao_fit, kl_buckets
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
    def buckets(self) -> list[tuple[float, float, float, int]]:
        """(mean KL, mean gold, std, points) by rising KL (Wolf et al. 2025, appendix A.1)."""
        return kl_buckets(self.kl, self.gold, self.edges)

    @property
    def placed(self) -> dict[int, tuple[float, float, float, int]]:
        """The buckets by their place between ``edges``."""
        last = len(self.edges) - 2
        return {min(bisect_right(self.edges, b[0]) - 1, last): b for b in self.buckets}

    @cached_property
    def moved(self) -> list[float]:
        """The different KLs above 0, where the curve is not held to 0."""
        return sorted({kl for kl in self.kl if kl > 0})

    @cached_property
    def fit(self) -> GaoFit | None:
        """Gao et al. 2023's curve for RL; None with fewer than three points of different KL."""
        return gao_fit(self.kl, self.gold) if len(self.moved) >= 3 else None

    def height(self, kl: float) -> float:
        """The fitted gold at a KL."""
        assert self.fit is not None
        d = math.sqrt(kl)
        return d * (self.fit.alpha - self.fit.beta * math.log(d)) if d else 0.0

    @cached_property
    def peak(self) -> tuple[float, float] | None:
        """(KL, gold) where the fit is highest, if evaluations lie on both sides of it."""
        if self.fit is None or self.fit.predicted_peak is None or self.fit.predicted_gold is None:
            return None
        at = self.fit.predicted_peak * self.fit.predicted_peak  # where ** 2 overflows, inf
        inside = self.moved[0] < at < self.moved[-1]
        return (at, self.fit.predicted_gold) if inside else None

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of the peaks' KLs over resampled evaluations; a fit that has none peaks at inf."""
        kl, gold = np.array(self.kl), np.array(self.gold)
        draws = np.random.default_rng(0).integers(len(kl), size=(RESAMPLES, len(kl)))
        fits = [gao_fit(kl[d].tolist(), gold[d].tolist()) for d in draws if len({*kl[d]} - {0}) > 1]
        ds = [math.inf if fit.predicted_peak is None else fit.predicted_peak for fit in fits]
        peaks = sorted(d * d for d in ds)
        return peaks[len(peaks) // 40], peaks[-1 - len(peaks) // 40]

    def cells(self) -> list[str]:
        """The fit as a row of a table under ``FIT_HEADS``."""
        count = [str(self.iteration), str(len(self.kl))]
        if self.fit is None:
            return [*count, *["–"] * 3, "needs three evaluations of different KL"]
        errors = [(g - self.height(kl)) ** 2 for kl, g in zip(self.kl, self.gold, strict=True)]
        fitted = [number(x, "+.2f") for x in (self.fit.alpha, self.fit.beta)]
        return [*count, *fitted, number(math.sqrt(np.mean(errors)), ".2f"), self._peak_words()]

    def _peak_words(self) -> str:
        assert self.fit is not None
        first, last = self.moved[0], self.moved[-1]
        if self.peak is not None:
            low, high = self.interval
            start = f"{low:.3g}" if low > first else f"<{first:.3g}"
            end = f"{high:.3g}" if high < last else f">{last:.3g}"
            return f"{number(self.peak[1], '+.2f')} at KL {self.peak[0]:.3g} ({start} to {end})"
        if self.fit.beta <= 0:
            return "none: β is not above 0"
        if self.height(first) > self.height(last):
            return f"none: falls from KL {first:.3g}, the first seen"
        return f"none: rises to KL {last:.3g}, the last seen"


def frontiers(groups: Sequence[Group]) -> list[list[Frontier]]:
    """One an iteration, group by group; all have the same buckets, so that they compare.

    What did not move from the SFT policy has the first bucket, the others are of equal width.
    """
    points = [
        {k: group.points(k, "kl", "gold_sft_std") for k in group.evaluated} for group in groups
    ]
    kls = [kl for iterations in points for found in iterations.values() for kl, _ in found]
    largest = max(kls, default=0.0) or 1.0
    edges = [0.0, largest / 1000, *(largest * i / BUCKETS for i in range(1, BUCKETS + 1))]
    return [
        [
            Frontier(k, [kl for kl, _ in found], [gold for _, gold in found], edges)
            for k, found in iterations.items()
            if found
        ]
        for iterations in points
    ]
