"""What an ``evaluate`` hook is given, with scores written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ostinato.contract.context import Evaluation


@pytest.fixture
def evaluated(kit):
    """``(plugin, settings, draws, **scores)`` -> the plugin's metrics and the draws it asked for.

    A sample is a mapping of scores: ``proxy``, ``latest``, ``gold``. ``draws`` are those that the
    policy draws one after the other, the first of them the row's own; ``sft`` those of SFT. ``at``
    is what else the context holds.
    """

    def evaluate(name, settings, draws, sft=None, gold=True, at=()):
        one = kit.make((name, settings))
        sft = sft or [{"proxy": [0.0], "latest": [0.0], "gold": [0.0]}]
        queues = {"policy": iter(draws[1:]), "sft": iter(sft[1:])}
        asked = []

        def of(key):
            return lambda sample: torch.tensor(sample[key]) if gold or key != "gold" else None

        def draw(purpose, policy="policy"):
            asked.append((purpose, policy))
            return next(queues[policy])

        found = Evaluation(
            policy="policy",
            sft="sft",
            reward=SimpleNamespace(),
            samples=draws[0],
            proxy=of("proxy")(draws[0]),
            latest=of("latest")(draws[0]) if "latest" in draws[0] else None,
            gold=of("gold")(draws[0]),
            kl=torch.zeros(1),
            sft_samples=sft[0],
            sft_gold=of("gold")(sft[0]),
            draw=draw,
            proxy_of=of("proxy"),
            latest_of=of("latest"),
            gold_of=of("gold"),
        )
        ctx = one.ctx.at(evaluation=found, **dict(at))
        return one.plugins.call(name, "evaluate", ctx=ctx), asked

    return evaluate
