"""Policies that answer each of a few prompts with one token, optimised by the PPO plugin.

Everything can be enumerated: the policy is a table of probabilities (prompts, responses), so what
PPO does to it is read off exactly. Sampling, rewards and updates follow the engine: the PPO
plugin's own advantages and loss, ``reward_transform`` hooks, the KL in the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.contract.batches import PolicyOutputs, RewardBatch, Rollout
from ostinato.models.samples import Samples
from ostinato_plugins.optimisers.ppo import PPO

# (prompts (B,), responses (B,), generator) -> rewards (B, heads)
Rewards = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def mlp(prompts: int, responses: int, width: int = 32) -> nn.Module:
    """Three layers from a one-hot prompt to a logit for each response."""
    return nn.Sequential(
        nn.Linear(prompts, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, responses),
    )


def ppo(**settings: Any) -> PPO:
    """The plugin with these settings."""
    made = PPO()
    made.config = PPO.Config(**settings)
    return made


@dataclass
class OneToken:
    """PPO on one-token responses. ``body`` maps one-hot prompts (B, P) to logits (B, R).

    ``transforms`` are plugins with ``reward_transform``; ``beta`` is the KL coefficient towards
    the policy as it was at the start; the critic is a table, one value a prompt, that starts at
    ``value``.
    """

    body: nn.Module
    prompts: int
    rewards: Rewards
    generator: torch.Generator
    algorithm: PPO = field(default_factory=ppo)
    transforms: Sequence[Any] = ()
    beta: float = 0.0
    batch: int = 64
    epochs: int = 4
    lr: float = 1e-2
    value_lr: float = 0.1
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    value: float = 0.0
    ctx: Any = None  # PPO does not look at it

    def __post_init__(self) -> None:
        self.values = nn.Parameter(torch.full((self.prompts,), self.value))
        self.every = torch.eye(self.prompts)  # (P, P) one-hot prompts
        self.reference = self.logprobs().detach()
        self.updater = self.optimiser(
            [
                {"params": list(self.body.parameters())},
                {"params": [self.values], "lr": self.value_lr},
            ],
            lr=self.lr,
        )

    def logprobs(self) -> Tensor:
        """log pi of every response to every prompt (P, R)."""
        found: Tensor = self.body(self.every).log_softmax(-1)
        return found

    def probabilities(self) -> Tensor:
        """pi (P, R)."""
        return self.logprobs().detach().exp()

    def step(self) -> None:
        """One rollout and its updates."""
        rollout = self.rollout()
        for _ in range(self.epochs):
            self.updater.zero_grad()
            terms = self.algorithm.loss(rollout, self.outputs(rollout), self.ctx)
            torch.stack([v for k, v in terms.items() if not k.startswith("log/")]).sum().backward()
            self.updater.step()

    def outputs(self, rollout: Rollout) -> PolicyOutputs:
        """The policy's answers for a rollout, with gradients."""
        at = rollout.samples.prompt_ids[:, 0]
        logprobs = self.logprobs()[at].gather(1, rollout.samples.response_ids)
        model: Any = self.body  # PPO does not look at the models themselves
        return PolicyOutputs(logprobs, self.values[at][:, None], model, model)  # (B, 1) both

    @torch.no_grad()
    def rollout(self) -> Rollout:
        """``batch`` sampled responses, their rewards and advantages."""
        at = torch.arange(self.batch) % self.prompts
        everything = self.logprobs()
        responses = torch.multinomial(everything[at].exp(), 1, generator=self.generator)  # (B, 1)
        mask = torch.ones_like(responses, dtype=torch.bool)
        samples = Samples(None, at[:, None], mask, responses, mask, mask[:, 0])
        logprobs = everything[at].gather(1, responses)
        reference = self.reference[at].gather(1, responses)
        heads = self.rewards(at, responses[:, 0], self.generator)  # (B, heads)
        batch = RewardBatch(
            samples=samples,
            score=heads.mean(1),
            parts=heads[:, None, :],
            part_std=None,
            logprobs=logprobs,
            ref_logprobs=reference,
            mask=mask,
            finished=mask[:, 0],
            group=torch.arange(self.batch),
            kl_scale=torch.ones(self.batch),
            iteration=1,
            step=0,
            kl_coefficient=self.beta,
        )
        for plugin in self.transforms:
            batch = plugin.reward_transform(batch)
        coefficient = self.beta * batch.kl_scale
        kl = coefficient[:, None] * (logprobs - reference)
        rollout = Rollout(
            samples=samples,
            mask=mask,
            score=batch.score,
            rewards=batch.score[:, None] - kl,
            logprobs=logprobs,
            ref_logprobs=reference,
            values=self.values[at][:, None],
            kl_coefficient=coefficient,
            group=batch.group,
            finished=batch.finished,
            advantages=torch.zeros_like(kl),
            returns=torch.zeros_like(kl),
        )
        advantages, returns = self.algorithm.advantages(rollout, self.ctx)
        return replace(rollout, advantages=advantages, returns=returns)
