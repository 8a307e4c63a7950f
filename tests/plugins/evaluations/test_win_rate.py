"""win_rate: wins, ties and losses against SFT by gold (Secrets of RLHF II, tables 2 and 3)."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato import UserError


def sample(gold):
    return {"proxy": [0.0] * len(gold), "latest": [0.0] * len(gold), "gold": list(gold)}


def test_by_hand(evaluated):
    mine, sft = sample([1.0, 0.5, -0.25, -2.0, 0.0]), sample([0.0, 0.0, 0.0, 0.0, 0.0])
    made, asked = evaluated("win_rate", {"margin": 0.25}, [mine], [sft])
    assert made == {"win": 2 / 5, "tie": 2 / 5, "lose": 1 / 5}  # the margin itself still ties
    made, _ = evaluated("win_rate", {"margin": 0.0}, [mine], [sft])
    assert made == {"win": 2 / 5, "tie": 1 / 5, "lose": 2 / 5}
    assert asked == []


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0, 5.0])
def test_shares_sum_to_one_and_swap_with_the_sides(evaluated, margin):
    a, b = np.random.default_rng(3).normal(size=(2, 97))
    made, _ = evaluated("win_rate", {"margin": margin}, [sample(a)], [sample(b)])
    assert sum(made.values()) == pytest.approx(1, abs=1e-12)
    back, _ = evaluated("win_rate", {"margin": margin}, [sample(b)], [sample(a)])
    assert (back["win"], back["tie"], back["lose"]) == (made["lose"], made["tie"], made["win"])


def test_effect_a_better_policy_wins(evaluated):
    draw = np.random.default_rng(0)
    sft = sample(draw.normal(size=400))
    same, _ = evaluated("win_rate", {}, [sample(draw.normal(size=400))], [sft])
    better, _ = evaluated("win_rate", {}, [sample(draw.normal(size=400) + 1)], [sft])
    assert abs(same["win"] - same["lose"]) < 0.15
    assert better["win"] > 0.65 > 0.3 > better["lose"]  # P(N(1, 2) > .1) = .74


def test_nothing_without_gold(evaluated):
    assert evaluated("win_rate", {}, [sample([1.0])], gold=False) == ({}, [])


def test_a_margin_is_not_negative(kit):
    with pytest.raises(UserError, match=r"plugins\.win_rate\.margin"):
        kit.make(("win_rate", {"margin": -0.1}))
