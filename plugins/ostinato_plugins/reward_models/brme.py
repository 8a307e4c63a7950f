"""A reward model of several heads, each of which says how sure it is of its own answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import comb
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from ostinato import (
    Context,
    PreferenceBatch,
    RewardModel,
    RMOutputs,
    RunConfig,
    Scores,
    UserError,
    hookimpl,
)

HEAD, BELIEF = "brme_head", "brme_belief"  # columns of stage 2: the pair's head, and p


class BRME:
    """Score by heads with means and stds, trading the surest off against the least (BRME 5.1)."""

    paper = "Reward-Robust RLHF in LLMs (2024), section 5.1, equations 5 to 8, appendix B"
    consumes = ("margin",)

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        heads: int = Field(5, ge=2, description="heads, each a mean and a std (the paper's 5)")
        trade_off: float = Field(
            0.5, ge=0, le=1, description="weight of the nominal reward (lambda; best at .4 to .6)"
        )
        integration: Literal["min", "max", "mean"] = Field(
            "min", description="what the other part takes of the heads' means (the paper's min)"
        )
        alpha: float = Field(1.0, gt=0, description="scale of the targets of equation 8 (ours)")
        epochs: float | None = Field(
            None, gt=0, description="passes over the data in stage 2; as stage 1 when left out"
        )
        lr: float | None = Field(
            None, gt=0, description="learning rate of stage 2; the run's when left out"
        )

    config: Config

    @property
    def heads(self) -> int:
        """Heads of each reward model: what a plugin that needs members counts."""
        return self.config.heads

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """The first iteration has no more pairs than these."""
        pairs = config.prompts.preference * comb(config.preferences.responses, 2)
        if pairs < self.config.heads:
            yield self._too_few(pairs)

    def _too_few(self, pairs: int) -> str:
        return (
            f"plugins.brme.heads: {self.config.heads} heads share {pairs} pairs; expected a pair "
            "a head at least"
        )

    @staticmethod
    def read(
        logits: Tensor,
        zeros: Tensor,
        modules: Mapping[str, nn.Module],
        trade_off: float,
        integration: str,
    ) -> Scores:
        """trade_off * nominal + (1 - trade_off) * robust, of logits (B, 2 heads).

        The heads' means are taken from their ``zeros`` (heads,).

        Nominal is the mean of the head with the smallest std, robust the minimum over the heads'
        means (equation 7). The minimum is taken response by response, a lower bound of equation 6,
        whose minimum stands outside the expectation. ``parts`` are the means, (B, 1, heads).
        """
        means, stds = gaussians(logits)
        means = means - zeros
        nominal = means.gather(-1, stds.argmin(-1, keepdim=True)).squeeze(-1)
        over = {"min": means.amin(-1), "max": means.amax(-1), "mean": means.mean(-1)}
        score = trade_off * nominal + (1 - trade_off) * over[integration]
        return Scores(score, means[:, None], stds[:, None])

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """Stage 1: one head on Bradley-Terry. Stage 2: its body with 2H outputs on equation 8.

        Each pair belongs to one head, drawn once; shares differ by one pair at most. Raises
        UserError where there are fewer pairs than heads.
        """
        if len(data) < self.config.heads:
            raise UserError(self._too_few(len(data)))
        first = fit(initial, data)
        order = torch.randperm(len(data), generator=ctx.generator("brme partition"))
        divided = data.add_column(HEAD, (order % self.config.heads).tolist())
        headed = first.with_head(
            ctx.draws,
            2 * self.config.heads,
            reader="brme",
            purpose=f"brme heads {ctx.member}",
            settings=self.config.model_dump(include={"trade_off", "integration"}),
        )
        trained: RewardModel = fit(
            headed,
            divided.add_column(BELIEF, _belief(first, data)),
            epochs=self.config.epochs,
            lr=self.config.lr,
            purpose="brme",
        )
        part = data[: min(len(data), 256)]
        scores = trained.score_text(part["prompt"], part["chosen"], part["chosen_finished"])
        assert scores.part_std is not None
        spread = scores.parts.flatten(1).std(1).mean()
        ctx.log(**{"brme/std": float(scores.part_std.mean()), "brme/spread": float(spread)})
        return trained

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> Tensor:
        """(V, C): Bradley-Terry in stage 1; in stage 2 equation 8 of each pair's own head.

        r = mean + a std, with one a ~ N(0, 1) for chosen and rejected of a pair in a view.
        """
        if HEAD not in batch.extra:
            return _bradley_terry(batch, outputs)
        means, stds = gaussians(outputs.logits)  # (V, N, heads)
        head = torch.tensor(batch.extra[HEAD], device=means.device)
        belief = torch.tensor(batch.extra[BELIEF], dtype=means.dtype, device=means.device)
        a = torch.randn(len(means), len(head), generator=ctx.generator("brme noise")).to(means)
        chosen, rejected = (means[:, r, head] + a * stds[:, r, head] for r in batch.pairs.T)
        target = self.config.alpha * (belief - 0.5)
        return (chosen - target).square() + (rejected + target).square()


def gaussians(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Means and stds, each (..., heads), of outputs (..., 2 heads)."""
    means, raw = logits.chunk(2, dim=-1)
    return means, softplus(raw)


def _belief(model: RewardModel, data: Dataset) -> list[float]:
    """P(chosen preferred) of each pair under the model of stage 1."""
    chosen, rejected = (
        model.score(data["prompt"][:], data[side][:], data[f"{side}_finished"][:])
        for side in ("chosen", "rejected")
    )
    found: list[float] = (chosen - rejected).sigmoid().tolist()
    return found


def _bradley_terry(batch: PreferenceBatch, outputs: RMOutputs) -> Tensor:
    """-[p log s(z) + (1 - p) log s(-z)], z = r_chosen - r_rejected - margin, p the label."""
    chosen, rejected = (outputs.score[:, rows] for rows in batch.pairs.T)
    z = chosen - rejected - batch.margin
    return -(batch.label * logsigmoid(z) + (1 - batch.label) * logsigmoid(-z))
