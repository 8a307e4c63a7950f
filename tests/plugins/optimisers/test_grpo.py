"""GRPO against NumPy; what each KL estimator does as a term of its loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.config.errors import UserError
from rollout_kit import (
    SENTENCES,
    algorithm,
    expected_gradient,
    logprobs,
    parameters,
    random_rollout,
    tables,
    terms,
    total,
    with_advantages,
)


@pytest.mark.parametrize("responses", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_standardised_in_the_group(responses, seed):
    rollout, _ = random_rollout(seed, responses)
    found, _ = algorithm("grpo", responses=responses).advantages(rollout, None)
    scores, group = rollout.score.numpy(), rollout.group.numpy()
    for i, real in enumerate(rollout.mask.numpy()):
        mine = scores[group == group[i]]
        assert len(mine) == responses
        wanted = (scores[i] - mine.mean()) / (mine.std(ddof=1) + 1e-4)
        np.testing.assert_allclose(found[i].numpy(), np.where(real, wanted, 0.0), atol=1e-12)


def test_equal_scores_of_a_group_teach_nothing():
    rollout, _ = random_rollout(0, 4)
    rollout.score = torch.ones_like(rollout.score)
    assert (algorithm("grpo").advantages(rollout, None)[0] == 0).all()


def reference_loss(rollout, new, clip, estimator, mean):
    """Shao et al. 2024, equations 3 and 4, one token at a time."""
    new = new.detach().numpy()
    lines = []
    for i, real in enumerate(rollout.mask.numpy()):
        line = []
        for t in np.flatnonzero(real):
            advantage = float(rollout.advantages[i, t])
            ratio = np.exp(new[i, t] - float(rollout.logprobs[i, t]))
            gain = min(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
            d = new[i, t] - float(rollout.ref_logprobs[i, t])
            kl = {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) + d - 1}[estimator]
            line.append((-gain, float(rollout.kl_coefficient[i]) * kl, kl))
        lines.append(np.array(line))
    if mean == "tokens":
        return np.concatenate(lines).mean(0)
    return np.mean([line.mean(0) for line in lines], axis=0)


SETTINGS = [
    {},
    {"mean": "tokens", "estimator": "k1"},
    {"mean": "tokens", "clip": 0.05},
    {"estimator": "k2", "clip": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_a_loop_over_tokens(settings, seed):
    made = algorithm("grpo", responses=2, **settings)
    config = made.config
    rollout, new = random_rollout(seed, 2)
    rollout = with_advantages(made, rollout)
    found = terms(made, rollout, new)
    wanted = reference_loss(rollout, new, config.clip, config.estimator, config.mean)
    assert float(found["policy"]) == pytest.approx(wanted[0], rel=1e-9)
    assert float(found["kl"]) == pytest.approx(wanted[1], rel=1e-9)
    assert float(found["log/kl"]) == pytest.approx(wanted[2], rel=1e-9)
    assert made.mean_over == config.mean


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_equal_finite_differences_of_that_loop(settings):
    made = algorithm("grpo", responses=2, **settings)
    config = made.config
    rollout, new = random_rollout(1, 2)
    rollout, new = with_advantages(made, rollout), new.requires_grad_()
    total(terms(made, rollout, new)).backward()

    def value(at, step):
        moved = new.detach().clone()
        moved[at] += step
        policy, kl, _ = reference_loss(rollout, moved, config.clip, config.estimator, config.mean)
        return policy + kl

    for at in np.ndindex(*new.shape):
        slope = (value(at, 1e-6) - value(at, -1e-6)) / 2e-6
        assert float(new.grad[at]) == pytest.approx(slope, abs=1e-7)
    assert (new.grad[~rollout.mask] == 0).all()


def direct_kl(theta, reference, reverse):
    """Gradient of the next-token KLs at each prefix, the chance of the prefixes held fixed."""
    theta = theta.clone().requires_grad_()
    whole = torch.zeros((), dtype=torch.float64)
    (first, second), (ref_first, ref_second) = tables(theta), tables(reference)
    chances = first.detach().exp()
    places = [(1.0, first, ref_first), *zip(chances, second, ref_second, strict=True)]
    for chance, p, q in places:
        p, q = (q, p) if reverse else (p, q)
        whole = whole + chance * (p.exp() * (p - q)).sum()
    return torch.autograd.grad(whole, theta)[0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_what_each_estimator_is_the_gradient_of(estimator):
    """k2: of the KL; k3: of the KL the other way round; k1: of nothing (docs/concepts)."""
    theta, reference = parameters(0), parameters(1)
    made = algorithm("grpo", responses=2, estimator=estimator)
    found = expected_gradient(made, theta, reference, lambda sentence: 1.0, beta=1.0)
    wanted = {
        "k1": torch.zeros_like(theta),
        "k2": direct_kl(theta, reference, reverse=False),
        "k3": direct_kl(theta, reference, reverse=True),
    }[estimator]
    torch.testing.assert_close(found, wanted / 2, atol=1e-10, rtol=0)  # a mean over two tokens
    gap = direct_kl(theta, reference, False) - direct_kl(theta, reference, True)
    assert gap.abs().max() > 0.1


def test_the_gradient_raises_what_scores_above_its_group():
    """Against the sum over all pairs of responses, written down term by term."""
    theta, reference = parameters(0), parameters(1)

    def score(sentence):
        return float(sentence[0] - sentence[1])

    found = expected_gradient(algorithm("grpo", responses=2), theta, reference, score, beta=0.0)
    moved = theta.clone().requires_grad_()
    logs = logprobs(moved, SENTENCES).sum(1)
    chance, whole = logs.detach().exp(), torch.zeros((), dtype=torch.float64)
    for i, a in enumerate(SENTENCES):
        for j, b in enumerate(SENTENCES):
            gap = score(a) - score(b)  # two scores have ddof-1 std |gap| / sqrt 2
            advantage = (gap / 2) / (abs(gap) / 2**0.5 + 1e-4)
            whole = whole - chance[i] * chance[j] * advantage * logs[i] / 2
    wanted = torch.autograd.grad(whole, moved)[0]
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "settings", [{"responses": 1}, {"clip": 0}, {"estimator": "exact"}, {"mean": "sum"}], ids=str
)
def test_settings_out_of_range_are_one_sentence(settings):
    key = next(iter(settings))
    with pytest.raises(UserError, match=rf"^test: plugins\.grpo\.{key}: ") as caught:
        algorithm("grpo", **settings)
    assert "\n" not in str(caught.value)
