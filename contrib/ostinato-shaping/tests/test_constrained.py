"""Constraints: the multipliers in NumPy, where they end, and other methods beside them."""

import numpy as np
import pytest
import torch
from ostinato_shaping.constrained import Constrained

import ostinato

SQUASHED = {"equal": np.tanh, "at_least": lambda w: 1 / (1 + np.exp(-w))}


@pytest.mark.parametrize("constraint", ["equal", "at_least"])
def test_multipliers_follow_the_gradient_of_the_lagrangian(small, tmp_path, constraint):
    file = tmp_path / "rules.py"
    file.write_text("def count(completions):\n    return [float(len(c)) for c in completions]\n")
    settings = {"thresholds": [0.5, 2.0], "functions": [f"{file}:count"], "lr": 0.4}
    plugin = small.configured(Constrained, constraint=constraint, **settings)
    squash, w = SQUASHED[constraint], np.zeros(2)
    for step in range(4):
        scores = [0.2 * step, 1.0 + step]
        ctx = small.context(step=step, columns=lambda samples: {})
        rewards = small.rewards(scores, [[-1.0, -1.0], [-1.0, -1.0]])
        after = plugin.reward_transform(rewards, ctx)
        lengths = [len(text) for text in rewards.samples.responses]
        proxies = np.stack([scores, lengths], axis=1)
        by = squash(w)
        np.testing.assert_allclose(after.score, proxies @ by, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after.kl_scale, [2 - by.sum()] * 2, rtol=1e-5)
        np.testing.assert_allclose([ctx.logged[f"constrained/multiplier_{i}"] for i in (0, 1)], by)
        violation = proxies.mean(0) - [0.5, 2.0]

        def lagrangian(at, violation=violation):
            return (squash(at) * violation).sum()

        steps = 1e-6 * np.eye(2)
        w = w - 0.4 * np.array([(lagrangian(w + s) - lagrangian(w - s)) / 2e-6 for s in steps])


def test_a_new_run_of_the_optimiser_starts_anew_and_a_refill_does_not_count(small):
    plugin = small.configured(Constrained, thresholds=[0.0])

    def multiplier(**place):
        ctx = small.context(**place)
        plugin.reward_transform(small.rewards([1.0], [[-1.0]]), ctx)
        return ctx.logged["constrained/multiplier_0"]

    first = multiplier(step=0)
    refilled = multiplier(step=0, attempt=1)
    assert first == 0
    assert refilled == multiplier(step=1) < 0
    assert multiplier(step=2) < refilled
    assert multiplier(step=0) == 0


def test_members_are_held_one_by_one_and_tokens_with_their_score(small):
    plugin = small.configured(Constrained, of="parts", constraint="at_least")
    parts = [[[1.0], [3.0]], [[2.0], [5.0]]]
    rewards = small.rewards([9.0, 9.0], [[-1.0, -1.0]] * 2, parts=parts)
    after = plugin.reward_transform(rewards, small.context())
    assert after.score.tolist() == [2.0, 3.5]  # half of each
    assert after.kl_scale.tolist() == [1.0, 1.0]
    plugin = small.configured(Constrained, constraint="at_least")
    rewards = small.rewards([1.0, 2.0], [[-1.0, -1.0]] * 2, token_score=[[4.0, 0.0], [0.0, 6.0]])
    ctx = small.context()
    after = plugin.reward_transform(rewards, ctx)
    assert after.score.tolist() == [0.5, 1.0]
    assert after.token_score.tolist() == [[2.0, 0.0], [0.0, 3.0]]
    assert ctx.logged["constrained/mean_0"] == 6.5  # whole responses


def test_a_reward_is_held_where_it_is_told_to_be(small):
    """A policy y ~ N(m, 1) with reward y and reference N(0, 1), whose KL is m^2 / 2."""
    for constraint, threshold in (("equal", 0.7), ("at_least", 0.7)):
        plugin = small.configured(Constrained, thresholds=[threshold], constraint=constraint)
        m, kl = 0.0, 0.3
        for step in range(3000):
            rewards = small.rewards([m + 1.0, m - 1.0], [[-1.0], [-1.0]])
            after = plugin.reward_transform(rewards, small.context(step=step))
            slope = float(after.score[0] - after.score[1]) / 2  # of the reward in m
            m += 0.02 * (slope - kl * float(after.kl_scale[0]) * m)
        assert m == pytest.approx(threshold, abs=0.02)


def test_par_over_the_worst_case_and_constraints_run_together(toy, tmp_path):
    file = tmp_path / "rules.py"
    file.write_text("def short(completions):\n    return [-len(c) / 40 for c in completions]\n")
    settings = f"{{thresholds: [0.2, -0.5], functions: ['{file}:short']}}"
    listed = f"worst_case, {{par: {{references: 2}}}}, {{constrained: {settings}}}"
    run = toy(listed, "iterations=2")
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert len(rows) == 4
    for row in rows:
        assert row["actions"]["constrained.reward_transform"] > 0
    assert [row["constrained/multiplier_0"] for row in rows[::2]] == [0, 0]
    assert all(row["constrained/multiplier_0"] != 0 for row in rows[1::2])
    last = [row for row in run.metrics if row.get("stage") == "combined"][-1]
    assert last["actions"]["worst_case.combine_rm"] > 0
    assert last["actions"]["par.wrap_reward"] > 0


def test_multipliers_come_back(small):
    plugin = small.configured(Constrained, thresholds=[0.0])
    plugin.reward_transform(small.rewards([1.0], [[-1.0]]), small.context())
    other = small.configured(Constrained, thresholds=[0.0])
    other.load_state_dict(plugin.state_dict())
    ctx = small.context(step=1)
    other.reward_transform(small.rewards([1.0], [[-1.0]]), ctx)
    assert ctx.logged["constrained/multiplier_0"] == pytest.approx(np.tanh(-0.1))


def test_another_number_of_parts_is_refused(small):
    plugin = small.configured(Constrained, of="parts")
    plugin.reward_transform(small.rewards([1.0], [[-1.0]]), small.context())
    more = small.rewards([1.0], [[-1.0]], parts=[[[1.0], [2.0]]])
    with pytest.raises(ostinato.UserError, match="2 rewards, expected 1"):
        plugin.reward_transform(more, small.context(step=1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{thresholds: [1, 2]}", "2 thresholds for 1 reward and 0 functions"),
        ("{functions: ['nowhere.py:f'], thresholds: [1, 2]}", "no file"),
        ("{constraint: above}", "plugins.constrained.constraint"),
    ],
)
def test_a_wrong_setting_is_one_sentence(toy, settings, said):
    with pytest.raises(ostinato.UserError, match=said) as caught:
        toy(f"{{constrained: {settings}}}")
    assert "\n" not in str(caught.value)


def test_what_is_given_is_left_alone(small):
    rewards = small.rewards([1.0, 2.0], [[-1.0, -1.0]] * 2)
    before = rewards.score.clone(), rewards.kl_scale.clone()
    small.configured(Constrained).reward_transform(rewards, small.context())
    assert torch.equal(rewards.score, before[0])
    assert torch.equal(rewards.kl_scale, before[1])
