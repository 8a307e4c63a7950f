"""XPO by hand, and its optimism on a policy over three responses, all of them enumerated."""

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ostinato_direct.xpo import XPO

import ostinato


@pytest.fixture
def ctx(samples, table):
    """(the reference's responses, its log-probabilities, rewards) -> a context that draws them."""

    def make(drawn, ref, rewards, attempt=0):
        rewards = torch.tensor(rewards, dtype=torch.float64)

        def score_samples(given):
            return ostinato.Scores(rewards[given.response_ids[:, 0]])

        unfinished = SimpleNamespace(mode="subtract", penalty=1.0)
        return SimpleNamespace(
            sample=lambda policy, prompts, purpose: samples([[token] for token in drawn]),
            reference=table(ref),
            reward=SimpleNamespace(score_samples=score_samples),
            config=SimpleNamespace(rl=SimpleNamespace(unfinished=unfinished)),
            autocast=nullcontext,
            attempt=attempt,
            log=lambda **values: None,
        )

    return make


def tokens(rollout, ids, logprobs, ref, group):
    """A rollout of responses of one token, these."""
    batch = rollout([[x] for x in logprobs], [0.0] * len(ids), group)
    batch.samples.response_ids = torch.tensor(ids)[:, None]
    return replace(batch, ref_logprobs=torch.tensor(ref, dtype=torch.float64)[:, None])


def test_both_terms_by_hand(plugin, rollout, outputs, table, ctx):
    """Rewards 0, 1, 2 of three responses: the first row wins, the second loses, the third ties."""
    ref = [math.log(p) for p in (0.5, 0.3, 0.2)]
    new = [math.log(p) for p in (0.4, 0.35, 0.25)]
    here = ctx([0, 2, 1], ref, [0.0, 1.0, 2.0])
    algorithm = plugin(XPO, alpha=0.01, beta=0.5)
    ids = [2, 1, 1]
    batch = tokens(rollout, ids, [0.0] * 3, [ref[i] for i in ids], [4, 5, 6])
    advantages, _ = algorithm.advantages(batch, here)
    assert advantages[:, 0].tolist() == [1, -1, 0]
    batch = replace(batch, advantages=advantages)
    found = algorithm.loss(batch, outputs([[new[i]] for i in ids], table(new)), here)
    ratio = [n - r for n, r in zip(new, ref, strict=True)]
    losses = [
        math.log(1 + math.exp(-0.5 * (ratio[2] - ratio[0]))),
        math.log(1 + math.exp(-0.5 * (ratio[2] - ratio[1]))),
    ]
    assert found["policy"].item() == pytest.approx(sum(losses) / 3)
    assert found["optimism"].item() == pytest.approx(0.01 * (new[0] + new[2] + new[1]) / 3)
    # the rows of a minibatch find their own opponents
    part = algorithm.loss(
        batch.rows(torch.tensor([1, 0])), outputs([[new[1]], [new[2]]], table(new)), here
    )
    assert part["policy"].item() == pytest.approx(sum(losses) / 2)
    assert part["optimism"].item() == pytest.approx(0.01 * (new[0] + new[2]) / 2)


def test_after_a_refill_all_draws_find_their_opponents(plugin, rollout, outputs, table, ctx):
    ref = new = [math.log(p) for p in (0.5, 0.3, 0.2)]
    algorithm = plugin(XPO, alpha=1.0)
    for attempt, drawn in enumerate((0, 1)):
        batch = tokens(rollout, [2], [0.0], [ref[2]], [attempt])
        advantages, _ = algorithm.advantages(batch, ctx([drawn], ref, [0.0, 1.0, 2.0], attempt))
    batch = tokens(rollout, [2, 2], [0.0] * 2, [ref[2]] * 2, [1, 0])
    batch = replace(batch, advantages=advantages.repeat(2, 1))
    here = SimpleNamespace(autocast=nullcontext)
    found = algorithm.loss(batch, outputs([[new[2]]] * 2, table(new)), here)
    assert found["optimism"].item() == pytest.approx((new[0] + new[1]) / 2)


def test_unfinished_responses_lose_what_the_run_takes_off(plugin, rollout, ctx):
    here = ctx([0], [0.0, 0.0], [0.5, 1.0])
    batch = tokens(rollout, [1], [0.0], [0.0], [0])
    assert plugin(XPO).advantages(batch, here)[0].item() == 1
    batch.samples.finished = torch.tensor([False])
    assert plugin(XPO).advantages(batch, here)[0].item() == -1
    here.config.rl.unfinished = SimpleNamespace(mode="replace", penalty=0.75)
    assert plugin(XPO).advantages(batch, here)[0].item() == 1


def test_optimism_goes_where_the_data_has_not_been(plugin, rollout, outputs, table, ctx):
    """Two of three responses win in turn; of the third nothing is known.

    DPO keeps the odds of the two and leaves the third as it is; optimism moves weight there.
    """
    ref = [math.log(p) for p in (0.6, 0.3, 0.1)]

    def trained(alpha):
        algorithm = plugin(XPO, alpha=alpha, beta=1.0)
        logits = torch.tensor(ref, dtype=torch.float64, requires_grad=True)
        batch = tokens(rollout, [1, 0], [0.0] * 2, [ref[1], ref[0]], [0, 1])
        here = ctx([0, 1], ref, [0.0, 1.0, 0.0])
        algorithm.advantages(batch, here)  # draws the opponents
        batch = replace(batch, advantages=torch.ones(2, 1, dtype=torch.float64))
        for _ in range(300):
            logp = logits.log_softmax(0)
            new = outputs([[0.0]] * 2, table(logp))
            new.logprobs = logp[[1, 0]][:, None]
            terms = algorithm.loss(batch, new, here)
            (step,) = torch.autograd.grad(terms["policy"] + terms["optimism"], logits)
            with torch.no_grad():
                logits -= step
        return logits.detach().softmax(0).tolist()

    assert trained(0.0) == pytest.approx([0.6, 0.3, 0.1])
    assert trained(0.05)[2] > 0.5
