"""Measures on held-out prompts: proxy, gold, the gap between them, KL, MMD, length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ostinato.config.errors import NonFiniteError
from ostinato.config.sections import RunConfig
from ostinato.contract.context import Context, Evaluation
from ostinato.contract.plugins import Plugins
from ostinato.data.prompts import PromptSet
from ostinato.machine.backend import Backend
from ostinato.measures import mmd2, spearman, standardise
from ostinato.models.generation import sample
from ostinato.models.gold import gold_scores
from ostinato.models.kl import kl_per_response
from ostinato.models.policy import Policy
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples


@dataclass(frozen=True)
class Baseline:
    """SFT responses to the evaluation prompts, drawn once: the fixed sample of all scales."""

    samples: Samples
    gold: Tensor | None

    @property
    def gold_scale(self) -> tuple[float, float]:
        """Mean and std of the gold over the sample."""
        assert self.gold is not None
        return float(self.gold.mean()), float(self.gold.std().clamp_min(1e-6))


@torch.no_grad()
def measure_baseline(sft: Policy, prompts: PromptSet, ctx: Context) -> Baseline:
    """Sample the SFT policy on the evaluation prompts and score it with gold."""
    generator = ctx.draws.generator("sft evaluation", device=sft.lm.device)
    samples = sample(sft, prompts.tokens, ctx.config.generation, generator)
    return Baseline(samples, _gold(samples, ctx))


def _gold(samples: Samples, ctx: Context) -> Tensor | None:
    if ctx.gold is None:
        return None
    assert ctx.config.gold is not None
    return gold_scores(ctx.gold, samples, ctx.config.gold.batch)


@dataclass
class Evaluator:
    """Evaluates the policy of one iteration at a step; answers one ``eval`` row."""

    prompts: PromptSet
    baseline: Baseline
    sft: Policy
    reference: Policy
    reward: Reward
    latest: Reward
    plugins: Plugins
    ctx: Context
    backend: Backend

    def __post_init__(self) -> None:
        scores = self._scores(self.reward, self.baseline.samples)
        self._proxy_scale = (float(scores.mean()), float(scores.std().clamp_min(1e-6)))

    @torch.no_grad()
    def __call__(self, policy: Policy, step: int) -> dict[str, Any]:
        """Sample, score and measure; see docs/concepts for each column and its unit."""
        ctx = self.ctx.at(step=step)
        config: RunConfig = ctx.config
        generator = ctx.generator("evaluation", policy.lm.device)
        samples = self._draw(policy, generator)
        proxy = self._scores(self.reward, samples)
        latest = proxy if self.latest is self.reward else self._scores(self.latest, samples)
        with self.backend.autocast():
            kl = kl_per_response(policy, self.sft, samples)
            kl_init = (
                kl
                if self.reference is self.sft
                else kl_per_response(policy, self.reference, samples)
            )
        raw_gold = _gold(samples, ctx)
        row: dict[str, Any] = {
            "proxy_reward": float(proxy.mean()),
            "latest_reward": float(latest.mean()),
            "gold_reward": None,
            "gap": None,
            "gap_latest": None,
            "kl": float(kl.mean()),
            "kl_init": float(kl_init.mean()),
            "mmd": None,
            "mmd_batch": None,
            "spearman": None,
            "length": float(samples.lengths.float().mean()),
            "finished": float(samples.finished.float().mean()),
        }
        gold = None
        if raw_gold is not None:
            gold = standardise(raw_gold, *self.baseline.gold_scale)
            row |= self._against_gold(proxy, latest, raw_gold, gold)
        row["samples"] = [
            {
                "prompt": samples.prompts[i],
                "response": samples.responses[i],
                "proxy": float(proxy[i]),
                "gold": None if gold is None else float(gold[i]),
            }
            for i in range(min(config.evaluation.samples, len(samples)))
        ]

        def draw(purpose: str, other: Policy = policy) -> Samples:
            return self._draw(other, ctx.generator(purpose, other.lm.device))

        found = Evaluation(
            policy=policy,
            sft=self.sft,
            reward=self.reward,
            samples=samples,
            proxy=proxy,
            latest=latest,
            gold=gold,
            kl=kl,
            sft_samples=self.baseline.samples,
            sft_gold=self._gold_of(self.baseline.samples),
            draw=draw,
            proxy_of=lambda of: self._scores(self.reward, of),
            latest_of=lambda of: self._scores(self.latest, of),
            gold_of=self._gold_of,
        )
        for name, answer in self.plugins.each("evaluate", ctx=ctx.at(evaluation=found)):
            self.plugins.acted(name, "evaluate", len(answer))
            for key, value in answer.items():
                if not math.isfinite(value):
                    raise NonFiniteError(
                        f"plugin '{name}': its metric '{key}' is not finite at iteration "
                        f"{ctx.iteration}, step {step}"
                    )
                row[f"{name}/{key}"] = float(value)
        return row

    def _draw(self, policy: Policy, generator: torch.Generator) -> Samples:
        with self.backend.autocast():
            return sample(policy, self.prompts.tokens, self.ctx.config.generation, generator)

    def _scores(self, reward: Reward, samples: Samples) -> Tensor:
        """Calibrated (B,)."""
        with self.backend.autocast():
            return reward.score_samples(samples).score.float().cpu()

    def _gold_of(self, samples: Samples) -> Tensor | None:
        known = samples is self.baseline.samples
        raw = self.baseline.gold if known else _gold(samples, self.ctx)
        return None if raw is None else standardise(raw, *self.baseline.gold_scale)

    def _against_gold(
        self, proxy: Tensor, latest: Tensor, raw_gold: Tensor, gold: Tensor
    ) -> dict[str, float | None]:
        scale = self.latest.members[0].calibration
        if scale.gold_mean is None or scale.gold_std is None:
            raise RuntimeError("the newest reward model was not calibrated against gold")
        on_proxy_scale = standardise(raw_gold, scale.gold_mean, scale.gold_std)
        own = standardise(proxy, *self._proxy_scale)
        alone = [
            standardise(x, float(x.mean()), float(x.std().clamp_min(1e-6))) for x in (proxy, gold)
        ]
        return {
            "gold_reward": float(gold.mean()),
            "gap": float(proxy.mean() - on_proxy_scale.mean()),
            "gap_latest": float(latest.mean() - on_proxy_scale.mean()),
            "mmd": float(mmd2(own, gold)),
            "mmd_batch": float(mmd2(alone[0], alone[1])),
            "spearman": number(spearman(latest, gold)),
        }


def number(value: float) -> float | None:
    """A measure as JSON holds it: null where it is undefined on this sample."""
    return float(value) if math.isfinite(value) else None
