"""Best of n by steps or by outcome: chance, the verifier, and a small repetition between them."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import steps_or_outcome as experiment


def test_auc_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    right = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    wins = [1, 1, 0.5, 1]  # 3 > 1, 2 > 1; 1 = 1, 1 > 0
    assert experiment.auc(scores, right) == pytest.approx(sum(wins) / len(wins))


def test_effect_trained_choosers_lie_between_chance_and_the_verifier():
    rows = experiment.repetition(0, [96], ["prm"], prompts=64, responses=8)
    found = {(r["chooser"], r["n"]): r["right"] for r in rows}
    assert {name for name, _ in found} == {"prm", "prm, mean", "prm, last", "chance", "verifier"}
    one = {found[name, 1] for name in ("prm", "chance", "verifier")}
    assert max(one) - min(one) < 1e-9  # the best of one is that one
    for n, name in product((2, 4, 8), ("prm",)):
        assert found["chance", n] < found[name, n] <= found["verifier", n]
    assert 0.4 < found["chance", 8] < 0.7
