"""How far reward models and gold agree on what the policy writes now."""

from __future__ import annotations

import math

import torch

from ostinato import Context, hookimpl
from ostinato.measures import pairwise_accuracy, spearman


class Agreement:
    """Measure the reward's accuracy and rank correlation on the current policy's own pairs."""

    paper = "Wolf 2025, appendix A and B; Secrets of RLHF II, section 3.2"

    @hookimpl
    def evaluate(self, ctx: Context) -> dict[str, float]:
        """``accuracy`` and ``spearman`` of the newest reward model, ``combined_...`` of R_k.

        Pairs are two responses to each evaluation prompt; the correlation is over all of them.
        What is undefined is left out: accuracy where gold ties every pair, correlation where scores
        or golds are all equal, everything without a gold model.
        """
        found = ctx.evaluation
        if found.gold is None:
            return {}
        other = found.draw("agreement")
        other_gold = found.gold_of(other)
        assert other_gold is not None
        both = {
            "": (found.latest, found.latest_of(other)),
            "combined_": (found.proxy, found.proxy_of(other)),
        }
        made: dict[str, float] = {}
        for name, (a, b) in both.items():
            made[f"{name}accuracy"] = pairwise_accuracy(a, b, found.gold, other_gold)
            made[f"{name}spearman"] = spearman(
                torch.cat([a, b]), torch.cat([found.gold, other_gold])
            )
        return {key: value for key, value in made.items() if math.isfinite(value)}
