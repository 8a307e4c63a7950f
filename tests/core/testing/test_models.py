"""Tiny models, the fake reward, the context."""

from __future__ import annotations

import pytest
import torch

from ostinato.testing import FakeReward, context, samples, tiny_policy, tiny_reward_model, tokenizer
from ostinato.testing.models import worth


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


def test_models_are_the_same_for_a_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    for make in (tiny_policy, tiny_reward_model):
        assert torch.equal(weights(make(1)), weights(make(1)))
        assert not torch.equal(weights(make(1)), weights(make(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_models_read_words_and_may_be_changed():
    policy, reward = tiny_policy(num_hidden_layers=2), tiny_reward_model(outputs=3, lm_head=True)
    assert policy.lm.config.num_hidden_layers == 2
    made = samples()
    assert policy.logprobs(made).shape == made.mask.shape
    assert reward.score_samples(made).parts.shape == (4, 1, 3)
    assert reward.lm_head is not None
    assert tokenizer().encode("good soup") == [12, 3]


def test_a_fake_reward_is_a_function_of_samples():
    made = samples(responses=["good soup", "bad"])
    gold = FakeReward().score_samples(made).score
    assert gold.tolist() == pytest.approx([worth("good soup"), worth("bad")])
    lengths = FakeReward(lambda s: s.lengths.float()).score_samples(made)
    assert lengths.score.tolist() == [3.0, 2.0]
    assert lengths.parts.shape == (2, 1, 1)


def test_a_context_is_that_of_a_run():
    ctx = context({"kl": {"coefficient": 0.5}}, step=3)
    assert (ctx.config.kl.coefficient, ctx.iteration, ctx.step) == (0.5, 1, 3)
    first, again = (torch.rand((), generator=ctx.generator("mine")) for _ in range(2))
    assert first == again
    assert first != torch.rand((), generator=ctx.at(step=4).generator("mine"))
    made = samples(responses=["good"])
    assert ctx.gold_scores(made).tolist() == pytest.approx([worth("good")])
    assert ctx.sft.load().logprobs(made).shape == made.mask.shape
