"""Give each token its share of the reward, by the reward model's own attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Reward, RewardModel, Samples, Scores, UserError, hookimpl, wrapped


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

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """Token t gets beta a_t r(x, y), the last token the rest: the total stays r(x, y).

        a (B, T) is the attention of the last token of the response to each of its tokens, in the
        last layer, mean over heads (and over the reward's members), divided by its sum. Raises
        UserError where there is no reward model, or one that reads other tokens than the policy.
        """
        if not reward.members:
            fault = "this run's reward is made of no reward model, so there is no attention"
            raise UserError(f"plugin 'abc_credit': {fault}")

        def spread(samples: Samples, scores: Scores) -> Scores:
            members: list[RewardModel] = reward.members
            found = torch.stack([self._attention(member, samples) for member in members])
            shares = found.mean(0).to(scores.score)
            whole = scores.total[:, None]
            credit = self.config.beta * shares * whole
            return replace(scores, score=scores.total - credit.sum(1), token_score=credit)

        made = wrapped(reward, spread)
        if ctx.ruler is not None:
            sft = ctx.ruler.evaluation
            credit = made.score_samples(sft).token_score
            assert credit is not None
            last = credit.gather(1, (sft.lengths - 1)[:, None]).abs().sum()
            total = credit.abs().sum().clamp_min(1e-12)
            ctx.log(**{"abc_credit/at_last_token": float(last / total)})
        return made

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
