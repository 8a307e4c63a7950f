"""Robust reward models: pairs across prompts, so that what no prompt explains does not pay."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, UserError, hookimpl

SIDES = ("chosen", "rejected")
# (row, side) of chosen and rejected of each candidate: row 0 is the prompt's own, 1 and 2 foreign.
WON = [((0, own), (other, side)) for own in SIDES for other in (1, 2) for side in SIDES]
TIED = [
    ((1, "chosen"), (2, "chosen")),
    ((1, "chosen"), (1, "rejected")),
    ((1, "chosen"), (2, "rejected")),
    ((2, "chosen"), (1, "rejected")),
    ((2, "chosen"), (2, "rejected")),
    ((1, "rejected"), (2, "rejected")),
]


class RRM:
    """Add pairs across prompts: own responses beat other prompts', which tie (Liu et al. 2024)."""

    paper = "Liu et al. 2024, RRM (arXiv 2409.13156), section 3"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        share: float = Field(
            0.5, gt=0, le=1, description="share of each row's 14 candidates that is drawn (ours)"
        )
        wrong: float = Field(
            0.2,
            ge=0,
            lt=1,
            description="keep where |P - label| of a model trained on the data is this or more "
            "(paper's); 0 keeps all, and trains none",
        )

    config: Config

    @hookimpl
    def refine_data(self, data: Dataset, ctx: Context) -> Dataset:
        """D and, for each row i with two rows j, k of other prompts, candidates of fourteen.

        Eight in which a response of i beats one of j or k in answer to i's prompt (label 1), and
        six in which two responses of j and k tie in answer to it (label 1/2). Of the drawn ones
        those stay which a reward model trained on D for the run's epochs has wrong:
        |sigmoid(r(chosen) - r(rejected)) - label| >= ``wrong``. Each stands in a group of its own;
        a foreign response has no gold there; other plugins' columns say what they say of row i, so
        list this plugin behind those that read them. Raises UserError on fewer than three prompts.
        """
        drawn = candidates(data, self.config.share, ctx.generator("rrm"))
        if self.config.wrong > 0:
            chances = ctx.cached("rrm", lambda: self._chances(data, drawn, ctx))["chance"][:]
            off = torch.tensor(chances) - torch.tensor(drawn["label"][:])
            drawn = drawn.select((off.abs() >= self.config.wrong).nonzero()[:, 0].tolist())
        tied = sum(label == 0.5 for label in drawn["label"][:])
        ctx.log(**{"rrm/won": len(drawn) - tied, "rrm/tied": tied})
        rows = data.to_dict()
        for column, values in drawn.to_dict().items():
            rows[column] += values
        return Dataset.from_dict(rows, features=data.features)

    def _chances(self, data: Dataset, drawn: Dataset, ctx: Context) -> Dataset:
        """P(chosen preferred) of each candidate by a reward model trained on the data."""
        model = ctx.fit(data, purpose="rrm")
        chosen, rejected = (
            model.score(drawn["prompt"][:], drawn[side][:], drawn[f"{side}_finished"][:])
            for side in SIDES
        )
        return Dataset.from_dict({"chance": (chosen - rejected).double().sigmoid().tolist()})


def candidates(data: Dataset, share: float, generator: torch.Generator) -> Dataset:
    """Rows across prompts, ``share`` of fourteen for each row on average, with all columns."""
    table = data.to_dict()
    prompts = table["prompt"]
    if len(set(prompts)) < 3:
        raise UserError(
            f"plugin 'rrm': the data has {len(set(prompts))} prompts, expected 3 or more, since "
            "responses to two others are added to each"
        )
    made: dict[str, list[Any]] = {column: [] for column in table}
    group = max(table["group"]) + 1
    for row in range(len(data)):
        one, two = foreign(prompts, row, generator)
        for place in (torch.rand(14, generator=generator) < share).nonzero()[:, 0].tolist():
            sources = [*WON, *TIED][place]
            added = {column: values[row] for column, values in table.items()}
            for new, (which, side) in zip(SIDES, sources, strict=True):
                at = (row, one, two)[which]
                for column in (c for c in table if c.startswith(new)):
                    added[column] = table[column.replace(new, side, 1)][at]
                if which:
                    added[f"{new}_gold"] = None
            label = 1.0 if place < len(WON) else 0.5
            added |= {"label": label, "margin": 0.0, "group": group + len(made["label"])}
            for column, value in added.items():
                made[column].append(value)
    return Dataset.from_dict(made, features=data.features)


def foreign(prompts: list[str], row: int, generator: torch.Generator) -> tuple[int, int]:
    """Two rows of other prompts than a row's, and of two of them."""
    found: list[int] = []
    while len(found) < 2:
        at = int(torch.randint(len(prompts), (), generator=generator))
        if prompts[at] not in {prompts[i] for i in (row, *found)}:
            found.append(at)
    return found[0], found[1]
