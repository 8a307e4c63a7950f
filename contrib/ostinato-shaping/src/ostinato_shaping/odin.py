"""A reward model with two heads, one of which takes length off the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, logsigmoid

from ostinato import Context, PreferenceBatch, RewardModel, RMOutputs, Scores, hookimpl

QUALITY, LENGTH = 0, 1  # the outputs


class ODIN:
    """Train a head for length beside the one for quality, and optimise on quality alone."""

    paper = "Chen et al. 2024, ODIN: Disentangled Reward Mitigates Hacking in RLHF (2402.07319)"
    consumes = ("margin",)

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        length: float = Field(
            1.0, ge=0, description="weight of the correlations with length (the paper's 1)"
        )
        orthogonality: float = Field(
            1.0, ge=0, description="weight of the heads' absolute cosine (the paper's 1)"
        )

    config: Config

    @staticmethod
    def read(logits: Tensor, zeros: Tensor, modules: Mapping[str, nn.Module]) -> Scores:
        """The head for quality alone, of logits (N, 2): score (N,), parts (N, 1, 1)."""
        quality = logits[:, QUALITY] - zeros[0]
        return Scores(quality, quality[:, None, None])

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """R_init with two outputs, trained once; the heads start the same in every iteration."""
        start = initial.with_head(
            ctx.draws, outputs=2, reader="odin", purpose=f"odin heads {ctx.member}"
        )
        trained: RewardModel = fit(start, data)
        part = data.select(range(min(len(data), 256)))
        sides = [ctx.responses(part, side) for side in ("chosen", "rejected")]
        lengths = torch.cat([side.lengths for side in sides]).float()
        logits = torch.cat([trained.logits(side) for side in sides])  # (N, 2)
        for name, head in (("quality", QUALITY), ("length", LENGTH)):
            found = correlation(logits[:, head], lengths.to(logits))
            ctx.log(**{f"odin/{name}_with_length": float(found)})
        return trained

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> Tensor:
        """-log sigma(z), z = (q + l)_chosen - (q + l)_rejected - margin, with soft labels: (V, C).

        q and l are the outputs for quality and for length: only their sum predicts the preference
        (equation 4 of the paper).
        """
        chosen, rejected = (outputs.logits.sum(-1)[:, rows] for rows in batch.pairs.T)
        z = chosen - rejected - batch.margin
        return -(batch.label * logsigmoid(z) + (1 - batch.label) * logsigmoid(-z))

    @hookimpl
    def rm_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> dict[str, Tensor]:
        """w_L (|rho(q, L)| + 1 - rho(l, L)) and w_O |cos(W_q, W_l)|.

        rho is Pearson's correlation over the responses of a micro-batch, L their number of tokens,
        W the heads' weights. The cosine takes the place of the paper's product of weights that are
        kept at norm 1.
        """
        tokens = batch.response_mask.sum(1).to(outputs.logits).expand(outputs.logits.shape[:2])
        quality, length = (correlation(outputs.logits[..., i], tokens) for i in (QUALITY, LENGTH))
        cosine = cosine_similarity(outputs.head[QUALITY], outputs.head[LENGTH], dim=0)
        return {
            "length": self.config.length * (quality.abs() + 1 - length).mean(),
            "orthogonality": self.config.orthogonality * cosine.abs(),
        }


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's over the last dimension of two (..., N); 0 where one of them does not vary."""
    return cosine_similarity(x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True), dim=-1)
