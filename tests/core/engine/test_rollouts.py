"""The rewards of a rollout's tokens, by hand."""

from __future__ import annotations

import pytest
import torch

from ostinato.config.sections import RLSection
from ostinato.engine.rollouts import finish_penalty, token_rewards


def test_the_reward_lands_on_the_last_real_token_and_the_kl_on_every_one():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]])
    reference = torch.tensor([[-1.5, -1.0, -3.0], [-3.0, 0.0, 0.0]])
    score, coefficient = torch.tensor([10.0, 20.0]), torch.tensor([0.1, 0.2])
    found = token_rewards(score, logprobs - reference, coefficient, mask, kl_in_reward=True)
    # likelier than under the reference: punished; less likely: rewarded
    wanted = torch.tensor([[-0.05, 0.1, 10.0], [20.0 - 0.4, 0.0, 0.0]])
    torch.testing.assert_close(found, wanted)
    bare = token_rewards(score, logprobs - reference, coefficient, mask, kl_in_reward=False)
    assert bare.tolist() == [[0.0, 0.0, 10.0], [20.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [3.0, -4.0, 2.0]),
        ({"unfinished": {"penalty": 1.5, "mode": "subtract"}}, [3.0, -5.5, 2.0]),
        ({"unfinished": {"penalty": -1.0, "mode": "replace"}}, [3.0, -1.0, 2.0]),
        ({"clip_score": 2.5}, [2.5, -2.5, 2.0]),
        ({"clip_score": 2.5, "unfinished": {"penalty": 1.5}}, [2.5, -4.0, 2.0]),
    ],
)
def test_scores_are_clipped_then_unfinished_responses_penalised(settings, wanted):
    score, finished = torch.tensor([3.0, -4.0, 2.0]), torch.tensor([True, False, True])
    found = finish_penalty(score, finished, RLSection(**settings))
    assert found.tolist() == wanted
