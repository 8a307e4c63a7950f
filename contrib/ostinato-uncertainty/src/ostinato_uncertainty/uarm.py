"""Group advantages that trust each reward as far as its model does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import (
    Context,
    PolicyAlgorithm,
    PolicyOutputs,
    Rollout,
    RunConfig,
    UserError,
    hookimpl,
)
from ostinato.measures import clipped_surrogate, kl_k3
from ostinato_uncertainty.features import combiner


class UARM(PolicyAlgorithm):
    """GRPO whose advantages shrink where the reward is uncertain (UARM)."""

    paper = "Pan et al. 2026 (UARM), arXiv 2606.19818, equations 20 to 22"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        responses: int = Field(4, ge=2, description="responses a prompt (ours)")
        noise: float = Field(
            1.0,
            ge=0,
            description="multiplies each reward's std (2: the paper's whole interval over z)",
        )
        floor: float = Field(
            1e-4, gt=0, description="zeta, the least variance of a group's true rewards (ours)"
        )
        clip: float = Field(0.2, gt=0, description="clip range of a token's probability ratio")

    config: Config
    kl_in_reward = False
    mean_over = "responses"

    def __init__(self) -> None:
        self.responses_per_prompt = self.config.responses

    def check_run(self, config: RunConfig, plugins: Mapping[str, Any]) -> Iterator[str]:
        """Several parts, from the first iteration on, or one that says how sure it is.

        Only who reads the outputs of a reward model in a way of its own can say that.
        """
        name, owner, of_models = combiner(plugins)
        trainer = next((p for p in plugins.values() if hasattr(p, "train_rm")), None)
        parts = getattr(owner, "heads", 1)
        if of_models:
            parts *= config.reward_model.members * getattr(trainer, "heads", 1)
        if parts < 2 and not (of_models and hasattr(trainer, "read")):
            yield (
                f"plugin 'uarm' needs the variance of the reward, and that of plugin '{name}' has "
                "one part; set reward_model.members: 2, or list a plugin with heads, laplace_head "
                "or purm"
            )

    @hookimpl
    def policy_algorithm(self) -> UARM:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """s / (s + noise_i) (r_i - mean) / sqrt(s) at every real token; both (B, T).

        s = max(0, var(r) - mean noise) + zeta is the signal's variance in the group (ddof 0), and
        noise_i the variance of a response's reward. Raises UserError where that is unknown.
        """
        variance = self.config.noise**2 * reward_variance(rollout)
        rows = rollout.group.argsort(stable=True).view(-1, self.config.responses)  # (prompts, G)
        score, noise = rollout.score[rows], variance[rows].to(rollout.score)
        apart = score - score.mean(1, keepdim=True)
        observed = apart.square().mean(1, keepdim=True)
        signal = (observed - noise.mean(1, keepdim=True)).clamp_min(0) + self.config.floor
        weight = signal / (signal + noise)
        ctx.log(**{"uarm/weight": float(weight.mean()), "uarm/noise": float(noise.mean())})
        made = rollout.score.new_empty(len(rollout.score)).index_put((rows,), weight * apart)
        scale = rollout.score.new_empty(len(rollout.score)).index_put(
            (rows,), signal.rsqrt().expand_as(score)
        )
        return (made * scale)[:, None] * rollout.mask, rollout.rewards.new_zeros(rollout.mask.shape)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """Equation 1: the clipped surrogate, and k3 times each response's coefficient."""
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0)
        gain = clipped_surrogate(log_ratio, batch.advantages, self.config.clip)
        kl = kl_k3(outputs.logprobs, batch.ref_logprobs)  # (B, T)
        return {
            "policy": -_mean(gain, batch.mask),
            "kl": _mean(batch.kl_coefficient[:, None] * kl, batch.mask),
            "log/kl": _mean(kl.detach(), batch.mask),
        }


def reward_variance(rollout: Rollout) -> Tensor:
    """(B,) of the reward: what its parts disagree, ddof 1, and the mean of what each says itself.

    Raises UserError where there is one part alone, and no standard deviation.
    """
    each = rollout.parts.flatten(1)  # (B, members * heads)
    own = rollout.part_std
    if own is None and each.shape[1] < 2:
        raise UserError(
            "plugin 'uarm': the reward is of one model with one head and no standard deviation; "
            "expected members, heads, or a reward model that says how sure it is (laplace_head, "
            "purm)"
        )
    said = each.new_zeros(len(each)) if own is None else own.flatten(1).square().mean(1)
    return said + (each.var(1) if each.shape[1] > 1 else 0.0)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, T) over each response's tokens, then over responses."""
    return (x.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)).mean()
