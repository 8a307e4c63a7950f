"""Online DPO and IPO against loops in NumPy, and what sets them apart."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from ostinato_direct.online_dpo import OnlineDPO
from ostinato_direct.online_ipo import OnlineIPO

NEW = [[-1.0, -0.5], [-0.2, -2.0, -0.7], [-1.5], [-0.3, -0.9, -1.1, -0.4], [-2.0], [-1.0]]
REF = [[-1.2, -0.4], [-0.6, -1.0, -0.9], [-1.9], [-0.5, -0.5, -1.5, -0.1], [-1.0], [-1.0]]
SCORE = [1.0, -0.5, 2.0, 0.25, 3.0, 3.0]
GROUP = [0, 1, 0, 1, 2, 2]  # row 2 beats 0, 3 beats 1, and 4 and 5 are equals


def margin(better, worse):
    def ratio(i):
        return sum(NEW[i]) - sum(REF[i])

    return ratio(better) - ratio(worse)


def dpo(m, beta=0.1):
    return -math.log(1 / (1 + math.exp(-beta * m)))


def ipo(m, tau=0.1):
    return (m - 1 / (2 * tau)) ** 2


CASES = [
    (OnlineDPO, {}, dpo),
    (OnlineDPO, {"beta": 2.0}, lambda m: dpo(m, 2.0)),
    (OnlineIPO, {}, ipo),
    (OnlineIPO, {"tau": 0.5}, lambda m: ipo(m, 0.5)),
]


@pytest.fixture
def batch(rollout):
    made = rollout(NEW, SCORE, GROUP)
    ref = torch.full_like(made.logprobs, -9.0)  # on padding, where nothing may read it
    for i, row in enumerate(REF):
        ref[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return replace(made, ref_logprobs=ref)


@pytest.mark.parametrize(("made", "settings", "of_margin"), CASES)
def test_the_loss_is_that_of_a_loop_over_pairs(plugin, batch, outputs, made, settings, of_margin):
    algorithm = plugin(made, **settings)
    advantages, returns = algorithm.advantages(batch, None)
    assert returns.count_nonzero() == 0
    assert advantages[:, 0].tolist() == [-1, -1, 1, 1, 0, 0]
    assert advantages[3].tolist() == [1, 1, 1, 1]
    assert advantages[2].tolist() == [1, 0, 0, 0]
    found = algorithm.loss(replace(batch, advantages=advantages), outputs(NEW), None)
    wanted = [margin(2, 0), margin(3, 1)]
    assert found["policy"].item() == pytest.approx(sum(map(of_margin, wanted)) / 3)  # of 3 prompts
    assert found["log/margin"].item() == pytest.approx(sum(wanted) / 2)
    assert found["log/accuracy"].item() == sum(m > 0 for m in wanted) / 2
    assert found["log/pairs"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("made", [OnlineDPO, OnlineIPO])
def test_the_better_response_rises_and_equals_stay(plugin, batch, outputs, made):
    algorithm = plugin(made)
    batch = replace(batch, advantages=algorithm.advantages(batch, None)[0])
    found = outputs(NEW)
    algorithm.loss(batch, found, None)["policy"].backward()
    pull = found.logprobs.grad.sign()
    assert pull[:, 0].tolist() == [1, 1, -1, -1, 0, 0]
    assert pull[~batch.mask].count_nonzero() == 0


@pytest.mark.parametrize("made", [OnlineDPO, OnlineIPO])
def test_parts_of_whole_pairs_add_up_and_a_torn_pair_counts_nothing(plugin, batch, outputs, made):
    algorithm = plugin(made)
    batch = replace(batch, advantages=algorithm.advantages(batch, None)[0])
    whole = algorithm.loss(batch, outputs(NEW), None)["policy"].item()

    def part(rows):
        found = outputs([NEW[i] for i in rows])
        return algorithm.loss(batch.rows(torch.tensor(rows)), found, None)

    parts = [part([0, 2])["policy"].item(), part([1, 3, 4, 5])["policy"].item()]
    assert parts[0] / 3 + 2 * parts[1] / 3 == pytest.approx(whole)
    torn = part([0, 1, 4, 5])  # the better halves of both pairs were dropped
    assert torn["policy"].item() == 0
    assert torn["policy"].requires_grad
    assert torn["log/pairs"].item() == 0


def test_a_certain_preference_bounds_the_margin_of_ipo_and_not_of_dpo(plugin, rollout, outputs):
    """One prompt, two responses, the first always preferred: gradient descent on two logits."""

    def trained(algorithm, steps):
        logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        batch = rollout([[math.log(0.5)]] * 2, [1.0, 0.0], [0, 0])
        batch = replace(batch, advantages=algorithm.advantages(batch, None)[0])
        for _ in range(steps):
            new = outputs([[0.0]] * 2)
            new.logprobs = logits.log_softmax(0)[:, None]
            (gradient,) = torch.autograd.grad(algorithm.loss(batch, new, None)["policy"], logits)
            with torch.no_grad():
                logits -= 0.1 * gradient
        return float((logits[0] - logits[1]).detach())

    assert trained(plugin(OnlineIPO, tau=0.25), 300) == pytest.approx(2)  # 1 / (2 τ)
    assert trained(plugin(OnlineIPO, tau=0.25), 600) == pytest.approx(2)
    short, long = (trained(plugin(OnlineDPO, beta=1.0), steps) for steps in (300, 600))
    assert long - 0.5 > short > 2


def test_online_ipo_comes_to_rest_at_the_equilibrium(plugin, rollout, outputs):
    """Three responses, all pairs enumerated by their chances: π ∝ π_ref exp(P(y beats π) / τ).

    That is the equilibrium of the regularised game (Calandriello et al. 2024).
    """
    tau, ref = 0.5, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    algorithm = plugin(OnlineIPO, tau=tau)
    logits = ref.clone().requires_grad_()
    for _ in range(400):
        total = torch.zeros(3, dtype=torch.float64)
        for i, j in product(range(3), repeat=2):
            logp = logits.log_softmax(0)
            batch = rollout([[0.0]] * 2, [float(i), float(j)], [0, 0])
            batch = replace(batch, ref_logprobs=ref[[i, j]][:, None])
            batch = replace(batch, advantages=algorithm.advantages(batch, None)[0])
            new = outputs([[0.0]] * 2)
            new.logprobs = logp[[i, j]][:, None]
            (step,) = torch.autograd.grad(algorithm.loss(batch, new, None)["policy"], logits)
            total += (logp[i] + logp[j]).detach().exp() * step
        with torch.no_grad():
            logits -= 0.1 * total
    policy = logits.detach().softmax(0).numpy()
    beats = np.array([[0.5, 0, 0], [1, 0.5, 0], [1, 1, 0.5]])
    rest = ref.exp().numpy() * np.exp(beats @ policy / tau)
    assert policy == pytest.approx(rest / rest.sum(), abs=1e-4)
