"""Train on everything collected so far."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset, concatenate_datasets

from ostinato import hookimpl


class Concat:
    """Train each reward model on the pairs of all iterations (Wolf 2.2, figure 3b)."""

    paper = "Wolf 2025, section 2.2"

    @hookimpl
    def combine_data(self, datasets: Sequence[Dataset]) -> Dataset:
        """D_k = the union of D~_1..D~_k."""
        return concatenate_datasets(list(datasets))
