"""Train on a sample of fixed size from all iterations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from datasets import Dataset, concatenate_datasets
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, RunConfig, UserError, hookimpl

FRESH = (
    "plugins.sample_data.mode: coverage needs the same prompts in every iteration, so "
    "prompts.fresh must be false"
)


class SampleData:
    """Train on one iteration's worth of prompts, an equal share from each (Wolf 2.2, figure 3c)."""

    paper = "Wolf 2025, section 2.2 and figures 10, 11"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        mode: Literal["random", "coverage"] = Field(
            "random",
            description="random: any prompts of each iteration; coverage: every prompt once, its "
            "pairs from an iteration drawn at random",
        )

    config: Config

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """Fresh prompts are not covered."""
        if self.config.mode == "coverage" and config.prompts.fresh and config.iterations > 1:
            yield FRESH

    @hookimpl
    def combine_data(self, datasets: Sequence[Dataset], ctx: Context) -> Dataset:
        """|D_k| = |D~_1|: an equal share from each iteration; the newest takes the rest."""
        groups = [_rows_by_prompt(data) for data in datasets]
        size, k = len(groups[0]), len(datasets)
        shares = [size // k] * (k - 1) + [size - size // k * (k - 1)]
        generator = ctx.generator("sample_data")
        if self.config.mode == "coverage":
            if any(set(g) != set(groups[0]) for g in groups):
                raise UserError(FRESH)
            prompts = list(groups[0])
            order = torch.randperm(size, generator=generator).tolist()
            cut = [sum(shares[:i]) for i in range(k + 1)]
            chosen = [[prompts[j] for j in order[a:b]] for a, b in pairwise(cut)]
        else:
            chosen = [
                [list(g)[j] for j in torch.randperm(len(g), generator=generator)[:n].tolist()]
                for g, n in zip(groups, shares, strict=True)
            ]
        return concatenate_datasets(
            [
                data.select(sorted(row for prompt in prompts for row in rows[prompt]))
                for data, rows, prompts in zip(datasets, groups, chosen, strict=True)
            ]
        )


def _rows_by_prompt(data: Dataset) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row, prompt in enumerate(data["prompt_id"]):
        found.setdefault(prompt, []).append(row)
    return found
