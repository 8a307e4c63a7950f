"""Dr. GRPO: GRPO without its two divisions."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ostinato import Context, PolicyOutputs, Rollout
from ostinato_group.groups import GroupAlgorithm, GroupSettings, surrogate


class DrGRPO(GroupAlgorithm):
    """GRPO that divides neither by a group's deviation nor by a response's length (Liu et al.).

    With A_i = r_i - mean(r) and ρ the ratio of a token's probabilities, the loss is minus

        1 / (G L) sum_i sum_t min(ρ_it A_i, clip(ρ_it, 1 - ε, 1 + ε) A_i)

    (section 3.2; L is the constant of its listing 1). Before the first update its gradient is, on
    average, (G - 1) / (G L) times that of the expected reward. Scores are (B,), calibrated.
    """

    paper = "Liu et al. 2025, Understanding R1-Zero-Like Training (arXiv 2503.20783), section 3.2"

    class Config(GroupSettings):
        """Settings."""

        responses: int = Field(8, ge=2, description="responses a prompt, G (authors' code: 8)")
        clip: float = Field(0.2, gt=0, lt=1, description="clip range of a token's ratio (paper's)")
        budget: int | None = Field(
            None,
            ge=1,
            description="tokens L that sums over a response are divided by; "
            "generation.max_new_tokens when left out (paper's)",
        )

    config: Config
    standardised = False
    mean_over = "responses"

    def gain(
        self, log_ratio: Tensor, batch: Rollout, outputs: PolicyOutputs
    ) -> tuple[Tensor, Tensor]:
        """PPO's clipped surrogate (B, T)."""
        return surrogate(log_ratio, batch.advantages, self.config.clip, self.config.clip)

    def mean(self, x: Tensor, mask: Tensor, ctx: Context) -> Tensor:
        """Sum over a response's tokens, over L; mean over responses."""
        budget = self.config.budget or ctx.config.generation.max_new_tokens
        return x.sum(1).mean() / budget
