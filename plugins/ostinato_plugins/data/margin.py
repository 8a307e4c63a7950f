"""Ask for larger score differences where the preference is stronger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import RunConfig, UserError, hookimpl


class Margin:
    """Take the strength of each comparison as its margin (Secrets II, equation 6; Book 7.4.1)."""

    paper = "Secrets of RLHF II, section 2.4.2, equation 6; A Little Bit of RLHF, 7.4.1; Llama 2"
    provides = ("margin",)

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        of: Literal["strength", "ratings"] = Field(
            "strength",
            description="the mean strength of votes, or the difference of the two ratings, which "
            "are gold's",
        )
        scale: float = Field(1.0, gt=0, description="margin of a strength or difference of 1")

    config: Config

    @property
    def consumes(self) -> tuple[str, ...]:
        """Votes, where they make the margin."""
        return ("strength_mean",) if self.config.of == "strength" else ()

    @hookimpl
    def refine_data(self, data: Dataset) -> Dataset:
        """Add scale times the strength, in raw score units, to the margin; it may be negative."""
        table = data.to_dict()
        if self.config.of == "strength":
            strength = table["strength_mean"]
        else:
            ratings = table["chosen_gold"], table["rejected_gold"]
            if any(None in column for column in ratings):
                raise UserError("plugins.margin.of: is ratings, but some pairs have no gold score")
            strength = [chosen - rejected for chosen, rejected in zip(*ratings, strict=True)]
        scale, margins = self.config.scale, table["margin"]
        table["margin"] = [m + scale * s for m, s in zip(margins, strength, strict=True)]
        return Dataset.from_dict(table, features=data.features)

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """Ratings are gold's."""
        if self.config.of == "ratings" and config.gold is None:
            yield "plugins.margin.of: is ratings, which are gold's; set gold.model or gold.function"
