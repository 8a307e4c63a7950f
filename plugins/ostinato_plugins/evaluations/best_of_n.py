"""What picking the best of n responses by proxy would give, without any training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, hookimpl


class BestOfN:
    """Measure the best of n responses, picked by proxy: proxy, gold and its KL (Book, 10.3)."""

    paper = (
        "Book, section 10.3; estimator: Nakano et al. 2021 (WebGPT), appendix I; "
        "bound: Beirami et al. 2024"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        n: list[Annotated[int, Field(ge=1)]] = Field(
            [4, 16], min_length=1, description="responses that the best is picked of, each measured"
        )
        policy: Literal["current", "sft"] = Field(
            "current", description="whose responses: the policy's in training, or the SFT policy's"
        )

    config: Config

    @hookimpl
    def evaluate(self, ctx: Context) -> dict[str, float]:
        """``proxy_N`` and ``gold_N``, means over prompts; ``kl_bound_N``, nats per response."""
        found = ctx.evaluation
        own = self.config.policy == "current"
        policy, first = (found.policy, found.samples) if own else (found.sft, found.sft_samples)
        drawn = [first]
        for i in range(1, max(self.config.n)):
            drawn.append(found.draw(f"best of n {i}", policy))
        proxy = torch.stack([found.proxy_of(samples) for samples in drawn], dim=1)  # (B, draws)
        golds = [gold for samples in drawn if (gold := found.gold_of(samples)) is not None]
        made: dict[str, float] = {}
        for n in sorted(set(self.config.n)):
            made[f"proxy_{n}"] = float(expected_best(proxy, proxy, n).mean())
            if golds:
                made[f"gold_{n}"] = float(expected_best(proxy, torch.stack(golds, 1), n).mean())
            made[f"kl_bound_{n}"] = kl_bound(n)
        return made


def expected_best(proxy: Tensor, value: Tensor, n: int) -> Tensor:
    """Expected ``value`` (B,) of the best by ``proxy`` among n of N draws; both (B, N).

    Unbiased, over all subsets of n: sum_i C(i - 1, n - 1) / C(N, n) value_(i), with value_(i) that
    of the draw of i-th lowest proxy (Nakano et al. 2021, appendix I). Equal proxies keep the order
    of their draws, which is random.
    """
    draws = proxy.shape[1]
    weights = [math.comb(i - 1, n - 1) / math.comb(draws, n) for i in range(1, draws + 1)]
    order = proxy.argsort(dim=1, stable=True)
    return value.double().gather(1, order) @ torch.tensor(weights, dtype=torch.float64)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n >= KL(best of n || the policy), nats per response.

    The bound is close where every response is improbable (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n
