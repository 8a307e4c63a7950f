"""Batches that are made are what the engine makes: consistent, drawn by name, all fields given."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from ostinato.testing import policy_outputs, rewards, rollout, samples, tokenizer


def test_samples_have_the_lengths_that_were_asked_for():
    made = samples([2, 5, 1])
    assert made.lengths.tolist() == [2, 5, 1]
    assert made.finished.tolist() == [True, True, False]
    eos, pad = tokenizer().eos_token_id, tokenizer().pad_token_id
    for row, mask, finished in zip(made.response_ids, made.mask, made.finished, strict=True):
        real = row[mask].tolist()
        assert (real[-1] == eos) == bool(finished)
        assert eos not in real[:-1]
        assert set(row[~mask].tolist()) <= {pad}
    assert len({len(ids) for ids in made.tokens[0]}) > 1  # prompts are ragged
    assert made.prompts == [tokenizer().decode(ids) for ids in made.tokens[0]]


def test_samples_of_texts_are_these_texts():
    made = samples(responses=["good soup", "the cold tea"], finished=[True, False])
    assert made.responses == ["good soup", "the cold tea"]
    assert made.lengths.tolist() == [3, 3]  # a stop token after the first alone


def test_responses_of_a_prompt_stand_side_by_side():
    made = rollout(per_prompt=2)
    assert made.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert made.samples.prompts[::2] == made.samples.prompts[1::2]
    assert len(set(made.samples.prompts)) == 4


def test_padding_holds_nothing():
    made = rollout([1, 4, 2])
    for field in fields(made):
        value = getattr(made, field.name)
        if isinstance(value, Tensor) and value.ndim == 2 and field.name != "mask":
            assert not value[~made.mask].any(), field.name


def test_rewards_are_the_score_at_the_end_less_the_kl():
    made = rollout([2, 1], score=[3.0, -1.0], kl_coefficient=[0.5, 2.0])
    kl = made.logprobs - made.ref_logprobs
    expected = [
        [-0.5 * float(kl[0, 0]), 3.0 - 0.5 * float(kl[0, 1])],
        [-1.0 - 2.0 * float(kl[1, 0]), 0.0],
    ]
    assert torch.allclose(made.rewards, torch.tensor(expected))
    assert not made.advantages.any()


def test_what_is_given_decides_the_size():
    assert rollout(score=[1.0, 2.0, 3.0]).mask.shape[0] == 3
    assert rollout(rewards=[[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]).mask.shape == (2, 3)
    ragged = rollout(mask=[[True, False], [True, True]])
    assert ragged.samples.lengths.tolist() == [1, 2]
    assert rewards([1, 2], members=3, heads=2).parts.shape == (2, 3, 2)


def test_the_score_is_the_mean_of_its_parts():
    made = rewards(members=3, heads=2)
    assert torch.allclose(made.parts.mean((1, 2)), made.score, atol=1e-6)
    assert made.parts.flatten(1).std(1).min() > 0


def test_lists_take_the_kind_of_the_field():
    made = rollout(score=[1, 2], group=[0, 0], finished=[1, 0])
    assert (made.score.dtype, made.group.dtype) == (torch.float32, torch.int64)
    whole = torch.ones(2, 3, dtype=torch.float64)
    assert rollout(rewards=whole).rewards is whole


def test_a_given_field_leaves_the_others_as_they_were():
    plain, other = rollout(), rollout(score=[9.0] * 4)
    assert torch.equal(plain.logprobs, other.logprobs)
    assert torch.equal(plain.samples.response_ids, other.samples.response_ids)
    assert not torch.equal(plain.logprobs, rollout(seed=1).logprobs)


@pytest.mark.parametrize("make", [rollout, rewards])
def test_an_unknown_field_is_refused(make):
    with pytest.raises(TypeError, match="has no field 'scores'"):
        make(scores=[1.0])


def test_outputs_take_a_gradient_and_lie_near():
    batch = rollout()
    made = policy_outputs(batch, far=0.1)
    (made.logprobs.sum() + made.values.sum()).backward()
    assert torch.equal(made.logprobs.grad, torch.ones_like(batch.logprobs))
    assert 0 < (made.logprobs - batch.logprobs).abs().max() < 1
    assert made.policy.logprobs(batch.samples).shape == batch.mask.shape
