"""Outcome reward models: they predict whether the final answer is right."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ostinato import Context, PreferenceBatch, RMOutputs, hookimpl, plain_function
from ostinato_plugins.steps import cross_entropy
from ostinato_plugins.verdicts import Verdicts

KEY = "plugins.orm.function"


class ORM:
    """Predict at every token whether the response's final answer is right (Book 7.5)."""

    paper = (
        "A Little Bit of RLHF, section 7.5; Cobbe et al. 2021 (verifiers, GSM8K); "
        "Lightman et al. 2023 (Let's Verify Step by Step)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        function: str = Field(
            description="module:function or file.py:function that says of each completion whether "
            "it is right"
        )
        tokens: Literal["all", "last"] = Field(
            "all", description="the response's tokens that predict it; the last one's is the score"
        )

        @field_validator("function")
        @classmethod
        def _there(cls, value: str) -> str:
            plain_function(value, KEY)
            return value

    config: Config

    @cached_property
    def verdicts(self) -> Verdicts:
        """What the function says, each response asked of once."""
        return Verdicts(KEY, self.config.function)

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> Tensor:
        """Cross-entropy of "the answer is right" at the response's tokens; (V, C)."""
        found = self.verdicts(batch.prompt, batch.response, ctx)
        right = torch.tensor([float(v) for v in found], device=batch.mask.device)
        where = batch.response_mask
        if self.config.tokens == "last":
            places = torch.arange(where.shape[1], device=where.device)
            where = where & (places == batch.mask.sum(1, keepdim=True) - 1)
        return cross_entropy(batch, outputs, right[:, None].expand_as(where), where)
