"""agreement: accuracy and rank correlation on the current policy's own pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr


def drawn(seed, noise):
    draw = np.random.default_rng(seed)
    gold = draw.normal(size=(2, 60))
    latest, proxy = (gold + s * draw.normal(size=(2, 60)) for s in noise)
    return [
        {"gold": gold[i].tolist(), "latest": latest[i].tolist(), "proxy": proxy[i].tolist()}
        for i in range(2)
    ]


def test_against_loops_and_scipy(evaluated):
    draws = drawn(0, (1.0, 0.3))
    made, asked = evaluated("agreement", {}, draws)
    assert len(asked) == 1
    wanted = {}
    for prefix, key in (("", "latest"), ("combined_", "proxy")):
        (a, b), (ga, gb) = ([d[k] for d in draws] for k in (key, "gold"))
        right = [(x > y) == (gx > gy) for x, y, gx, gy in zip(a, b, ga, gb, strict=True)]
        wanted[f"{prefix}accuracy"] = np.mean(right)
        wanted[f"{prefix}spearman"] = spearmanr(a + b, ga + gb).statistic
    assert made == pytest.approx(wanted, abs=1e-6)


def test_effect_the_reward_that_knows_more_agrees_more(evaluated):
    made, _ = evaluated("agreement", {}, drawn(1, (2.0, 0.2)))
    assert made["combined_accuracy"] > made["accuracy"] + 0.1
    assert made["combined_spearman"] > made["spearman"] + 0.1


def test_what_is_undefined_is_left_out(evaluated):
    tied = {"gold": [1.0, 1.0], "latest": [0.0, 1.0], "proxy": [0.0, 1.0]}
    assert evaluated("agreement", {}, [tied, tied])[0] == {}
    flat = [{"gold": [g, -g], "latest": [2.0, 2.0], "proxy": [g, -g]} for g in (1.0, 3.0)]
    made, _ = evaluated("agreement", {}, flat)
    assert made == {"accuracy": 0.5, "combined_accuracy": 1.0, "combined_spearman": 1.0}


def test_nothing_without_gold(evaluated):
    assert evaluated("agreement", {}, drawn(0, (1.0, 1.0)), gold=False) == ({}, [])
