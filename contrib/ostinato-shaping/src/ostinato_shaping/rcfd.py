"""Aim at the reward of a demonstration instead of at the highest one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ostinato import (
    Context,
    Reward,
    Samples,
    Scores,
    UserError,
    hookimpl,
    padded,
    read_rows,
    response_tokens,
    wrapped,
)
from ostinato_shaping.references import Referenced


class RCfD(Referenced):
    """Reward responses for being worth as much as the prompt's demonstration."""

    paper = (
        "Rita et al. 2024, Countering Reward Over-optimization in LLM with Demonstration-Guided "
        "Reinforcement Learning (arXiv 2404.19409)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        data: str = Field(description="demonstrations: file, folder or hub name, as prompts.data")
        split: str = Field("train", description="split of a hub data set")
        prompt: str = Field("prompt", description="column with the prompt as the policy reads it")
        completion: str = Field("completion", description="column with the demonstration")
        distance: Literal["squared", "absolute"] = Field(
            "squared", description="of the two rewards (the paper's squared)"
        )

        @model_validator(mode="after")
        def _there(self) -> RCfD.Config:
            """A file is read at `check`; a hub data set waits until it is needed."""
            path = Path(self.data)
            if path.suffix or path.exists() or self.data.startswith((".", "/", "~")):
                self.demonstrations()
            return self

        def demonstrations(self) -> dict[str, str]:
            """By prompt; of several to one prompt the first. UserError where a row has no text."""
            found: dict[str, str] = {}
            rows = read_rows(self.data, self.split, "plugins.rcfd.data")
            for number, row in enumerate(rows, start=1):
                for column in (self.prompt, self.completion):
                    if not isinstance(row.get(column), str):
                        raise UserError(
                            f"plugins.rcfd.data: row {number} of '{self.data}' has no text in its "
                            f"column '{column}'; its columns are {', '.join(row)}"
                        )
                found.setdefault(row[self.prompt], row[self.completion])
            return found

    config: Config

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """r'(x, y) = -(r(x, y) - r(x, y_d))^2, y_d the demonstration for x: (B,), at most 0.

        r is a response's total; ``token_score`` is part of it, so none is left. Raises UserError
        where a prompt has no demonstration.
        """
        self.begin(ctx.iteration)
        demonstrations, stop = self.config.demonstrations(), ctx.config.generation.stop

        def shown(prompts: Samples, known: int) -> Samples:
            return self._shown(prompts, demonstrations, stop)

        def near(samples: Samples, scores: Scores) -> Scores:
            total = scores.total
            gap = total - self.references(samples, reward, shown)[:, 0].to(total)
            away = gap.square() if self.config.distance == "squared" else gap.abs()
            return replace(scores, score=-away, token_score=None)

        made = wrapped(reward, near)
        if ctx.ruler is not None:
            sft = ctx.ruler.evaluation
            aim, at = self.references(sft, reward, shown), reward.score_samples(sft).total
            ctx.log(**{"rcfd/demonstrations": float(aim.mean()), "rcfd/sft": float(at.mean())})
        return made

    def _shown(
        self, prompts: Samples, demonstrations: Mapping[str, str], stop: str | None
    ) -> Samples:
        """The demonstrations for the prompts, as if the policy had given them."""
        for prompt in prompts.prompts:
            if prompt not in demonstrations:
                said = f"'{' '.join(prompt.split())[:60]}' has no demonstration"
                raise UserError(f"plugins.rcfd.data: prompt {said} in '{self.config.data}'")
        texts = [demonstrations[prompt] for prompt in prompts.prompts]
        known = prompts.tokenizer
        end = None if stop is None else known.get_vocab()[stop]
        ids, mask = padded(
            response_tokens(known, texts, [True] * len(texts), end), known.pad_token_id
        )
        device = prompts.mask.device
        return replace(
            prompts,
            response_ids=ids.to(device),
            mask=mask.to(device),
            finished=torch.ones(len(texts), dtype=torch.bool, device=device),
            logprobs=None,
        )
