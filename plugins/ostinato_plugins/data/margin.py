"""Ask for larger score differences where the votes see a stronger preference."""

from __future__ import annotations

from datasets import Dataset

from ostinato import hookimpl


class Margin:
    """Take the mean strength as the margin of each comparison (Secrets II, equation 6)."""

    paper = "Secrets of RLHF II, section 2.4.2, equation 6; Llama 2"
    consumes = ("strength_mean",)
    provides = ("margin",)

    @hookimpl
    def refine_data(self, data: Dataset) -> Dataset:
        """Add the mean strength mu, in raw score units, to the margin; mu may be negative."""
        table = data.to_dict()
        pairs = zip(table["margin"], table["strength_mean"], strict=True)
        table["margin"] = [margin + strength for margin, strength in pairs]
        return Dataset.from_dict(table, features=data.features)
