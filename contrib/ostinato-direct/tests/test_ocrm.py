"""OCRM's weights by hand, and what they correct."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from ostinato_direct.ocrm import OCRM

import ostinato


def weights(plugin, samples, table, rows, policies, **settings):
    """Weights of rows (iteration, chosen, rejected, weight), by policies (logprobs)."""
    columns = ("iteration", "chosen", "rejected", "weight")
    data = Dataset.from_dict(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
    handles = [ostinato.PolicyHandle(str(i), lambda p=p: table(p)) for i, p in enumerate(policies)]
    logged = {}
    ctx = SimpleNamespace(
        policies=ostinato.PolicyHistory(handles[0], handles[:-1], handles[1:]),
        responses=lambda part, side: samples([[token] for token in part[side][:]]),
        autocast=nullcontext,
        device=torch.device("cpu"),
        log=logged.update,
    )
    after = plugin(OCRM, **settings).refine_data(data, ctx)
    assert after.features == data.features
    others = [name for name in columns if name != "weight"]
    assert after.select_columns(others).to_dict() == data.select_columns(others).to_dict()
    return after["weight"][:], logged


SFT, FIRST, SECOND = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]


def test_weights_by_hand(plugin, samples, table):
    logs = [[math.log(p) for p in policy] for policy in (SFT, FIRST, SECOND)]
    rows = [(1, 0, 1, 1.0), (2, 2, 0, 0.5), (3, 1, 2, 0.25), (1, 2, 2, 2.0)]

    def ratio(y, old):
        return SECOND[y] / (0.1 * SECOND[y] + 0.9 * old[y])

    wanted = [
        (ratio(0, SFT) * ratio(1, SFT)) ** 0.5,
        0.5 * (ratio(2, FIRST) * ratio(0, FIRST)) ** 0.5,
        0.25,  # drawn by the newest policy itself
        2.0 * (ratio(2, SFT) ** 2) ** 0.5,
    ]
    found, logged = weights(plugin, samples, table, rows, logs, power=0.5)
    assert found == pytest.approx(wanted)
    raw = [wanted[0], 2 * wanted[1], 1.0, wanted[3] / 2]
    assert logged["ocrm/largest"] == pytest.approx(max(raw))
    share = sum(raw) ** 2 / sum(w * w for w in raw) / 4
    assert logged["ocrm/effective_share"] == pytest.approx(share)


def test_in_the_first_iteration_nothing_changes(plugin, samples, table):
    rows = [(1, 0, 1, 1.0), (1, 2, 1, 0.5)]
    found, logged = weights(plugin, samples, table, rows, [[-1.0] * 3])
    assert found == [1.0, 0.5]
    assert logged == {"ocrm/effective_share": 1.0, "ocrm/largest": 1.0}


def test_responses_of_a_thousand_nats_neither_overflow_nor_vanish(plugin, samples, table):
    policies = [[-2000.0, -1000.0], [-1000.0, -2000.0]]
    found, _ = weights(plugin, samples, table, [(1, 0, 0, 1.0), (1, 1, 1, 1.0)], policies)
    ceiling = 1 / 0.1  # of a relative ratio
    assert found[0] == pytest.approx((ceiling**2) ** 0.001)
    assert found[1] == pytest.approx(math.exp(0.001 * 2 * (-1000 - math.log(0.9))))
    found, _ = weights(plugin, samples, table, [(1, 0, 1, 1.0)], policies, power=1.0, relative=0.0)
    assert found == [pytest.approx(1.0)]


def fitted(pairs, feature, truth):
    """The slope of a Bradley-Terry model that is linear in a feature, by Newton's method."""
    slope = 0.0
    for _ in range(50):
        first = second = 0.0
        for (i, j), weight in pairs.items():
            gap = feature[i] - feature[j]
            p, model = (1 / (1 + math.exp(-x)) for x in (truth[i] - truth[j], slope * gap))
            first += weight * (p - model) * gap
            second += weight * model * (1 - model) * gap * gap
        slope += first / second
    return slope


def test_a_misspecified_reward_model_is_fitted_where_the_policy_is_now(plugin, samples, table):
    """A linear model of a reward that rises and falls: its slope depends on where the data lies.

    All pairs are enumerated. With full ratios, pairs of the SFT policy give the slope that pairs of
    the policy itself would give; unweighted ones give one of the other sign.
    """
    feature, truth = np.arange(4.0), [0.0, 1.0, 1.2, 0.0]
    sft, now = [0.4, 0.4, 0.15, 0.05], [0.05, 0.15, 0.4, 0.4]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    rows = [(1, i, j, sft[i] * sft[j]) for i, j in pairs]
    logs = [[math.log(p) for p in policy] for policy in (sft, now)]
    found, _ = weights(plugin, samples, table, rows, logs, power=1.0, relative=0.0)
    here = fitted({(i, j): now[i] * now[j] for i, j in pairs}, feature, truth)
    there = fitted({(i, j): sft[i] * sft[j] for i, j in pairs}, feature, truth)
    assert there > 0 > here
    assert fitted(dict(zip(pairs, found, strict=True)), feature, truth) == pytest.approx(here)
    part, _ = weights(plugin, samples, table, rows, logs, power=0.5)
    assert here < fitted(dict(zip(pairs, part, strict=True)), feature, truth) < there
