"""swav: swapped prediction of clusters between two dropout views (Secrets of RLHF II, 3.1)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ostinato
from ostinato import RMOutputs, UserError, load_config
from ostinato.engine.session import check
from ostinato.models.reward_model import RewardModel
from ostinato_plugins.losses.swav import sinkhorn


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def assignments(scores, epsilon, iterations):
    """Caron et al. 2020, the listing in its appendix A.1: Q (K, B), in float64."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    clusters, rows = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= clusters
        q /= q.sum(axis=0, keepdims=True)
        q /= rows
    return (q * rows).T


def swapped(first, second, prototypes, temperature, epsilon=0.05, iterations=3):
    """Equations 7 and 8 with loops over rows and clusters; mean over rows."""
    total = 0.0
    c = unit(prototypes)
    for features, other in ((first, second), (second, first)):
        q = assignments(unit(other) @ c.T, epsilon, iterations)
        for i, h in enumerate(unit(features)):
            weights = [np.exp(h @ ck / temperature) for ck in c]
            total -= sum(q[i, k] * np.log(w / sum(weights)) for k, w in enumerate(weights))
    return total / len(first)


@pytest.mark.parametrize(("rows", "clusters"), [(12, 4), (5, 5), (7, 2)])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_assignments_against_the_papers_listing(rows, clusters, epsilon):
    scores = np.random.default_rng(rows).uniform(-1, 1, (rows, clusters))
    made = sinkhorn(torch.tensor(scores), epsilon, 3).numpy()
    np.testing.assert_allclose(made, assignments(scores, epsilon, 3), rtol=1e-10)
    np.testing.assert_allclose(made.sum(1), 1, rtol=1e-12)


def test_assignments_converge_to_equally_full_clusters():
    scores = torch.tensor(np.random.default_rng(1).uniform(-1, 1, (12, 4)))
    made = sinkhorn(scores, 0.2, 500).numpy()
    np.testing.assert_allclose(made.sum(0), 12 / 4, rtol=1e-9)
    alike = sinkhorn(torch.ones(6, 3), 0.05, 3)  # all rows the same: no cluster takes them all
    np.testing.assert_allclose(alike.numpy(), np.full((6, 3), 1 / 3), rtol=1e-6)


def test_a_small_epsilon_does_not_overflow():
    made = sinkhorn(torch.tensor([[0.9, -0.9], [0.8, -0.7]]), 0.002, 3)  # exp(450) is infinite
    assert made.isfinite().all()
    np.testing.assert_allclose(made.sum(1).numpy(), 1, rtol=1e-5)


def term(kit, batch, hidden, weight, at=None, **settings):
    one = kit.make(("swav", settings))
    modules = {"swav": one.plugins["swav"].instance.modules(hidden.shape[-1])}
    modules["swav"].weight.data = torch.tensor(weight, dtype=torch.float32)
    features = torch.tensor(hidden, dtype=torch.float32, requires_grad=True)
    outputs = RMOutputs(features[..., 0], features[..., :1], features, modules=modules)
    ctx = one.ctx.at(**(at or {}))
    answer = one.plugins.call("swav", "rm_loss", batch=batch, outputs=outputs, ctx=ctx)
    assert list(answer) == ["swapped"]
    return answer["swapped"], features, modules["swav"].weight


@pytest.mark.parametrize("samples", ["pairs", "difference"])
def test_against_the_formula(kit, comparisons, samples):
    batch = kit.make().batch(comparisons(4, responses=3), kit.make().initial())
    draw = np.random.default_rng(0)
    hidden, weight = draw.normal(size=(2, len(batch.prompt), 16)), draw.normal(size=(5, 16))
    views = hidden
    if samples == "difference":
        chosen, rejected = batch.pairs.T.numpy()
        d = hidden[:, chosen] - hidden[:, rejected]
        views = np.concatenate([d, -d], axis=1)
    settings = {"beta": 0.3, "temperature": 0.2, "prototypes": 5, "samples": samples}
    made, _, _ = term(kit, batch, hidden, weight, **settings)
    assert made.item() == pytest.approx(0.3 * swapped(*views, weight, 0.2), rel=1e-5)


def test_no_gradient_goes_through_the_assignments(kit, comparisons):
    """With q held fixed, d l / d c_k = mean_rows sum over views (p_k - q_k) h / t, projected."""
    batch = kit.make().batch(comparisons(4), kit.make().initial())
    draw = np.random.default_rng(0)
    hidden, weight = draw.normal(size=(2, 8, 16)), draw.normal(size=(3, 16))
    made, _, leaf = term(kit, batch, hidden, weight, beta=1.0, prototypes=3)
    (gradient,) = torch.autograd.grad(made, [leaf])
    c, norm = unit(weight), np.linalg.norm(weight, axis=1, keepdims=True)
    through = np.zeros_like(c)
    for h, other in ((hidden[0], hidden[1]), (hidden[1], hidden[0])):
        p = np.exp(unit(h) @ c.T / 0.1)
        p /= p.sum(1, keepdims=True)
        q = assignments(unit(other) @ c.T, 0.05, 3)
        through += (p - q).T @ unit(h) / 0.1 / len(h)
    expected = (through - (through * c).sum(1, keepdims=True) * c) / norm  # c = w / |w|
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-5)


