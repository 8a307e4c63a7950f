"""What online DPO and IPO share: two responses to each prompt, and the margin between them.

Shapes: B responses of a rollout, P pairs of which one is better, T tokens.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl


class OnlinePairs(PolicyAlgorithm):
    """A loss on the margin of the better over the worse of two responses to one prompt."""

    kl_in_reward = False  # the margin is measured from the reference
    mean_over = "responses"
    responses_per_prompt = 2
    whole_groups = True

    @hookimpl
    def policy_algorithm(self) -> PolicyAlgorithm:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """1 for the response with the higher score, -1 for the other, 0 for equals; both (B, T)."""
        rows = rollout.group.argsort(stable=True).view(-1, 2)  # (prompts, 2)
        sign = (rollout.score[rows] - rollout.score[rows.flip(1)]).sign()
        made = torch.empty_like(rollout.score).index_put((rows,), sign)
        return made[:, None] * rollout.mask, torch.zeros_like(rollout.values)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """The mean over pairs; one of equals, or whose other half a filter dropped, counts 0."""
        margin = self.margins(batch, outputs)
        count = max(1, len(margin))
        return {
            "policy": self.of_margin(margin).sum() / (len(batch.mask) / 2),
            "log/margin": margin.detach().sum() / count,
            "log/accuracy": (margin > 0).sum() / count,
            "log/pairs": margin.new_tensor(2 * len(margin) / len(batch.mask)),
        }

    def margins(self, batch: Rollout, outputs: PolicyOutputs) -> Tensor:
        """log π/π_ref of each better response, less that of the worse one (P,), in nats."""
        log_ratio = (outputs.logprobs - batch.ref_logprobs).masked_fill(~batch.mask, 0.0).sum(1)
        sign = batch.advantages[:, 0]
        same = batch.group[:, None] == batch.group
        better, worse = (same & (sign > 0)[:, None] & (sign < 0)).nonzero().unbind(1)
        return log_ratio[better] - log_ratio[worse]

    @abstractmethod
    def of_margin(self, margin: Tensor) -> Tensor:
        """The loss of each pair (P,)."""
