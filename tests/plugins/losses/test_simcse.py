"""simcse: InfoNCE between two dropout views (Secrets of RLHF II, equation 9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import RMOutputs, UserError


def infonce(first, second, temperature):
    """Mean of -log exp(sim(i, i) / t) / sum_j exp(sim(i, j) / t), in float64 and with loops."""
    total = 0.0
    for i, a in enumerate(first):
        sims = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) / temperature for b in second]
        total -= sims[i] - np.log(np.exp(sims).sum())
    return total / len(first)


def term(kit, batch, hidden, **settings):
    one = kit.make(("simcse", settings))
    outputs = RMOutputs(hidden[..., 0], hidden[..., :1], hidden)
    answer = one.plugins.call("simcse", "rm_loss", batch=batch, outputs=outputs, ctx=one.ctx)
    assert list(answer) == ["contrastive"]
    return float(answer["contrastive"])


@pytest.mark.parametrize("responses", [2, 3])
@pytest.mark.parametrize("samples", ["pairs", "difference"])
def test_against_the_formula(kit, comparisons, samples, responses):
    data = comparisons(4, responses=responses)
    batch = kit.make().batch(data, kit.make().initial())
    hidden = np.random.default_rng(0).normal(size=(2, len(batch.prompt), 16))
    views = hidden
    if samples == "difference":
        chosen, rejected = batch.pairs.T.numpy()
        d = hidden[:, chosen] - hidden[:, rejected]
        views = np.concatenate([d, -d], axis=1)
    expected = 0.3 * infonce(*views, 0.2)
    settings = {"beta": 0.3, "temperature": 0.2, "samples": samples}
    made = term(kit, batch, torch.tensor(hidden, dtype=torch.float32), **settings)
    assert made == pytest.approx(expected, rel=1e-5)


def test_the_reward_loss_is_over_originals_and_augmentations(kit, comparisons):
    """L = mean over both views of the preference loss, plus beta L_cl, logged apart."""
    one = kit.make("simcse", updates=1)
    data, model, fit = comparisons(8), one.initial(), one.trainer()
    seen = {}
    real = type(one.plugins).call

    def spy(plugins, name, hook, **arguments):
        seen[hook] = arguments
        return real(plugins, name, hook, **arguments)

    type(one.plugins).call = spy
    try:
        fit(model, data)
    finally:
        type(one.plugins).call = real
    out, pairs = seen["preference_loss"]["outputs"], seen["preference_loss"]["batch"].pairs
    score = out.score.detach().double().numpy()
    z = score[:, pairs[:, 0]] - score[:, pairs[:, 1]]
    terms = one.rows[0]["terms"]
    assert terms["bradley_terry"] == pytest.approx(np.logaddexp(0, -z).mean(), rel=1e-5)
    expected = 0.1 * infonce(*out.hidden.detach().double().numpy(), 0.05)
    assert terms["simcse/contrastive"] == pytest.approx(expected, rel=1e-4)
    assert one.rows[0]["loss"] == pytest.approx(sum(terms.values()), rel=1e-6)
    assert one.rows[0]["actions"]["simcse.rm_loss"] == pytest.approx(expected, rel=1e-4)


def test_dropout_cannot_be_switched_off(kit):
    with pytest.raises(UserError, match="dropout"):
        kit.make(("simcse", {"dropout": 0.0}))
    assert kit.make(("simcse", {"dropout": 0.3})).plugins.need("dropout") == 0.3


def overlap(model, batch):
    """Mean cosine of h_chosen and h_rejected, the same about the mean h, and over all rows."""
    with torch.no_grad():
        h = model(batch.input_ids, batch.mask).hidden[0].double()
    chosen, rejected = batch.pairs.T
    about = h - h.mean(0)
    unit = torch.nn.functional.normalize(h, dim=-1)
    return [
        torch.cosine_similarity(h[chosen], h[rejected]).mean().item(),
        torch.cosine_similarity(about[chosen], about[rejected]).mean().item(),
        (unit @ unit.T).mean().item(),
    ]


@pytest.mark.slow
def test_effect_features_of_chosen_and_rejected_overlap_less(kit, comparisons):
    """Secrets of RLHF II, figure 11: with SimCSE chosen and rejected features overlap less.

    Held-out pairs, paired over four seeds; .3 of the labels are wrong, as people's are. On clean
    labels the Bradley-Terry loss alone pulls the two apart, and `pairs` holds them together.
    `difference` separates them also about the mean feature. `pairs` does not: all features spread,
    and those of a pair no more than others.
    """
    held, found = comparisons(96, seed=77), {}
    for samples in (None, "pairs", "difference"):
        plugins = (("simcse", {"samples": samples}),) if samples else ()
        rows = []
        for seed in range(4):
            one = kit.make(*plugins, batch=16, updates=60, lr=1e-3)
            model = one.trainer()(one.initial(seed), comparisons(64, seed=seed, noise=0.3))
            rows.append(overlap(model, one.batch(held, model)))
        found[samples] = np.array(rows)
    pairs, difference = (found[s] - found[None] for s in ("pairs", "difference"))
    assert (pairs[:, 0] < 0).sum() >= 3
    assert pairs[:, 0].mean() < -0.05, pairs
    assert pairs[:, 2].mean() < pairs[:, 0].mean(), pairs
    assert (difference[:, :2] < 0).sum(0).min() >= 3
    assert (difference[:, :2].mean(0) < -0.1).all(), difference