def test_more_clusters_than_rows_are_refused_with_the_numbers(kit, comparisons):
    one = kit.make(("swav", {"prototypes": 9}), batch=4, updates=1)
    with pytest.raises(UserError) as caught:
        one.trainer()(one.initial(), comparisons(8))
    assert str(caught.value) == (
        "plugins.swav.prototypes: 9 clusters cannot share the 8 rows of a batch equally; expected "
        "at most 8, or a larger reward_model.batch"
    )
    fits = kit.make(("swav", {"prototypes": 8}), batch=4, updates=3)
    fits.trainer()(fits.initial(), comparisons(6))  # the epoch's last batch has 4 rows
    assert len(fits.rows) == 3


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (["reward_model.batch=4"], 8),
        (["reward_model.batch=4", "plugins.swav.samples=difference"], 8),
        (["reward_model.batch=8", "reward_model.accumulate=4"], 4),
        (["reward_model.batch=14", "preferences.responses=4"], 8),  # two prompts, six pairs each
        (
            ["reward_model.batch=14", "preferences.responses=4", "plugins.swav.samples=difference"],
            24,
        ),
    ],
)
def test_check_refuses_more_clusters_than_a_batch_can_have_rows(settings, rows):
    listed = "plugins=[{swav: {prototypes: %d}}]"
    check(load_config("toy", [listed % rows, *settings]), "toy")
    with pytest.raises(UserError, match=f"cannot share the {rows} rows of a batch"):
        check(load_config("toy", [listed % (rows + 1), *settings]), "toy")


def test_prototypes_are_trained_and_saved_and_loaded(kit, comparisons, tmp_path):
    one = kit.make("swav", updates=5)
    model = one.trainer()(one.initial(), comparisons(8))
    fresh = kit.make("swav", updates=1, lr=1e-12)
    start = fresh.trainer()(fresh.initial(), comparisons(8)).plugin_modules["swav"].weight
    trained = model.plugin_modules["swav"].weight
    assert (trained - start).abs().max() > 1e-3
    model.save(tmp_path)
    again = RewardModel.load_checkpoint(tmp_path, one.plugins.readers)
    assert torch.equal(again.plugin_modules["swav"].weight, trained)
    idle = kit.make("swav", updates=1, lr=1e-12)
    kept = idle.trainer()(again, comparisons(8))  # training goes on from the saved ones
    assert (kept.plugin_modules["swav"].weight - trained).abs().max() < 1e-9


def test_it_stands_beside_simcse_and_both_are_logged_apart(kit, comparisons):
    one = kit.make("simcse", "swav", updates=2)
    one.trainer()(one.initial(), comparisons(8))
    terms = one.rows[0]["terms"]
    assert set(terms) == {"bradley_terry", "simcse/contrastive", "swav/swapped"}
    assert one.rows[0]["loss"] == pytest.approx(sum(terms.values()), rel=1e-6)
    with pytest.raises(UserError, match=r"needs dropout 0\.1 and plugin 'swav' 0\.2"):
        kit.make("simcse", ("swav", {"dropout": 0.2}))


def test_effect_views_agree_on_their_cluster(kit, comparisons):
    """What SwAV is for: after training, one dropout view predicts the cluster of the other.

    The swapped loss of batches under dropout falls well below that of a uniform prediction,
    2 log K, on which it starts, while the assignments still use every cluster.
    """
    one = kit.make(("swav", {"beta": 1.0, "prototypes": 4}), batch=16, updates=60, lr=3e-3)
    model = one.trainer()(one.initial(), comparisons(64))
    losses = [row["terms"]["swav/swapped"] for row in one.rows]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3]), losses
    batch = one.batch(comparisons(48, seed=9), model)
    with torch.no_grad():
        h = model(batch.input_ids, batch.mask).hidden[0].double().numpy()
    c = model.plugin_modules["swav"].weight.detach().double().numpy()
    best = (unit(h) @ unit(c).T).argmax(1)
    assert np.bincount(best, minlength=4).min() >= 5, np.bincount(best)


SMALL = [
    "plugins=[swav]",
    "iterations=2",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "reward_model.updates=3",
    "reward_model.batch=8",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
]


def test_a_resumed_run_has_the_same_prototypes(tmp_path):
    once = ostinato.run("toy", tmp_path / "once", SMALL)
    ostinato.run("toy", tmp_path / "twice", [*SMALL, "iterations=1"])
    twice = ostinato.run("toy", tmp_path / "twice", SMALL)
    found = [
        load_file(run.directory / "iteration-2/reward_model/plugin_modules.safetensors")
        for run in (once, twice)
    ]
    assert list(found[0]) == ["swav.weight"]
    assert torch.equal(found[0]["swav.weight"], found[1]["swav.weight"])
    rows = [[{**row, "seconds": 0} for row in run.iterations] for run in (once, twice)]
    assert rows[0] == rows[1]
