"""Stop before the policy leaves the region in which the reward can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ostinato import STOP, Context, Policy, RunConfig, hookimpl
from ostinato_selection.votes import probe, several, spread


class EarlyStopping:
    """Stop where the KL, or what the reward models disagree on, passes a bound."""

    paper = "Gao et al. 2023 (arXiv 2210.10760); Coste et al. 2024 (arXiv 2310.02743)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        kl: float | None = Field(
            None, gt=0, description="largest KL to the reference, nats per response (ours)"
        )
        disagreement: float | None = Field(
            None, gt=0, description="largest disagreement, as a multiple of that on SFT responses"
        )
        every: int = Field(5, ge=1, description="rollouts between looks at the disagreement (ours)")
        prompts: int = Field(64, ge=2, description="RL prompts answered for a look (ours)")

    config: Config

    @property
    def needs(self) -> dict[str, int]:
        """Two votes, where there is a bound on what they disagree on."""
        return {} if self.config.disagreement is None else {"members": 2}

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """One bound at least."""
        if self.config.kl is None and self.config.disagreement is None:
            yield "plugins.early_stopping: has no bound; set kl, disagreement, or both"

    @hookimpl
    def after_rollout(self, row: Mapping[str, Any], policy: Policy, ctx: Context) -> str | None:
        """STOP where KL > ``kl``, or where s(pi) > ``disagreement`` s(pi_SFT).

        s(pi) is the mean over responses y ~ pi of the standard deviation (ddof 1) of r_e(x, y)
        over the reward's members and heads e: fresh responses to the same RL prompts of the ruler,
        on which the SFT policy's are known. The KL is that of the rollout's row. Raises UserError
        where the reward has one member.
        """
        if self.config.kl is not None and row["kl"] > self.config.kl:
            return STOP
        if self.config.disagreement is None or row["step"] % self.config.every:
            return None
        now, before = probe(policy, self.config.prompts, ctx, "early_stopping")
        ratio = spread(several(now, "early_stopping")) / max(spread(before), 1e-12)
        ctx.log(**{"early_stopping/disagreement": ratio})
        return STOP if ratio > self.config.disagreement else None
