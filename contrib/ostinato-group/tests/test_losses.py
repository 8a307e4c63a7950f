"""Losses and advantages against loops over single tokens in NumPy, in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ostinato_group.cispo import CISPO
from ostinato_group.dapo import DAPO
from ostinato_group.dr_grpo import DrGRPO
from ostinato_group.gspo import GSPO

OLD = [[-1.0, -0.5], [-0.2, -2.0, -0.7], [-1.5], [-0.3, -0.9, -1.1, -0.4]]
NEW = [[-0.6, -0.6], [-0.3, -1.2, -0.7], [-2.1], [-0.2, -1.5, -0.6, -0.9]]
REF = [[-1.2, -0.4], [-0.6, -1.0, -0.9], [-1.4], [-0.5, -0.5, -1.5, -0.1]]
SCORE = [1.0, -0.5, 2.0, 0.25]
BETA = [0.1, 0.2, 0.3, 0.4]


def advantage(standardised):
    """Two groups: rows 0 and 2, rows 1 and 3."""
    found = np.zeros(4)
    for rows in ([0, 2], [1, 3]):
        r = np.array([SCORE[i] for i in rows])
        found[rows] = (r - r.mean()) / ((r.std(ddof=1) + 1e-4) if standardised else 1.0)
    return found


def clipped(ratio, a, low, high):
    return min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)


def kl(new, ref):
    return math.exp(ref - new) - 1 - (ref - new)


def dr_grpo():
    gain = penalty = 0.0
    for i, a in enumerate(advantage(False)):
        for new, old, ref in zip(NEW[i], OLD[i], REF[i], strict=True):
            gain += clipped(math.exp(new - old), a, 0.2, 0.2) / 4 / 10
            penalty += BETA[i] * kl(new, ref) / 4 / 10
    return -gain, penalty


def dapo():
    gain = penalty = 0.0
    for i, a in enumerate(advantage(True)):
        for new, old, ref in zip(NEW[i], OLD[i], REF[i], strict=True):
            gain += clipped(math.exp(new - old), a, 0.2, 0.28) / 10  # 2 + 3 + 1 + 4 tokens
            penalty += BETA[i] * kl(new, ref) / 10
    return -gain, penalty


def gspo(low=3e-4, high=4e-4):
    gain = penalty = 0.0
    for i, a in enumerate(advantage(True)):
        product = np.prod([math.exp(n) / math.exp(o) for n, o in zip(NEW[i], OLD[i], strict=True)])
        gain += clipped(product ** (1 / len(NEW[i])), a, low, high) / 4
        each = [kl(new, ref) for new, ref in zip(NEW[i], REF[i], strict=True)]
        penalty += BETA[i] * np.mean(each) / 4
    return -gain, penalty


def cispo(high=0.3):
    gain = penalty = 0.0
    for i, a in enumerate(advantage(True)):
        for new, old, ref in zip(NEW[i], OLD[i], REF[i], strict=True):
            gain += min(math.exp(new - old), 1 + high) * a * new / 10
            penalty += BETA[i] * kl(new, ref) / 10
    return -gain, penalty


CASES = [
    (DrGRPO, {}, dr_grpo()),
    (DAPO, {}, dapo()),
    (GSPO, {}, gspo()),
    (GSPO, {"clip_low": 0.3, "clip_high": 0.2}, gspo(0.3, 0.2)),
    (CISPO, {"clip_high": 0.3}, cispo()),
]


@pytest.fixture
def batch(rollout):
    beta = torch.tensor(BETA, dtype=torch.float64)
    made = rollout(OLD, SCORE, [0, 1, 0, 1], kl_coefficient=beta)
    ref = torch.zeros_like(made.logprobs)
    for i, row in enumerate(REF):
        ref[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return replace(made, ref_logprobs=ref)


@pytest.mark.parametrize(("made", "settings", "expected"), CASES)
def test_the_loss_is_that_of_a_loop_over_tokens(
    plugin, batch, outputs, ctx, made, settings, expected
):
    algorithm = plugin(made, responses=2, **settings)
    advantages, returns = algorithm.advantages(batch, ctx)
    assert returns.count_nonzero() == 0
    batch = replace(batch, advantages=advantages)
    terms = algorithm.loss(batch, outputs(NEW), ctx)
    policy, penalty = expected
    assert terms["policy"].item() == pytest.approx(policy, abs=1e-12)
    assert terms["kl"].item() == pytest.approx(penalty, abs=1e-12)


@pytest.mark.parametrize(("made", "settings", "expected"), CASES)
def test_advantages_stand_at_every_real_token(plugin, batch, ctx, made, settings, expected):
    found, _ = plugin(made, responses=2, **settings).advantages(batch, ctx)
    wanted = advantage(made is not DrGRPO)
    for i, row in enumerate(OLD):
        assert found[i, : len(row)].tolist() == pytest.approx([wanted[i]] * len(row))
        assert found[i, len(row) :].count_nonzero() == 0


@pytest.mark.parametrize(("made", "settings", "expected"), CASES)
def test_padding_reaches_no_loss_and_no_gradient(
    plugin, batch, outputs, ctx, made, settings, expected
):
    algorithm = plugin(made, responses=2, **settings)
    batch = replace(batch, advantages=algorithm.advantages(batch, ctx)[0])
    found = outputs(NEW)
    with torch.no_grad():
        found.logprobs[~batch.mask] = -50.0
    terms = algorithm.loss(batch, found, ctx)
    assert terms["policy"].item() == pytest.approx(expected[0], abs=1e-12)
    (terms["policy"] + terms["kl"]).backward()
    assert found.logprobs.grad[~batch.mask].count_nonzero() == 0
    assert found.logprobs.grad[batch.mask].count_nonzero() > 0


@pytest.mark.parametrize("made", [DrGRPO, DAPO, GSPO, CISPO])
def test_a_loss_of_parts_is_the_loss_of_the_whole(plugin, batch, outputs, ctx, made):
    """The engine weighs micro-batches by their tokens or responses, as ``mean_over`` says."""
    algorithm = plugin(made, responses=2)
    batch = replace(batch, advantages=algorithm.advantages(batch, ctx)[0])
    whole = algorithm.loss(batch, outputs(NEW), ctx)
    parts = dict.fromkeys(("policy", "kl"), 0.0)
    for rows in ([0, 3], [1, 2]):
        part = batch.rows(torch.tensor(rows))
        found = algorithm.loss(part, outputs([NEW[i] for i in rows]), ctx)
        by_tokens = algorithm.mean_over == "tokens"
        share = part.mask.sum().item() / batch.mask.sum().item() if by_tokens else 0.5
        for key in parts:
            parts[key] += share * found[key].item()
    assert parts["policy"] == pytest.approx(whole["policy"].item(), abs=1e-12)
    assert parts["kl"] == pytest.approx(whole["kl"].item(), abs=1e-12)


def test_what_is_clipped_is_counted(plugin, rollout, outputs, ctx):
    up, down = math.log(1.29), math.log(0.79)
    batch = rollout([[0.0], [0.0]], [1.0, 0.0], [0, 0])
    algorithm = plugin(DAPO, responses=2)
    batch = replace(batch, advantages=algorithm.advantages(batch, ctx)[0])
    assert algorithm.loss(batch, outputs([[up], [0.0]]), ctx)["log/clipped"].item() == 0.5
    assert algorithm.loss(batch, outputs([[down], [0.0]]), ctx)["log/clipped"].item() == 0.0
    assert algorithm.loss(batch, outputs([[up], [down]]), ctx)["log/clipped"].item() == 1.0
