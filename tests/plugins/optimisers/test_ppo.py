"""PPO against an independent implementation: float64 NumPy, one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.config.errors import UserError
from ostinato.contract.batches import PolicyOutputs, Rollout
from ostinato.contract.plugins import activate


def ppo(**settings):
    return activate([("ppo", settings)], "test")["ppo"].instance


def random_rollout(seed):
    """Ragged responses whose padding holds junk; log-probabilities far enough to be clipped."""
    draw = np.random.default_rng(seed)
    rows, tokens = int(draw.integers(4, 8)), int(draw.integers(4, 9))
    lengths = draw.integers(1, tokens + 1, rows)
    mask = np.arange(tokens) < lengths[:, None]
    names = ("rewards", "logprobs", "ref_logprobs", "values", "advantages", "returns")
    tables = {name: draw.normal(size=(rows, tokens)) for name in names}
    new = tables["logprobs"] + 0.4 * draw.normal(size=(rows, tokens))
    values = tables["values"] + 0.4 * draw.normal(size=(rows, tokens))
    made = {name: torch.tensor(table) for name, table in tables.items()}
    flat = torch.zeros(rows, dtype=torch.float64)
    rollout = Rollout(
        samples=None,
        mask=torch.tensor(mask),
        score=flat,
        kl_coefficient=flat,
        group=flat,
        finished=flat.bool(),
        **made,
    )
    return rollout, torch.tensor(new), torch.tensor(values)


def reference_terms(rollout, new, values, clip, value_clip, coefficient):
    """Schulman et al. 2017, equation 7, and the clipped value loss, by a loop over tokens."""
    new, values = new.detach().numpy(), values.detach().numpy()
    surrogate, error, clipped, count = 0.0, 0.0, 0, 0
    for i, j in np.argwhere(rollout.mask.numpy()):
        old, advantage = float(rollout.logprobs[i, j]), float(rollout.advantages[i, j])
        ratio = np.exp(new[i, j] - old)
        surrogate += min(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
        clipped += abs(ratio - 1) > clip
        target, before = float(rollout.returns[i, j]), float(rollout.values[i, j])
        squared = (values[i, j] - target) ** 2
        if value_clip is not None:
            near = np.clip(values[i, j], before - value_clip, before + value_clip)
            squared = max(squared, (near - target) ** 2)
        error += squared
        count += 1
    return -surrogate / count, coefficient * 0.5 * error / count, clipped / count


SETTINGS = [
    {},
    {"clip": 0.1, "value_clip": None},
    {"clip": 0.4, "value_clip": 0.05, "value_coefficient": 0.7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "no value clip", "other"])
@pytest.mark.parametrize("seed", range(6))
def test_loss_equals_a_loop_over_tokens(settings, seed):
    algorithm = ppo(**settings)
    rollout, new, values = random_rollout(seed)
    found = algorithm.loss(rollout, PolicyOutputs(new, values, None, None), None)
    config = algorithm.config
    policy, value, clipped = reference_terms(
        rollout, new, values, config.clip, config.value_clip, config.value_coefficient
    )
    assert float(found["policy"]) == pytest.approx(policy, rel=1e-9)
    assert float(found["value"]) == pytest.approx(value, rel=1e-9)
    assert float(found["log/clipped"]) == pytest.approx(clipped, rel=1e-6)
    assert 0 < clipped < 1


@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "no value clip", "other"])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_finite_differences_of_that_loop(settings, seed):
    algorithm = ppo(**settings)
    config = algorithm.config
    rollout, new, values = random_rollout(seed)
    new, values = new.requires_grad_(), values.requires_grad_()
    terms = algorithm.loss(rollout, PolicyOutputs(new, values, None, None), None)
    (terms["policy"] + terms["value"]).backward()

    def total(at, which, step):
        tables = [new.detach().clone(), values.detach().clone()]
        tables[which][at] += step
        policy, value, _ = reference_terms(
            rollout, *tables, config.clip, config.value_clip, config.value_coefficient
        )
        return float(policy + value)

    for which, table in enumerate((new, values)):
        for at in np.ndindex(*table.shape):
            slope = (total(at, which, 1e-6) - total(at, which, -1e-6)) / 2e-6
            assert float(table.grad[at]) == pytest.approx(slope, abs=1e-7)
        assert (table.grad[~rollout.mask] == 0).all()


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_advantages_are_gae_whitened_over_real_tokens(whiten, gamma, lam):
    rollout, _, _ = random_rollout(11)
    advantages, returns = ppo(whiten=whiten, gamma=gamma, lam=lam).advantages(rollout, None)
    mask = rollout.mask.numpy()
    wanted = np.zeros(mask.shape)
    for i, row in enumerate(mask):
        following, later = 0.0, 0.0
        for t in reversed(range(row.sum())):
            value = float(rollout.values[i, t])
            later = float(rollout.rewards[i, t]) + gamma * following - value + gamma * lam * later
            wanted[i, t], following = later, value
    targets = np.where(mask, wanted + rollout.values.numpy(), 0.0)
    np.testing.assert_allclose(returns.numpy(), targets, atol=1e-9)
    if whiten:
        real = wanted[mask]
        wanted = np.where(mask, (wanted - real.mean()) / np.sqrt(real.var() + 1e-8), 0.0)
    np.testing.assert_allclose(advantages.numpy(), wanted, atol=1e-7)
    assert (advantages[~rollout.mask] == 0).all()


def test_the_defaults_are_those_of_the_paper():
    config = ppo().config
    assert (config.clip, config.value_clip, config.gamma, config.lam) == (0.2, 0.2, 1.0, 0.95)
    assert config.whiten


def test_at_ratio_1_the_gradient_is_the_policy_gradient():
    rollout, _, _ = random_rollout(4)
    new = rollout.logprobs.clone().requires_grad_()
    terms = ppo().loss(rollout, PolicyOutputs(new, rollout.values, None, None), None)
    terms["policy"].backward()
    wanted = -rollout.advantages.masked_fill(~rollout.mask, 0.0) / rollout.mask.sum()
    torch.testing.assert_close(new.grad, wanted)
    assert float(terms["log/ratio"]) == 1.0
    assert float(terms["log/kl_to_rollout"]) == 0.0


@pytest.mark.parametrize("settings", [{"clip": 0}, {"lam": 1.2}, {"gamma": -0.1}])
def test_settings_out_of_range_are_one_sentence(settings):
    key = next(iter(settings))
    with pytest.raises(UserError, match=rf"^test: plugins\.ppo\.{key}: ") as caught:
        ppo(**settings)
    assert "\n" not in str(caught.value)
