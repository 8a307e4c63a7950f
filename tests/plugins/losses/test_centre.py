"""centre: (r_chosen + r_rejected)^2 beside the preference loss (Eisenstein et al. 2023)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import RMOutputs, UserError


def term_of(kit, batch, score, logits=None, **settings):
    one = kit.make(("centre", settings))
    score = torch.tensor(score, dtype=torch.float32, requires_grad=True)
    logits = score[..., None] if logits is None else logits
    outputs = RMOutputs(score, logits, torch.zeros(*score.shape, 1))
    answer = one.plugins.call("centre", "rm_loss", batch=batch, outputs=outputs, ctx=one.ctx)
    assert list(answer) == ["squared"]
    return answer["squared"], score


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("responses", [2, 4])
def test_against_the_formula(kit, comparisons, views, responses):
    batch = kit.make().batch(comparisons(3, responses=responses), kit.make().initial())
    score = np.random.default_rng(0).normal(size=(views, len(batch.prompt)))
    made, leaf = term_of(kit, batch, score, weight=0.3)
    pairs = [(v, c, r) for v in range(views) for c, r in batch.pairs.tolist()]
    expected = 0.3 * sum((score[v, c] + score[v, r]) ** 2 for v, c, r in pairs) / len(pairs)
    assert made.item() == pytest.approx(expected, rel=1e-5)
    made.backward()
    gradient = np.zeros_like(score)
    for v, c, r in pairs:
        gradient[v, [c, r]] += 0.3 * 2 * (score[v, c] + score[v, r]) / len(pairs)
    np.testing.assert_allclose(leaf.grad, gradient, atol=1e-6)


def test_it_is_the_score_that_is_centred_not_other_outputs(kit, comparisons):
    """Outputs beside the rewards, such as a head's standard deviation, are left alone."""
    batch = kit.make().batch(comparisons(3), kit.make().initial())
    logits = torch.randn(1, 6, 4, requires_grad=True)
    made, leaf = term_of(kit, batch, np.ones((1, 6)), logits, weight=0.5)
    made.backward()
    assert made.item() == pytest.approx(0.5 * 4.0)
    assert logits.grad is None
    assert leaf.grad is not None


def test_it_is_logged_apart_from_the_preference_loss(kit, comparisons):
    one = kit.make(("centre", {"weight": 0.5}), updates=1, batch=8)
    start, data = one.initial(), comparisons(8)
    one.trainer()(start, data)
    batch = one.batch(data, start)
    chosen, rejected = start(batch.input_ids, batch.mask).score[0].detach()[batch.pairs].T
    terms = one.rows[0]["terms"]
    plain = torch.nn.functional.softplus(rejected - chosen).mean()
    assert terms["bradley_terry"] == pytest.approx(float(plain), rel=1e-5)
    assert terms["centre/squared"] == pytest.approx(
        0.5 * float((chosen + rejected).square().mean()), rel=1e-5
    )


def test_effect_scores_stay_around_0(kit, comparisons):
    """It holds chosen and rejected around 0 without changing what is preferred."""
    data, middles = comparisons(64), []
    for plugins in ((), (("centre", {"weight": 0.5}),)):
        one = kit.make(*plugins, batch=32, updates=40, lr=1e-2)
        model = one.trainer()(one.initial(), data)
        batch = one.batch(data, model)
        with torch.no_grad():
            score = model(batch.input_ids, batch.mask).score[0]
        chosen, rejected = score[batch.pairs].T
        middles.append((abs(float(score.mean())), float((chosen + rejected).abs().mean())))
        assert float((chosen > rejected).float().mean()) > 0.8
    assert middles[1][0] < 0.5 * middles[0][0], middles
    assert middles[1][1] < 0.5 * middles[0][1], middles


def test_settings_out_of_range_are_refused(kit):
    with pytest.raises(UserError, match="weight"):
        kit.make(("centre", {"weight": 0.0}))


def test_bradley_terry_has_no_centring_of_its_own(kit):
    with pytest.raises(UserError, match="bradley_terry has no settings, but got centre"):
        kit.make(("bradley_terry", {"centre": 0.1}))
