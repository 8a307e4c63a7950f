"""reward_heads: H linear heads on a frozen body (Uncertainty-aware RLHF, section 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.models.reward_model import load_reward

STOPS = {"heads": 6, "body_loss": 0.55, "head_loss": 0.4}


def trained(kit, data, seed=0, updates=60, **settings):
    one = kit.make(("reward_heads", STOPS | settings), batch=16, updates=updates, lr=1e-2)
    fit = one.trainer()
    start = one.initial(seed)
    model = one.plugins.one("train_rm", fit=fit, initial=start, data=data, ctx=one.ctx)
    return one, model


def stages(one):
    return [[r for r in one.rows if r["purpose"] == p] for p in ("reward model", "reward heads")]


@pytest.fixture(scope="module")
def made(kit, comparisons):
    data = comparisons(96)
    return *trained(kit, data), data


def test_the_body_is_frozen_after_its_stage(kit, comparisons, made):
    """The heads' body is stage 1's, bit for bit; stage 1 is the same fit without this plugin."""
    one, model, data = made
    plain = kit.make(batch=16, updates=60, lr=1e-2)
    body = plain.trainer()(plain.initial(), data, stop_loss=STOPS["body_loss"])
    ours, theirs = model.model.base_model.state_dict(), body.model.base_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert model.model.score.weight.shape[0] == 6
    assert len(stages(one)[0]) == len(plain.rows)


def test_each_stage_stops_at_its_loss_a_head(made):
    one, _, _ = made
    first, second = stages(one)
    assert 1 < len(first) < 60
    assert 1 < len(second) < 60
    for rows, stop in ((first, STOPS["body_loss"]), (second, 6 * STOPS["head_loss"])):
        loss = [row["loss"] for row in rows]
        assert np.mean(loss[-10:]) < stop <= np.mean(loss[-11:-1])


def test_the_loss_is_the_sum_over_heads(kit, made):
    """- sum_h mean log s(r_h(chosen) - r_h(rejected)), in float64."""
    one, model, data = made
    batch = one.batch(data, model)
    out = model(batch.input_ids, batch.mask)
    logits = out.logits[0].detach().double().numpy()
    z = logits[batch.pairs[:, 0].numpy()] - logits[batch.pairs[:, 1].numpy()]
    loss = one.plugins.one("preference_loss", batch=batch, outputs=out, ctx=one.ctx)
    np.testing.assert_allclose(loss.detach()[0], np.logaddexp(0, -z).sum(1), rtol=1e-5)


def test_one_pass_gives_all_heads_and_a_checkpoint_keeps_them(made, tmp_path):
    _, model, data = made
    model.save(tmp_path)
    again, calls = load_reward(tmp_path), []
    again.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    part = data[:5]
    scores = again.score_text(part["prompt"], part["chosen"], part["chosen_finished"])
    assert len(calls) == 1
    assert scores.parts.shape == (5, 1, 6)
    ours = model.score_text(part["prompt"], part["chosen"], part["chosen_finished"])
    torch.testing.assert_close(scores.parts, ours.parts, atol=1e-6, rtol=0)


def test_the_first_head_goes_on_from_the_one_of_stage_one(kit, comparisons):
    """UA 4: the other heads are attached beside the original one."""
    one = kit.make(("reward_heads", STOPS), batch=16, updates=1)
    fit, starts = one.trainer(), []

    def spy(model, data, **arguments):
        starts.append(model.model.score.weight.detach())
        starts.append(fit(model, data, **arguments))
        return starts[-1]

    one.plugins.one("train_rm", fit=spy, initial=one.initial(), data=comparisons(16), ctx=one.ctx)
    assert torch.equal(starts[2][:1], starts[1].model.score.weight)
    assert len(starts[2].unique(dim=0)) == 6


def test_members_have_heads_of_their_own(kit, comparisons):
    one = kit.make(("reward_heads", STOPS), batch=16, updates=1)
    data, heads = comparisons(16), []  # of both, the first heads begin alike
    for m in (0, 1):
        fit = one.trainer(member=m)
        model = one.plugins.one("train_rm", fit=fit, initial=one.initial(), data=data, ctx=fit.ctx)
        heads.append(model.model.score.weight)
    assert not torch.isclose(heads[0][1:], heads[1][1:]).any()


@pytest.mark.slow
def test_effect_the_spread_shrinks_with_training(kit, comparisons):
    """UA 4: on a frozen body the heads' problem is convex, so they drift together.

    The spread (mean std over heads, in units of the scores' std) is logged; over three seeds it
    falls each time that the heads train longer.
    """
    spreads = []
    for head_loss in (0.69, 0.5, 0.3):
        found = []
        for seed in range(3):
            one, model = trained(
                kit, comparisons(96, seed=seed), seed, updates=150, head_loss=head_loss, heads=4
            )
            found.append(one.ctx.logged.pop("reward_heads/spread"))
        spreads.append(np.mean(found))
        part = comparisons(96, seed=2)[:]
        parts = model.score_text(part["prompt"], part["chosen"], part["chosen_finished"]).parts
        every = parts[:, 0].double().numpy()
        by_hand = every.std(1, ddof=1).mean() / every.mean(1).std(ddof=1)
        assert found[-1] == pytest.approx(by_hand, rel=1e-4)
    assert spreads[0] > spreads[1] > spreads[2]
