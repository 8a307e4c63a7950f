"""BRME, lemma 1 and section 6.2: constant and random rewards."""

from __future__ import annotations

import pytest
import torch

import random_rewards as experiment


def test_every_response_of_the_language_is_there_once():
    ids, mask = experiment.responses()
    texts = {tuple(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)}
    assert len(texts) == len(ids) == 1 + 2 + 4 * 3


@pytest.mark.parametrize("seed", range(3))
def test_lemma_1(seed):
    """Zero under a constant reward, by the PPO plugin's own loss; not under a real one."""
    rows = {row["name"]: row for row in experiment.lemma(seed)}
    exact, unbiased, biased, real = rows.values()
    assert exact["largest"] == 0
    assert unbiased["expected"] < 1e-12 < unbiased["largest"]
    assert biased["expected"] > 1e-4  # GAE with a wrong critic looks at the length
    assert real["expected"] > 0.01


def test_expected_gradient_is_that_of_the_expected_reward():
    """The enumeration against autograd through sum pi(y) r(y)."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=draw, dtype=torch.float64).requires_grad_()
    ids, mask = experiment.responses()
    picked = logits.log_softmax(-1)[experiment.prefixes(ids)].gather(2, ids[..., None])[..., 0]
    chance = picked.masked_fill(~mask, 0.0).sum(1).exp()
    (grad,) = torch.autograd.grad(chance @ experiment.praise(ids).double(), logits)
    length = float(chance.detach() @ mask.sum(1).double())
    expected, _ = experiment.gradient_norms(experiment.praise, 0.0, 1.0, 0)
    assert expected == pytest.approx(float(grad.norm()) / length, rel=1e-9)


def test_noise_has_the_scale_it_says():
    draw, prompts = torch.Generator().manual_seed(0), torch.zeros(20_000, dtype=torch.long)
    for name, (reduce, mean) in experiment.REDUCED.items():
        found = experiment.noise(reduce, False, 0)(prompts, prompts, draw)
        assert float(found.mean()) == pytest.approx(mean, abs=0.03)
        low, high = (0.95, 1.05) if name.startswith("one") else (0.4, 0.7)
        assert low < float(found.std()) < high


def test_constant_rewards_keep_the_policy_and_random_ones_ruin_it():
    held = next(iter(experiment.TRAINING))
    rows = experiment.ruin(0, rollouts=20, trainings=[held])
    best = {(r["kind"], r["name"]): r["best"] for r in rows}
    assert best.pop(("constant", experiment.CONSTANT)) == pytest.approx(experiment.START, abs=1e-5)
    assert best["fixed", "one random reward"] < experiment.START - 0.1
    assert sum(best.values()) / len(best) < experiment.START - 0.05
