"""best_of_n: proxy, gold and KL of the best of n responses (Book, section 10.3)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from ostinato import UserError
from ostinato_plugins.evaluations.best_of_n import expected_best, kl_bound

# Two prompts, three draws each: the proxy is gold's enemy on the first, its friend on the second.
DRAWS = [
    {"proxy": [0.0, 5.0], "gold": [3.0, 1.0]},
    {"proxy": [2.0, 7.0], "gold": [1.0, 4.0]},
    {"proxy": [1.0, 6.0], "gold": [2.0, 2.0]},
]


def test_by_hand(evaluated):
    """Of the pairs {0,1}, {0,2}, {1,2} the proxy picks gold 1, 2, 1 and 4, 2, 4."""
    made, asked = evaluated("best_of_n", {"n": [1, 3, 2]}, DRAWS)
    assert made == pytest.approx(
        {
            "proxy_1": (1 + 6) / 2,
            "proxy_2": ((2 + 1 + 2) / 3 + (7 + 6 + 7) / 3) / 2,
            "proxy_3": (2 + 7) / 2,
            "gold_1": (2 + 7 / 3) / 2,
            "gold_2": (4 / 3 + 10 / 3) / 2,
            "gold_3": (1 + 4) / 2,
            "kl_bound_1": 0.0,
            "kl_bound_2": np.log(2) - 1 / 2,
            "kl_bound_3": np.log(3) - 2 / 3,
        }
    )
    assert len(set(asked)) == len(asked) == 2  # the row's own sample is the first draw
    assert {policy for _, policy in asked} == {"policy"}


def test_of_the_sft_policy(evaluated):
    made, asked = evaluated("best_of_n", {"n": [3], "policy": "sft"}, [DRAWS[0]], sft=DRAWS)
    assert made == pytest.approx({"proxy_3": 4.5, "gold_3": 2.5, "kl_bound_3": np.log(3) - 2 / 3})
    assert {policy for _, policy in asked} == {"sft"}


def test_without_gold(evaluated):
    made, _ = evaluated("best_of_n", {"n": [3]}, DRAWS, gold=False)
    assert set(made) == {"proxy_3", "kl_bound_3"}


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_estimator_is_the_mean_over_all_subsets(n):
    draw = np.random.default_rng(n)
    proxy, gold = draw.normal(size=(3, 6)), draw.normal(size=(3, 6))
    wanted = [
        np.mean([g[max(s, key=lambda i, p=p: p[i])] for s in map(list, combinations(range(6), n))])
        for p, g in zip(proxy, gold, strict=True)
    ]
    made = expected_best(torch.tensor(proxy), torch.tensor(gold), n)
    np.testing.assert_allclose(made.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_bound_is_above_the_exact_kl_of_a_discrete_policy(n):
    """best-of-n gives rank i of m equally likely responses ((i/m)^n - ((i-1)/m)^n)."""
    gaps = []
    for m in (4, 64, 4096):
        rank = np.arange(m + 1) / m
        best = rank[1:] ** n - rank[:-1] ** n
        found = best > 0
        gaps.append(kl_bound(n) - (best[found] * np.log(best[found] * m)).sum())
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 0.01  # close where every response is improbable


def test_effect_a_truthful_proxy_gains_and_more_so_with_n(evaluated):
    draw = np.random.default_rng(0)
    golds = draw.normal(size=(16, 200))
    true = [{"proxy": g.tolist(), "gold": g.tolist()} for g in golds]
    blind = [{"proxy": draw.normal(size=200).tolist(), "gold": g.tolist()} for g in golds]
    made, _ = evaluated("best_of_n", {"n": [1, 4, 16]}, true)
    assert made["gold_1"] + 0.8 < made["gold_4"] < made["gold_16"] - 0.5
    lost, _ = evaluated("best_of_n", {"n": [16]}, blind)
    assert abs(lost["gold_16"]) < 0.3
    assert lost["proxy_16"] == pytest.approx(1.77, abs=0.15)  # the mean maximum of 16 normals


@pytest.mark.parametrize("n", [[], [0], "four"])
def test_n_is_a_list_of_counts(kit, n):
    with pytest.raises(UserError, match=r"plugins\.best_of_n\.n"):
        kit.make(("best_of_n", {"n": n}))
