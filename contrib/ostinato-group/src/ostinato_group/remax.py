"""ReMax: REINFORCE whose baseline is the reward of the greedy response."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl
from ostinato.measures import clipped_surrogate, masked_mean


class ReMax(PolicyAlgorithm):
    """REINFORCE with the reward of the policy's greedy response as its baseline (Li et al. 2023).

    The advantage of token t is what is still to come less the greedy response's reward,

        A_t = sum_{s >= t} r_s - r(x, greedy(x))

    (algorithm 2; r_s holds the KL of token s, and at the last token the score), and the loss minus
    the mean over tokens of A_t log π(y_t). The baseline depends on the prompt alone, so that the
    gradient stays unbiased; it costs no value model, one greedy response a prompt and its score.
    """

    paper = "Li et al. 2023, ReMax (arXiv 2310.10505), algorithm 2"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        clip: float | None = Field(
            0.2,
            gt=0,
            description="clip range of a token's probability ratio, for updates after the first "
            "of a rollout; null is off (paper: one update, no ratio)",
        )

    config: Config

    @hookimpl
    def policy_algorithm(self) -> ReMax:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """What is still to come less the greedy response's reward, and without it; both (B, T)."""
        greedy = self.greedy(rollout, ctx)  # (B,)
        ctx.log(**{"remax/greedy_reward": float(greedy.mean())})
        rewards = rollout.rewards.masked_fill(~rollout.mask, 0.0)
        returns = rewards.flip(1).cumsum(1).flip(1)
        made = (returns - greedy[:, None]).masked_fill(~rollout.mask, 0.0)
        return made, torch.zeros_like(rollout.values)

    def greedy(self, rollout: Rollout, ctx: Context) -> Tensor:
        """The reward (B,) of the likeliest response to each prompt, by the rules of ``rl``."""
        samples = ctx.sample(ctx.policy, rollout.samples, "remax", temperature=0)
        with ctx.autocast():
            score = ctx.reward.score_samples(samples).total.to(rollout.score)
        settings = ctx.config.rl
        if settings.clip_score is not None:
            score = score.clamp(-settings.clip_score, settings.clip_score)
        rule = settings.unfinished
        cut_off = score - rule.penalty
        if rule.mode != "subtract":
            cut_off = torch.full_like(score, rule.penalty)
        return torch.where(samples.finished, score, cut_off)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """Minus the surrogate, whose gradient is that of A log π at the first update."""
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0)
        gain = clipped_surrogate(log_ratio, batch.advantages, self.config.clip)
        ratio = log_ratio.detach().exp()
        return {
            "policy": -masked_mean(gain, batch.mask),
            "log/ratio": masked_mean(ratio, batch.mask),
        }
