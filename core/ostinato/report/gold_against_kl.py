"""Gold against KL over the runs of a group: means in buckets of KL, and Gao's fit with its peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ostinato.measures import GaoFit, gao_fit, kl_buckets
from ostinato.report.results import Group
from ostinato.report.tables import number

BUCKETS = 8
FAR = 100  # a peak at a KL so many times beyond the data is no prediction
NONE = "No evaluation has gold and a KL: these runs had no gold model."


@dataclass(frozen=True)
class Frontier:
    """Every evaluation of a group's runs as a point; ``edges`` are those of the KL buckets.

    ``kl`` (n,), nats per response to the SFT policy, and ``gold`` (n,), which is 0 at SFT.
    """

    kl: list[float]
    gold: list[float]
    edges: list[float]

    @cached_property
    def buckets(self) -> list[tuple[float, float, float, int]]:
        """(centre, mean gold, std, points) by rising KL (Wolf et al. 2025, figures 4 to 6)."""
        return kl_buckets(self.kl, self.gold, self.edges) if self.kl else []

    @cached_property
    def fit(self) -> GaoFit | None:
        """Gao et al. 2023's curve for RL; None with fewer than three points of different KL."""
        if len({kl for kl in self.kl if kl > 0}) < 3:
            return None
        return gao_fit(self.kl, self.gold)

    def height(self, kl: float) -> float:
        """The fitted gold at a KL."""
        assert self.fit is not None
        d = math.sqrt(kl)
        return d * (self.fit.alpha - self.fit.beta * math.log(d)) if d else 0.0

    def words(self) -> str:
        """The fit and its peak in one sentence, and whether the peak was seen."""
        if not self.kl:
            return NONE
        if self.fit is None:
            return "Gao's fit needs three evaluations of different KL above 0."
        errors = [(g - self.height(kl)) ** 2 for kl, g in zip(self.kl, self.gold, strict=True)]
        alpha, beta = (number(x, "+.2f") for x in (self.fit.alpha, self.fit.beta))
        error = number(math.sqrt(sum(errors) / len(errors)), ".2f")
        curve = (
            f"Gao's fit to {len(self.kl)} evaluations: gold = d (α - β log d), d = √KL, "
            f"α {alpha}, β {beta}, off by {error} (RMS)"
        )
        return f"{curve}; {self._peak()}."

    def _peak(self) -> str:
        assert self.fit is not None
        largest = max(self.kl)
        far = f" up to {FAR} times the largest KL seen, {largest:.3g}"
        if self.fit.predicted_peak is None or self.fit.predicted_gold is None:
            return "no peak" + (", for β is not above 0" if self.fit.beta <= 0 else far)
        d, gold = self.fit.predicted_peak, number(self.fit.predicted_gold, "+.2f")
        if d**2 > FAR * largest:
            return f"no peak{far}"
        said = f"gold peaks at {gold}, d {d:.3g}, KL {d**2:.3g}"
        if d**2 > largest:
            return f"{said}: an extrapolation, the largest KL seen is {largest:.3g}"
        return said


def frontiers(groups: Sequence[Group]) -> list[Frontier]:
    """One a group; all have the same buckets, of equal width, so that they compare."""
    points = [
        [
            (float(row["kl"]), float(row["gold_reward"]))
            for run in group.runs
            for row in run.evaluations
            if all(isinstance(row.get(key), int | float) for key in ("kl", "gold_reward"))
        ]
        for group in groups
    ]
    largest = max((kl for found in points for kl, _ in found), default=0.0) or 1.0
    edges = [largest * i / BUCKETS for i in range(BUCKETS + 1)]
    return [Frontier([kl for kl, _ in f], [gold for _, gold in f], edges) for f in points]
