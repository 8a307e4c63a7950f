"""Labels from a language model that is asked which response is better."""

from __future__ import annotations

import math
from typing import Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from ostinato import Context, hookimpl
from ostinato.measures import pairwise_accuracy
from ostinato_plugins.judge import Judge, JudgeSettings, inconsistent, preference


class JudgeLabels:
    """Ask a language model which response is better, in both orders (RLAIF, Constitutional AI)."""

    paper = (
        "Lambert 2025, sections 7.8 and 13.2; Bai et al. 2022 (Constitutional AI), section 4.1; "
        "Zheng et al. 2023 (position bias); BRME, appendix A"
    )

    class Config(JudgeSettings):
        """Settings."""

        labels: Literal["soft", "hard"] = Field(
            "soft", description="the judge's probability, or 1, 0 and .5 for a tie"
        )
        temperature: float = Field(
            1.0, gt=0, description="the log-odds are divided by it; above 1 a judge is less sure"
        )

    config: Config

    @hookimpl
    def label(self, comparisons: Dataset, ctx: Context) -> list[float]:
        """P(first preferred): the log-odds of both orders, averaged, so position cancels."""
        judge = Judge.load(self.config, ctx, "plugins.judge_labels")
        prompts, first, second = (comparisons[c][:] for c in ("prompt", "first", "second"))
        odds = judge.both_orders(prompts, first, second, ctx.generator("principles"))
        preferred = preference(odds)
        soft = (preferred / self.config.temperature).sigmoid()
        made = soft if self.config.labels == "soft" else 0.5 + 0.5 * preferred.sign()
        ctx.log(**self._measures(odds, soft, made, comparisons))
        return made.tolist()

    @staticmethod
    def _measures(
        odds: Tensor, soft: Tensor, made: Tensor, comparisons: Dataset
    ) -> dict[str, float]:
        found = {
            "inconsistent": inconsistent(odds),
            "position_bias": float(odds.mean()),
            "confidence": float(torch.maximum(soft, 1 - soft).mean()),
        }
        gold = comparisons["first_gold"][:], comparisons["second_gold"][:]
        if None not in gold[0]:
            found["gold_agreement"] = pairwise_accuracy(made, 1 - made, *map(torch.tensor, gold))
        return {f"judge_labels/{key}": x for key, x in found.items() if math.isfinite(x)}
