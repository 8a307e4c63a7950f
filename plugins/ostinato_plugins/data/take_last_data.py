"""Train on the newest pairs only."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from ostinato import hookimpl


class TakeLastData:
    """Train each reward model on the pairs of its own iteration alone (Wolf 2.2, figure 3a)."""

    paper = "Wolf 2025, section 2.2"

    @hookimpl
    def combine_data(self, datasets: Sequence[Dataset]) -> Dataset:
        """D_k = D~_k."""
        return datasets[-1]
