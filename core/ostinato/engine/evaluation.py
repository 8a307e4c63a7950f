"""Measures on held-out prompts: who wins against the SFT policy by proxy and by gold, KL, MMD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ostinato.config.errors import NonFiniteError
from ostinato.contract.context import Context, Evaluation
from ostinato.contract.plugins import Plugins
from ostinato.engine.calibration import over_training, scores_of, spread_part
from ostinato.measures import mean_and_error, mean_and_std, mmd2, spearman, standardise, wins
from ostinato.models.kl import kl_per_response
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples


@dataclass
class Evaluator:
    """Evaluates the policy of one iteration at a step; answers one ``eval`` row.

    ``data`` is D_k, whose responses make the scale of the columns ``..._training_std``; those are
    null in a run that trains no reward model.
    """

    prompts: PromptSet
    reference: Policy
    reward: Reward
    latest: Reward
    data: Dataset | None
    plugins: Plugins
    ctx: Context

    def __post_init__(self) -> None:
        assert self.ctx.ruler is not None
        self.sft, self.before = self.ctx.sft.load(), self.ctx.ruler.evaluation
        self.sft_scores = self._scores(self.before, self.ctx.ruler.gold)
        self.sft_scale = {name: mean_and_std(x) for name, x in self.sft_scores.items()}
        self.training_scale: dict[str, tuple[float, float | None]] = {}
        if self.data is None:
            return
        device, tokenizer = self.ctx.device, self.before.tokenizer
        trained = over_training(self.reward, self.data, tokenizer, device)
        self.training_scale["proxy"] = mean_and_std(trained)
        part = spread_part(self.data)
        golds = [g for g in (*part["chosen_gold"], *part["rejected_gold"]) if g is not None]
        if golds:  # a row that a plugin added may have none
            self.training_scale["gold"] = mean_and_std(torch.tensor(golds))

    @torch.no_grad()
    def __call__(self, policy: Policy, step: int) -> dict[str, Any]:
        """Sample, score and measure; see docs/concepts for each column and its unit."""
        ctx = self.ctx.at(step=step)
        samples = ctx.sample(policy, self.prompts, "evaluation")
        scores = self._scores(samples, ctx.gold_scores(samples))
        with ctx.autocast():
            kl = kl_init = kl_per_response(policy, self.sft, samples)
            if self.reference is not self.sft:
                kl_init = kl_per_response(policy, self.reference, samples)
        found = Evaluation(
            policy=policy,
            sft=self.sft,
            reward=self.reward,
            samples=samples,
            proxy=scores["proxy"],
            latest=scores["latest"],
            gold=self._on_sft("gold", scores),
            kl=kl,
            sft_samples=self.before,
            sft_gold=self._on_sft("gold", self.sft_scores),
            draw=lambda purpose, other=policy: ctx.sample(other, self.prompts, purpose),
            proxy_of=lambda of: scores_of(self.reward, of),
            latest_of=lambda of: scores_of(self.latest, of),
            gold_of=self._gold_of,
        )
        return {
            **self._wins(samples, scores),
            **self._standardised(scores),
            "kl": float(kl.mean()),
            "kl_init": float(kl_init.mean()),
            "length": float(samples.lengths.float().mean()),
            "finished": float(samples.finished.float().mean()),
            "samples": self._texts(found),
            **self._of_plugins(ctx.at(evaluation=found)),
        }

    def _scores(self, samples: Samples, gold: Tensor | None) -> dict[str, Tensor]:
        """Scores (B,) by R_k and by the newest model, and ``gold`` where there is a gold model."""
        proxy = scores_of(self.reward, samples)
        latest = proxy if self.latest is self.reward else scores_of(self.latest, samples)
        return {"proxy": proxy, "latest": latest} | ({} if gold is None else {"gold": gold})

    def _on_sft(self, name: str, scores: dict[str, Tensor]) -> Tensor | None:
        return on_scale(scores.get(name), self.sft_scale.get(name))

    def _gold_of(self, samples: Samples) -> Tensor | None:
        if samples is self.before:
            return self._on_sft("gold", self.sft_scores)
        return on_scale(self.ctx.gold_scores(samples), self.sft_scale.get("gold"))

    def _wins(self, samples: Samples, scores: dict[str, Tensor]) -> dict[str, float | None]:
        """Shares of prompts on which the policy's response beats the SFT policy's; the gap."""
        same = samples.equal(self.before)
        each = {f"{n}_wins": wins(x, self.sft_scores[n], same) for n, x in scores.items()}
        if "gold_wins" in each:
            each["gap"] = each["proxy_wins"] - each["gold_wins"]
            each["gap_latest"] = each["latest_wins"] - each["gold_wins"]
        row: dict[str, float | None] = {}
        for name in ("gold_wins", "proxy_wins", "latest_wins", "gap", "gap_latest"):
            found = mean_and_error(each[name]) if name in each else (None, None)
            row[name], row[f"{name}_se"] = found
        return row

    def _standardised(self, scores: dict[str, Tensor]) -> dict[str, float | None]:
        """Means on the scale of SFT responses and on that of D_k; MMD and rank correlation."""
        proxy, gold = scores["proxy"], scores.get("gold")
        own, golds = self._on_sft("proxy", scores), self._on_sft("gold", scores)
        promised = mean(on_scale(proxy, self.training_scale.get("proxy")))
        kept = mean(on_scale(gold, self.training_scale.get("gold")))
        rank = math.nan if gold is None else spearman(proxy, gold)  # nan where one is constant
        alone = [None if x is None else on_scale(x, mean_and_std(x)) for x in (proxy, gold)]
        return {
            "gold_sft_std": mean(golds),
            "proxy_sft_std": mean(own),
            "latest_sft_std": mean(self._on_sft("latest", scores)),
            "proxy_training_std": promised,
            "gold_training_std": kept,
            "gap_training_std": None if promised is None or kept is None else promised - kept,
            "mmd": mmd(own, golds),
            "mmd_batch": mmd(*alone),
            "spearman": rank if math.isfinite(rank) else None,
        }

    def _texts(self, found: Evaluation) -> list[dict[str, Any]]:
        """A few responses with their scores, on the scale of SFT responses."""
        proxy = on_scale(found.proxy, self.sft_scale["proxy"])
        return [
            {
                "prompt": found.samples.prompts[i],
                "response": found.samples.responses[i],
                "proxy": None if proxy is None else float(proxy[i]),
                "gold": None if found.gold is None else float(found.gold[i]),
            }
            for i in range(min(self.ctx.config.evaluation.samples, len(found.samples)))
        ]

    def _of_plugins(self, ctx: Context) -> dict[str, float]:
        """The numbers of every plugin with ``evaluate``, as ``plugin/name``."""
        made: dict[str, float] = {}
        for name, answer in self.plugins.each("evaluate", ctx=ctx):
            self.plugins.acted(name, "evaluate", len(answer))
            for key, value in answer.items():
                if not math.isfinite(value):
                    raise NonFiniteError(
                        f"plugin '{name}': its metric '{key}' is not finite at iteration "
                        f"{ctx.iteration}, step {ctx.step}"
                    )
                made[f"{name}/{key}"] = float(value)
        return made


def on_scale(values: Tensor | None, scale: tuple[float, float | None] | None) -> Tensor | None:
    """Values standardised by mean and std; None without values, or where there is no std."""
    if values is None or scale is None or scale[1] is None:
        return None
    return standardise(values, scale[0], scale[1])


def mean(values: Tensor | None) -> float | None:
    """The mean; null where there is no scale to measure on."""
    return None if values is None else float(values.mean())


def mmd(a: Tensor | None, b: Tensor | None) -> float | None:
    """Squared MMD; null where a reward has no scale."""
    return None if a is None or b is None else mmd2(a, b)
