"""Clusters of the reward model's own features that agree between dropout views."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, comb
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ostinato import Context, PreferenceBatch, RMOutputs, RunConfig, UserError, hookimpl


class SwAV:
    """Predict the cluster of one dropout view from the other (Secrets II, eq 7, 8)."""

    paper = "Secrets of RLHF II, section 3.1, equations 7 and 8; Caron et al. 2020 (SwAV)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        beta: float = Field(0.1, gt=0, description="weight of the swapped prediction (ours)")
        prototypes: int = Field(
            8, ge=2, description="clusters (K), at most the rows of a batch (ours)"
        )
        temperature: float = Field(0.1, gt=0, description="of the prediction, eq 8 (SwAV's)")
        epsilon: float = Field(0.05, gt=0, description="entropy of the assignments (SwAV's)")
        iterations: int = Field(3, ge=1, description="of Sinkhorn-Knopp (SwAV's)")
        dropout: float = Field(
            0.1, gt=0, lt=1, description="dropout that makes the two views (ours)"
        )
        samples: Literal["pairs", "difference"] = Field(
            "pairs", description="cluster responses, or differences of chosen and rejected"
        )

    config: Config

    @property
    def needs(self) -> dict[str, Any]:
        """Two views of every response under dropout."""
        return {"views": 2, "dropout": self.config.dropout}

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """The rows of a micro-batch, where no plugin drops comparisons."""
        model, responses = config.reward_model, config.preferences.responses
        pairs = comb(responses, 2)
        prompts = ceil(max(1, model.batch // pairs) / model.accumulate)
        rows = prompts * (2 * pairs if self.config.samples == "difference" else responses)
        if self.config.prototypes > rows:
            yield self._too_many(rows)

    def modules(self, hidden_size: int) -> nn.Module:
        """The prototypes c_1..c_K, one a row; they are normalised where they are used."""
        return nn.Linear(hidden_size, self.config.prototypes, bias=False)

    @hookimpl
    def rm_loss(
        self, batch: PreferenceBatch, outputs: RMOutputs, ctx: Context
    ) -> dict[str, Tensor]:
        """beta times the mean over rows of l(h_t, q_s) + l(h_s, q_t), nats."""
        prototypes = normalize(outputs.modules["swav"].get_parameter("weight"), dim=-1)  # (K, D)
        rows = [
            batch.differences(h) if self.config.samples == "difference" else h
            for h in outputs.hidden
        ]
        first, second = (normalize(h, dim=-1) @ prototypes.T for h in rows)  # (rows, K)
        self._enough(len(first), ctx)
        swapped = self._predicted(first, second) + self._predicted(second, first)
        return {"swapped": self.config.beta * swapped}

    def _predicted(self, scores: Tensor, other: Tensor) -> Tensor:
        """-sum_k q_k log p_k, mean over rows: q of the other view, without gradient."""
        q = sinkhorn(other.detach(), self.config.epsilon, self.config.iterations)
        return cross_entropy(scores / self.config.temperature, q)

    def _enough(self, rows: int, ctx: Context) -> None:
        """Only a training's first batch is surely whole; a last one may be smaller."""
        if ctx.step == 0 and ctx.micro_batch == 0 and self.config.prototypes > rows:
            raise UserError(self._too_many(rows))

    def _too_many(self, rows: int) -> str:
        return (
            f"plugins.swav.prototypes: {self.config.prototypes} clusters cannot share the "
            f"{rows} rows of a batch equally; expected at most {rows}, or a larger "
            "reward_model.batch"
        )


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments (rows, K) of scores (rows, K): a row sums to 1, clusters share equally.

    Caron et al. 2020, section 3.1 and appendix A, in logarithms, which no epsilon overflows.
    """
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)  # a cluster's share is the same for all
        log_q = log_q - log_q.logsumexp(1, keepdim=True)  # a row is assigned once
    return log_q.exp()
