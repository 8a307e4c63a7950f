"""Give each token its share of the reward, by the reward model's own attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, RewardBatch, RewardModel, Samples, UserError, hookimpl


class ABCCredit:
    """Spread the reward over the tokens that the reward model attends to."""

    paper = (
        "Chan et al. 2024, Dense Reward for Free in Reinforcement Learning from Human Feedback "
        "(arXiv 2402.00782)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        beta: float = Field(
            0.5, gt=0, le=1, description="share of the reward that is spread (the authors' .5)"
        )
        batch: int = Field(
            32, ge=1, description="responses whose attentions, of all layers, are in memory at once"
        )

    config: Config

    def check_run(self, plugins: Mapping[str, Any]) -> Iterator[str]:
        """The reward is made of reward models."""
        name, owner = next((n, p) for n, p in plugins.items() if hasattr(p, "combine_rm"))
        if not getattr(owner, "reward_models", True):
            yield (
                "plugin 'abc_credit' needs the attention of a reward model, and the reward is of "
                f"plugin '{name}', which uses none; leave one of the two out"
            )

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """Token t is given beta a_t r, the last one the rest too: the total stays r (B,).

        a (B, T) is the attention of the last token of the response to each of its tokens, in the
        last layer, mean over heads (and over the reward's members), divided by its sum. r is the
        score; what single tokens have already stays where it is. Raises UserError where there is no
        reward model, or one that reads other tokens than the policy.
        """
        members: list[RewardModel] = ctx.reward.members
        if not members:
            fault = "this run's reward is made of no reward model, so there is no attention"
            raise UserError(f"plugin 'abc_credit': {fault}")
        found = torch.stack([self._attention(member, rewards.samples) for member in members])
        shares = found.mean(0).to(rewards.score)  # (B, T)
        credit = self.config.beta * shares * rewards.score[:, None]
        last = shares.gather(1, (rewards.samples.lengths - 1)[:, None])
        ctx.log(**{"abc_credit/at_last_token": float(last.mean())})
        return replace(
            rewards,
            score=rewards.score - credit.sum(1),
            token_score=rewards.token_score + credit,
        )

    @torch.no_grad()
    def _attention(self, model: RewardModel, samples: Samples) -> Tensor:
        """(B, T), 0 on padding, a sum of 1 for each response."""
        if model.tokenizer.get_vocab() != samples.tokenizer.get_vocab():
            fault = "the reward model's tokens are not the policy's, so none can be given a share"
            raise UserError(f"plugin 'abc_credit': {fault}")
        rows = torch.arange(len(samples), device=samples.mask.device)
        with _shown(model):
            parts = [
                self._attended(model, samples.rows(r), samples.mask.shape[1])
                for r in rows.split(self.config.batch)
            ]
        return torch.cat(parts)

    def _attended(self, model: RewardModel, samples: Samples, width: int) -> Tensor:
        """The shares (B, width) of a few responses."""
        ids, mask, answer = model.joined(*samples.tokens)  # (B, P + T), padded right
        found = model.model.base_model(input_ids=ids, use_cache=False, output_attentions=True)
        last = mask.sum(1) - 1
        each = torch.arange(len(ids), device=ids.device)
        weights = found.attentions[-1].float().mean(1)[each, last]  # (B, P + T)
        shares = weights.new_zeros(len(ids), width)
        there = torch.arange(width, device=ids.device) < answer.sum(1, keepdim=True)
        shares[there] = weights[answer]  # row by row, both in the order of tokens
        whole: Tensor = shares / shares.sum(1, keepdim=True)
        return whole


@contextmanager
def _shown(model: RewardModel) -> Iterator[None]:
    """Inside, the model works attentions out one by one, which faster kernels do not."""
    usual = model.model.config._attn_implementation
    model.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.model.set_attn_implementation(usual)
