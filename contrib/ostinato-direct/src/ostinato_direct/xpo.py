"""XPO: online DPO with optimism."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, Samples, hookimpl


class XPO(PolicyAlgorithm):
    """DPO against a response of the reference, which is also made less likely (Xie et al. 2024).

    Each response y of the policy is compared with one, z, of the reference to the same prompt. With
    y+ the better of the two and y- the other, the loss is the mean over prompts of

        -log sigma(β (log π(y+|x)/π_ref(y+|x) - log π(y-|x)/π_ref(y-|x))) + α log π(z|x)

    (algorithm 1, with the reference as the sampling policy). The last term is the optimism: weight
    that leaves what the reference knows goes where it has not been. Both are compared by the run's
    reward as it stands, less the rule of ``rl.unfinished``. β takes the place of the KL
    coefficient, which this algorithm does not read.
    """

    paper = "Xie et al. 2024, Exploratory Preference Optimization (arXiv 2405.21046), algorithm 1"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        alpha: float = Field(1e-5, ge=0, description="α, weight of the optimism (TRL's)")
        beta: float = Field(0.1, gt=0, description="β, weight of the KL to the reference (TRL's)")

    config: Config
    kl_in_reward = False
    mean_over = "responses"

    drawn: Samples  # of the reference, for the rollout at hand; the two below are of them
    ref_logprobs: Tensor  # (B,) log π_ref(z|x)
    row: dict[int, int]  # of a group

    @hookimpl
    def policy_algorithm(self) -> XPO:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """1 where the policy's response is better, -1 where worse, 0 for equals; both (B, T)."""
        drawn = ctx.sample(ctx.reference, rollout.samples, "xpo")
        with ctx.autocast():
            known = ctx.reference.logprobs(drawn).sum(1)
        sign = (judged(rollout.samples, ctx) - judged(drawn, ctx)).sign()
        ctx.log(**{"xpo/wins": float((sign > 0).float().mean())})
        before = 0
        if ctx.attempt:  # a refill: the draws before it may be trained on too
            before = len(self.drawn)
            drawn = Samples.joined([self.drawn, drawn])
            known = torch.cat([self.ref_logprobs, known])
        self.drawn, self.ref_logprobs = drawn, known
        places = {group: before + i for i, group in enumerate(rollout.group.tolist())}
        self.row = (self.row | places) if before else places
        return sign[:, None] * rollout.mask, torch.zeros_like(rollout.values)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """The two terms, each a mean over prompts."""
        rows = torch.tensor([self.row[g] for g in batch.group.tolist()], device=batch.mask.device)
        with ctx.autocast():
            other = outputs.policy.logprobs(self.drawn.rows(rows)).sum(1)  # (B,) log π(z|x)
        mine = (outputs.logprobs - batch.ref_logprobs).masked_fill(~batch.mask, 0.0).sum(1)
        sign = batch.advantages[:, 0]
        margin = sign * (mine - (other - self.ref_logprobs[rows]))  # (B,)
        return {
            "policy": -(sign.abs() * logsigmoid(self.config.beta * margin)).mean(),
            "optimism": self.config.alpha * other.mean(),
            "log/margin": margin.detach().mean(),
        }


def judged(samples: Samples, ctx: Context) -> Tensor:
    """The run's reward (B,) of any responses, less what unfinished ones lose."""
    with ctx.autocast():
        score = ctx.reward.score_samples(samples).total.float()
    rule = ctx.config.rl.unfinished
    cut_off = score - rule.penalty
    if rule.mode != "subtract":
        cut_off = torch.full_like(score, rule.penalty)
    return torch.where(samples.finished, score, cut_off)
