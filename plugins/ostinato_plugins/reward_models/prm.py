"""Process reward models: they predict of each step whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ostinato import (
    Context,
    PreferenceBatch,
    Reward,
    RMOutputs,
    Samples,
    Scores,
    UserError,
    hookimpl,
    plain_function,
    wrapped,
)
from ostinato_plugins.steps import cross_entropy, cut, step_ends
from ostinato_plugins.verdicts import Verdicts

KEY = "plugins.prm.function"
# What a response is worth after each of its steps, of the steps' scores (steps,).
RUNNING: Mapping[str, Callable[[Tensor], Tensor]] = {
    "min": lambda steps: steps.cummin(0).values,
    "mean": lambda steps: steps.cumsum(0) / torch.arange(1, len(steps) + 1, device=steps.device),
    "last": lambda steps: steps,
}


class PRM:
    """Predict at the end of each step whether it is right; the worst step counts (Book 7.6)."""

    paper = (
        "A Little Bit of RLHF, section 7.6; Lightman et al. 2023 (Let's Verify Step by Step); "
        "Uesato et al. 2022; Cheng et al. 2025 (PURE: the minimum as a dense reward)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        function: str = Field(
            description="module:function or file.py:function that says of each step of each "
            "completion whether it is right"
        )
        separator: str = Field("\n", min_length=1, description="ends a step, as text")
        reduce: Literal["min", "mean", "last"] = Field(
            "min", description="what a response is worth by its steps' scores"
        )
        dense: bool = Field(
            False, description="give each step, at its last token, what it adds to that"
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
        """Cross-entropy of "this step is right" at the steps' last tokens; (V, C)."""
        right = torch.zeros(batch.mask.shape)
        where = torch.zeros(batch.mask.shape, dtype=torch.bool)
        found = self.verdicts(batch.prompt, batch.response, ctx)
        for row, verdicts in enumerate(found):
            self._check(batch.response[row], verdicts)
            places = batch.response_mask[row].nonzero().flatten().tolist()
            ids = batch.input_ids[row][places].tolist()
            ends = step_ends(batch.tokenizer, tuple(ids), self.config.separator) if ids else []
            for end, verdict in zip(ends, verdicts, strict=False):
                right[row, places[end]] = float(verdict)
                where[row, places[end]] = True
        device = batch.mask.device
        return cross_entropy(batch, outputs, right.to(device), where.to(device))

    def _check(self, response: str, verdicts: object) -> None:
        """UserError where a checker's answer is not one verdict a step."""
        steps = response.count(self.config.separator) + 1
        if not isinstance(verdicts, list | tuple) or len(verdicts) != steps:
            given = len(verdicts) if isinstance(verdicts, list | tuple) else f"'{verdicts}'"
            raise UserError(
                f"{KEY}: {self.config.function} answered {given} for a completion of "
                f"{steps} steps, expected a list with a verdict for each part that "
                f"{self.config.separator!r} divides it into: {response!r}"
            )

    @hookimpl
    def wrap_reward(self, reward: Reward) -> Reward:
        """The score of a response by its steps: that of a step is what R_k says up to its end."""

        def by_steps(samples: Samples, scores: Scores) -> Scores:
            return self._by_steps(reward, samples, scores)

        return wrapped(reward, by_steps)

    def _by_steps(self, reward: Reward, samples: Samples, scores: Scores) -> Scores:
        separator, whole = self.config.separator, scores.total
        ends = [step_ends(samples.tokenizer, tuple(r), separator) for r in samples.tokens[1]]
        before = [(row, end) for row, places in enumerate(ends) for end in places[:-1]]
        found = whole[:0]
        if before:
            found = reward.score_samples(cut(samples, *zip(*before, strict=True))).total
        score, token_score = whole.clone(), torch.zeros(samples.mask.shape, device=whole.device)
        parts = found.split([len(places) - 1 for places in ends])
        for row, (places, earlier) in enumerate(zip(ends, parts, strict=True)):
            worth = RUNNING[self.config.reduce](torch.cat([earlier, whole[row : row + 1]]))
            score[row] = worth[-1]
            token_score[row, places] = worth.diff(prepend=worth.new_zeros(1))
        if self.config.dense:  # the same in all: the differences add up to the score
            return replace(scores, score=torch.zeros_like(score), token_score=token_score)
        return replace(scores, score=score, token_score=None)
