"""Secrets of RLHF II, figures 2 to 5: votes find wrong labels, and flipping mends them."""

from __future__ import annotations

import numpy as np
import pytest

import label_noise as experiment


def test_words_have_the_better_one_chosen():
    data = experiment.words(20, 0)
    for row in data:
        assert experiment.gold(row["chosen"]) == row["chosen_gold"] > row["rejected_gold"]
        assert experiment.gold(row["rejected"]) == row["rejected_gold"]
    assert experiment.gold("aabcdd") == 2 * (2 - 1) + 1 - 2


def test_turned_labels_are_the_share_asked_for():
    data = experiment.words(40, 0)
    noisy, wrong = experiment.turned(data, 0.25, 1)
    assert wrong.sum() == 10
    moved = [a != b for a, b in zip(data["chosen"], noisy["chosen"], strict=True)]
    assert moved == wrong.tolist()


def test_auc_by_hand():
    strength, wrong = np.array([0.0, 1.0, 1.0, 2.0]), np.array([True, False, True, False])
    assert experiment.auc(strength, wrong) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_effect_wrong_labels_are_found_and_flipping_mends_them():
    rows = experiment.repetition(0, updates=48, cures=["flip below 0"], groups=0)
    clean, noisy, flipped = rows
    assert clean["auc"] > 0.93
    assert noisy["wrong"] == pytest.approx(experiment.NOISE, abs=0.01)
    assert flipped["wrong"] < 0.5 * noisy["wrong"]
    assert clean["accuracy"] > flipped["accuracy"] > noisy["accuracy"] + 0.02
