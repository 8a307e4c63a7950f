"""metarm: the displacement that tells the current policy's responses apart (MetaRM)."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from ostinato.reward_training import calibrated
from ostinato_plugins.meta.metarm import difference_objective


def meta_rows(kit, count, seed, responses=4, letters="aeeffgghh"):
    """Unlabelled responses of another distribution than the comparisons'."""
    draw, encode = random.Random(seed), kit.make().trainer().policy_tokenizer.encode
    rows = []
    for _ in range(count):
        prompt = "".join(draw.choices("xyz", k=3))
        words = ["".join(draw.choices(letters, k=6)) for _ in range(responses)]
        row = {"prompt": prompt, "prompt_ids": encode(prompt)[:-1], "responses": words}
        row["response_ids"] = [encode(w) for w in words]
        rows.append(row | {"finished": [True] * responses})
    return Dataset.from_list(rows)


def objective(scores):
    """2 / k^2 sum_{i<j} s(|r_i - r_j|), mean over prompts, with loops in float64 (eq 11)."""
    total, k = 0.0, scores.shape[1]
    for row in scores:
        for i in range(k):
            for j in range(i + 1, k):
                total += 2 / k**2 / (1 + np.exp(-abs(row[i] - row[j])))
    return total / len(scores)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_objective_against_loops(k):
    scores = np.random.default_rng(k).normal(size=(4, k))
    made = difference_objective(torch.tensor(scores))
    assert made.item() == pytest.approx(objective(scores), rel=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradient_is_that_at_theta_plus_eta_grad_j(kit, comparisons, monkeypatch, accumulate):
    """Equations 12 to 14 by hand, in float64: J by finite differences, L in closed form.

    On a frozen body r = w.h, so that both are functions of the head w alone.
    """
    eta, data, meta = 2.0, comparisons(8), meta_rows(kit, 4, 0)
    one = kit.make(("metarm", {"eta": eta}), updates=1, accumulate=accumulate, max_grad_norm=1e9)
    model, seen = one.initial(), {}

    def step(optimiser, *_):
        (head,) = optimiser.param_groups[0]["params"]
        seen.update(gradient=head.grad.double().numpy()[0].copy(), theta=head.detach().clone())

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    one.trainer(meta)(model, data, train="head")

    def features(prompts, words):
        ids, mask, _ = model.joined(*model.encode(prompts, words, [True] * len(words)))
        with torch.no_grad():
            return model(ids, mask).hidden[0].double().numpy()

    h = np.stack([features([r["prompt"]] * 4, r["responses"]) for r in meta])  # (prompts, k, D)
    d = features(data["prompt"][:], data["chosen"][:])
    d = d - features(data["prompt"][:], data["rejected"][:])
    w = model.model.score.weight.detach().double().numpy()[0]
    ascent = np.array(
        [(objective(h @ (w + e)) - objective(h @ (w - e))) / 2e-6 for e in 1e-6 * np.eye(len(w))]
    )
    moved = w + eta * ascent
    expected = -(d / (1 + np.exp(d @ moved))[:, None]).mean(0)
    np.testing.assert_allclose(seen["gradient"], expected, atol=2e-6)
    plain = -(d / (1 + np.exp(d @ w))[:, None]).mean(0)
    assert np.abs(expected - plain).max() > 1e-4
    assert torch.equal(seen["theta"], model.model.score.weight)  # the step is taken from theta
    action = one.rows[0]["actions"]["metarm.meta_update"]
    assert action == pytest.approx(eta * np.linalg.norm(ascent), rel=1e-4)


def test_every_update_draws_prompts_anew(kit, comparisons):
    one = kit.make("metarm", updates=3)
    fit = one.trainer(meta_rows(kit, 32, 0))
    drawn = [fit._meta_rows(fit.ctx.at(step=s))["responses"] for s in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert [len(d) for d in drawn] == [4] * 3  # half as many prompts as the batch has comparisons


def test_it_asks_for_its_responses(kit):
    assert kit.make(("metarm", {"responses": 6})).plugins.need("meta_responses") == 6


@pytest.mark.slow
def test_effect_scores_differ_more_on_the_policy_s_own_responses(kit, comparisons):
    """Secrets of RLHF II, figure 16: MetaRM's scores differ more under a new distribution.

    The policy's responses are of other letters than the pairs. The mean |r_i - r_j| of calibrated
    scores on such responses to held-out prompts, over three seeds, grows by more than a third. In a
    world this small it costs accuracy on the old distribution (measured: .98 to .82), and with a
    milder shift of letters there was no gain: the paper's claim of no loss is not shown here.
    """
    spread = {}
    for plugins in ((), (("metarm", {"eta": 0.1}),)):
        found = []
        for seed in range(3):
            one = kit.make(*plugins, batch=16, updates=40)
            data, meta = comparisons(64, seed=seed), meta_rows(kit, 64, seed + 100)
            fit = one.trainer(meta if plugins else None)
            model = calibrated(fit(one.initial(seed), data), data, fit.policy_tokenizer)
            held = meta_rows(kit, 48, seed + 200)
            scores = torch.stack(
                [model.score([r["prompt"]] * 4, r["responses"], r["finished"]) for r in held]
            )
            found.append((scores[:, :, None] - scores[:, None]).abs().sum().item() / 12 / 48)
        spread[len(plugins)] = np.mean(found)
    assert spread[1] > 1.33 * spread[0], spread
