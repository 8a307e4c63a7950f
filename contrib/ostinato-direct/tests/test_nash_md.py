"""Nash-MD: chances to win by hand, the mixture, and the equilibrium that it leads to."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_direct.nash_md import NashMD

import ostinato


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def transformed(plugin, samples, scores, dense, their_scores, **settings):
    """What the hook answers, what it asked for and what it logged."""
    drawn = samples([[1, 2]] * len(scores))
    seen, logged = [], {}

    def sample(policy, prompts, purpose, count, **how):
        seen.append((policy, prompts, count, how))
        return "opponents"

    ctx = SimpleNamespace(policy="policy", reference="reference", sample=sample, log=logged.update)
    ctx.autocast = nullcontext
    theirs = ostinato.Scores(torch.tensor(their_scores, dtype=torch.float64))
    ctx.reward = SimpleNamespace(score_samples=lambda given: theirs)
    zeros = torch.zeros(len(scores), 2)
    given = dict.fromkeys(("parts", "part_std", "finished", "group", "kl_scale"))
    given |= {"logprobs": zeros, "ref_logprobs": zeros, "mask": drawn.mask}
    given |= {"score": torch.tensor(scores, dtype=torch.float64)}
    given |= {"token_score": torch.tensor(dense, dtype=torch.float64)}
    before = ostinato.RewardBatch(samples=drawn, iteration=1, step=0, **given)
    instance = plugin(NashMD, **settings)
    return instance, instance.reward_transform(before, ctx), seen, logged, drawn


def test_the_score_is_the_chance_to_win_less_a_half(plugin, samples):
    dense = [[0.0, 0.0], [0.25, 0.5]]
    made, after, seen, logged, drawn = transformed(
        plugin, samples, [1.0, -0.5], dense, [0.5, 0.25], scale=0.5
    )
    wanted = sigmoid([1.0, 0.0]) - 0.5  # (1 - .5) / .5; (-.5 + .75 - .25) / .5
    assert after.score.tolist() == pytest.approx(wanted.tolist())
    assert after.token_score.count_nonzero() == 0  # those of tokens were counted already
    assert seen == [("policy", drawn, 1, {"shape": made.mix, "reference": "reference"})]
    assert logged["nash_md/wins"] == pytest.approx(wanted.mean() + 0.5)


def test_several_opponents_are_averaged(plugin, samples):
    zeros = [[0.0, 0.0]] * 2
    _, after, seen, _, _ = transformed(
        plugin, samples, [1.0, 0.0], zeros, [0.0, 2.0, -1.0, -3.0], opponents=2
    )
    wanted = [sigmoid([1.0, -1.0]).mean(), sigmoid([1.0, 3.0]).mean()]
    assert after.score.tolist() == pytest.approx([w - 0.5 for w in wanted])
    assert seen[0][2] == 2


@pytest.mark.parametrize("share", [0.0, 0.125, 0.6, 1.0])
def test_the_opponent_is_the_geometric_mixture(plugin, share):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5))
    found = plugin(NashMD, mixture=share).mix(torch.tensor(a), torch.tensor(b)).softmax(-1)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    mixed = p ** (1 - share) * q**share
    assert found.numpy() == pytest.approx(mixed / mixed.sum(-1, keepdims=True))


def test_against_the_mixture_preferences_in_a_circle_come_to_rest(plugin):
    """Section 6 of the paper, tabular: π <- π' exp(η P(y beats π')), π' the mixture, β = η τ.

    Each of three responses beats the next; the reference prefers the first. The policy converges to
    π ∝ π_ref exp(P(y beats π') / τ); in self-play (β = 0) it runs in circles.
    """
    beats = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    ref, eta, tau = np.log([0.6, 0.3, 0.1]), 0.5, 0.2

    def played(share):
        rows, mix = [ref], plugin(NashMD, mixture=share).mix
        for _ in range(400):
            mixed = mix(*(torch.tensor(x[None]) for x in (rows[-1], ref)))[0].softmax(0).numpy()
            step = np.log(mixed) + eta * beats @ mixed
            rows.append(step - np.log(np.exp(step).sum()))
        return np.exp(rows), mixed

    path, mixed = played(eta * tau)
    assert path[-1] == pytest.approx(path[-2], abs=1e-9)
    rest = np.exp(ref + beats @ mixed / tau)
    assert path[-1] == pytest.approx(rest / rest.sum(), abs=1e-8)
    circling, _ = played(0.0)
    assert np.abs(circling[-1] - circling[-40:]).max() > 0.3
