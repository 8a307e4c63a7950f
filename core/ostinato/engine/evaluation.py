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
from ostinato.data.prompts import PromptSet
from ostinato.engine.calibration import over_training, spread_part
from ostinato.machine.backend import Backend
from ostinato.measures import mean_and_error, mean_and_std, mmd2, spearman, standardise, wins
from ostinato.models.generation import sample
from ostinato.models.kl import kl_per_response
from ostinato.models.policy import Policy
from ostinato.models.reward import Reward
from ostinato.models.ruler import Ruler
from ostinato.models.samples import Samples


@dataclass(frozen=True)
class Scale:
    """Mean and std of a reward over a fixed sample; a reward without spread has no scale."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """The scale that these values (n,) make."""
        return cls(*mean_and_std(values))

    def __call__(self, values: Tensor) -> Tensor | None:
        """Values on this scale."""
        return None if self.std is None else standardise(values, self.mean, self.std)


@dataclass
class Evaluator:
    """Evaluates the policy of one iteration at a step; answers one ``eval`` row.

    ``data`` is D_k, whose responses make the scale of the columns ``..._training_std``.
    """

    prompts: PromptSet
    ruler: Ruler
    sft: Policy
    reference: Policy
    reward: Reward
    latest: Reward
    data: Dataset
    plugins: Plugins
    ctx: Context
    backend: Backend

    def __post_init__(self) -> None:
        self.before = self.ruler.evaluation
        self.sft_proxy = self.scores(self.reward, self.before)
        self.sft_latest = self.scores(self.latest, self.before)
        self.proxy_scale, self.latest_scale = Scale.of(self.sft_proxy), Scale.of(self.sft_latest)
        self.gold_scale = Scale(0, None) if self.ruler.gold is None else Scale.of(self.ruler.gold)
        tokenizer = self.before.tokenizer
        self.proxy_training = Scale.of(over_training(self.reward, self.data, tokenizer))
        part = spread_part(self.data)
        golds = [*part["chosen_gold"], *part["rejected_gold"]]
        known = None not in golds
        self.gold_training = Scale.of(torch.tensor(golds)) if known else Scale(0, None)

    @torch.no_grad()
    def __call__(self, policy: Policy, step: int) -> dict[str, Any]:
        """Sample, score and measure; see docs/concepts for each column and its unit."""
        ctx = self.ctx.at(step=step)
        samples = self._draw(policy, ctx.generator("evaluation", policy.lm.device))
        proxy = self.scores(self.reward, samples)
        latest = proxy if self.latest is self.reward else self.scores(self.latest, samples)
        gold = ctx.gold_scores(samples)
        with self.backend.autocast():
            kl = kl_init = kl_per_response(policy, self.sft, samples)
            if self.reference is not self.sft:
                kl_init = kl_per_response(policy, self.reference, samples)
        found = self._found(policy, samples, proxy, latest, gold, kl, ctx)
        return {
            **self._wins(samples, proxy, latest, gold),
            **self._standardised(proxy, latest, gold),
            "kl": float(kl.mean()),
            "kl_init": float(kl_init.mean()),
            "length": float(samples.lengths.float().mean()),
            "finished": float(samples.finished.float().mean()),
            "samples": self._texts(found),
            **self._of_plugins(ctx.at(evaluation=found)),
        }

    def _wins(
        self, samples: Samples, proxy: Tensor, latest: Tensor, gold: Tensor | None
    ) -> dict[str, float | None]:
        """Shares of prompts on which the policy's response beats the SFT policy's; the gap."""
        same = samples.equal(self.before)
        by = {
            "proxy": wins(proxy, self.sft_proxy, same),
            "latest": wins(latest, self.sft_latest, same),
        }
        made: dict[str, float | None] = {}
        if gold is not None:
            assert self.ruler.gold is not None
            by["gold"] = wins(gold, self.ruler.gold, same)
        for name, won in by.items():
            made[f"{name}_wins"], made[f"{name}_wins_se"] = mean_and_error(won)
        for name, key in (("proxy", "gap"), ("latest", "gap_latest")):
            found = mean_and_error(by[name] - by["gold"]) if "gold" in by else (None, None)
            made[key], made[f"{key}_se"] = found
        return {"gold_wins": None, "gold_wins_se": None, **made}

    def _standardised(
        self, proxy: Tensor, latest: Tensor, gold: Tensor | None
    ) -> dict[str, float | None]:
        """Means on the scale of SFT responses and on that of D_k; MMD and rank correlation."""
        own, golds = self.proxy_scale(proxy), None if gold is None else self.gold_scale(gold)
        trained = {
            "proxy": self.proxy_training(proxy),
            "gold": None if gold is None else self.gold_training(gold),
        }
        means = {f"{key}_training_std": mean(value) for key, value in trained.items()}
        old = means["proxy_training_std"], means["gold_training_std"]
        alone = [None if x is None else Scale.of(x)(x) for x in (proxy, gold)]
        return {
            "gold_sft_std": mean(golds),
            "proxy_sft_std": mean(own),
            "latest_sft_std": mean(self.latest_scale(latest)),
            **means,
            "gap_training_std": None if None in old else old[0] - old[1],  # type: ignore[operator]
            "mmd": mmd(own, golds),
            "mmd_batch": mmd(*alone),
            "spearman": None if gold is None else number(spearman(proxy, gold)),
        }

    def _found(
        self,
        policy: Policy,
        samples: Samples,
        proxy: Tensor,
        latest: Tensor,
        gold: Tensor | None,
        kl: Tensor,
        ctx: Context,
    ) -> Evaluation:
        """What ``evaluate`` hooks are given."""

        def draw(purpose: str, other: Policy = policy) -> Samples:
            return self._draw(other, ctx.generator(purpose, other.lm.device))

        return Evaluation(
            policy=policy,
            sft=self.sft,
            reward=self.reward,
            samples=samples,
            proxy=proxy,
            latest=latest,
            gold=None if gold is None else self.gold_scale(gold),
            kl=kl,
            sft_samples=self.before,
            sft_gold=self._gold_of(self.before),
            draw=draw,
            proxy_of=lambda of: self.scores(self.reward, of),
            latest_of=lambda of: self.scores(self.latest, of),
            gold_of=self._gold_of,
        )

    def _texts(self, found: Evaluation) -> list[dict[str, Any]]:
        """A few responses with their scores, on the scale of SFT responses."""
        proxy = self.proxy_scale(found.proxy)
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

    def _draw(self, policy: Policy, generator: torch.Generator) -> Samples:
        with self.backend.autocast():
            settings, prompts = self.ctx.config.generation, self.prompts
            return sample(policy, prompts.tokens, settings, generator, prompts.texts)

    def scores(self, reward: Reward, samples: Samples) -> Tensor:
        """Scores (B,) in fp32, as the ruler's: whatever the policy is optimised in."""
        return reward.score_samples(samples).score.float().cpu()

    def _gold_of(self, samples: Samples) -> Tensor | None:
        raw = self.ruler.gold if samples is self.before else self.ctx.gold_scores(samples)
        return None if raw is None else self.gold_scale(raw)


def mean(values: Tensor | None) -> float | None:
    """The mean; null where there is no scale to measure on."""
    return None if values is None else float(values.mean())


def mmd(a: Tensor | None, b: Tensor | None) -> float | None:
    """Squared MMD; null where a reward has no scale."""
    return None if a is None or b is None else float(mmd2(a, b))


def number(value: float) -> float | None:
    """A measure as JSON holds it: null where it is undefined on this sample."""
    return float(value) if math.isfinite(value) else None
