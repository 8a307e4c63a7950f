"""Train on the first pairs only."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from ostinato import hookimpl


class TakeFirstData:
    """Train each reward model on the first iteration's pairs alone (Secrets II, MetaRM)."""

    paper = "Secrets of RLHF II, section 3.2: MetaRM's original preference pairs"

    @hookimpl
    def combine_data(self, datasets: Sequence[Dataset]) -> Dataset:
        """D_k = D~_1."""
        return datasets[0]
