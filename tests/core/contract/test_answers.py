"""The wrong kind of answer to a hook is one sentence that names plugin and hook."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ostinato.config.errors import UserError
from ostinato.contract.answers import CHECKS, check_answer
from ostinato.contract.hookspecs import KINDS
from ostinato_plugins.optimisers.ppo import PPO

SCORE = torch.zeros(1, 4, requires_grad=True)
ARGUMENTS = {
    "parameters": {"w": torch.zeros(2, 3)},
    "outputs": SimpleNamespace(score=SCORE),
    "prompts": [None] * 5,
    "count": 3,
}


def algorithm(**parts):
    """A policy algorithm with some parts put wrong."""
    made = PPO()
    for name, value in parts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("hook", "answer", "said"),
    [
        ("rm_loss", "text", "a str, expected a mapping"),
        ("rm_loss", {"a": 1.0}, "a float as 'a', expected a tensor"),
        ("rm_loss", {"a": torch.zeros(3)}, "'a' of shape (3,), expected a scalar"),
        ("policy_loss", [torch.tensor(1.0)], "a list, expected a mapping"),
        ("policy_loss", {"a": torch.zeros(1)}, "'a' of shape (1,), expected a scalar"),
        ("meta_update", torch.zeros(2, 3), "a Tensor, expected a mapping"),
        ("meta_update", {"w": 0.1}, "a float as 'w', expected a tensor"),
        (
            "meta_update",
            {"w": torch.zeros(3)},  # it would broadcast, and displace something else
            "'w' of shape (3,), expected the parameter's (2, 3)",
        ),
        ("evaluate", 1.0, "a float, expected a mapping"),
        ("evaluate", {"a": "good"}, "a str as 'a', expected a number"),
        ("kl_coefficient", "0.1", "a str, expected a number"),
        ("kl_coefficient", -0.5, "-0.5, expected 0 or more"),
        ("preference_loss", [0.1], "a list, expected a tensor with a loss a comparison"),
        (
            "preference_loss",
            SCORE.detach()[0],
            "losses without a gradient, expected ones that are computed from `outputs`",
        ),
        ("label", "first", "a str, expected a number in [0, 1] for each comparison"),
        ("label", 0.5, "a float, expected a number in [0, 1] for each comparison"),
        ("label", [0.5, "first"], "a list, expected a number in [0, 1] for each comparison"),
        ("policy_algorithm", "ppo", "a str, expected an ostinato.PolicyAlgorithm"),
        (
            "policy_meta_update",
            {"w": torch.zeros(3)},
            "'w' of shape (3,), expected the parameter's (2, 3)",
        ),
        ("choose_prompts", 3, "a int, expected 3 row numbers of prompts"),
        ("choose_prompts", "012", "a str, expected 3 row numbers of prompts"),
        ("choose_prompts", [0, 1], "2 row numbers, expected 3 row numbers of prompts"),
        ("choose_prompts", [0, 5, 1], "5, expected 3 row numbers of prompts from 0 to 4"),
        ("choose_prompts", [0, -1, 1], "-1, expected 3 row numbers of prompts from 0 to 4"),
        ("choose_prompts", [0, 1.0, 1], "1.0, expected 3 row numbers of prompts from 0 to 4"),
        ("choose_prompts", [0, True, 1], "True, expected 3 row numbers of prompts from 0 to 4"),
        ("after_rollout", "halt", "'halt', expected ostinato.STOP, ostinato.KEEP or None"),
        ("after_rollout", True, "True, expected ostinato.STOP, ostinato.KEEP or None"),
        *(
            ("policy_algorithm", algorithm(**{part: value}), f"a PPO whose '{part}' is {said}")
            for part, value, said in (
                ("responses_per_prompt", 0, "0, expected a whole number above 0"),
                ("responses_per_prompt", "4", "'4', expected a whole number above 0"),
                ("responses_per_prompt", True, "True, expected a whole number above 0"),
                ("value_heads", -1, "-1, expected a whole number"),
                ("value_heads", True, "True, expected a whole number"),
                ("value_heads", False, "False, expected a whole number"),
                ("whole_groups", 1, "1, expected True or False"),
                ("kl_in_reward", None, "None, expected True or False"),
                ("mean_over", "both", "'both', expected 'tokens' or 'responses'"),
            )
        ),
    ],
)
def test_a_wrong_answer_is_one_sentence(hook, answer, said):
    with pytest.raises(UserError) as caught:
        check_answer("mine", hook, answer, ARGUMENTS)
    assert str(caught.value) == f"plugin 'mine': hook '{hook}' answered {said}"


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        ("rm_loss", {}),
        ("rm_loss", {"a": torch.tensor(1.0)}),
        ("meta_update", {"w": torch.ones(2, 3), "unknown": torch.ones(1)}),  # named by the trainer
        ("evaluate", {"a": 1, "b": np.float32(2.0), "c": torch.tensor(3.0), "d": float("nan")}),
        ("kl_coefficient", np.float64(0.1)),
        ("kl_coefficient", torch.tensor(0.1)),
        ("preference_loss", SCORE[0] * 2),
        ("label", torch.tensor([0.0, 1.0])),
        ("label", np.array([0.0, 1.0], dtype=np.float32)),
        ("label", (True, 0.5)),
        ("choose_prompts", torch.tensor([4, 0, 4])),  # a prompt may come twice
        ("choose_prompts", np.array([4, 0, 1])),
        ("choose_prompts", (4, 0, 1)),
        ("after_rollout", "stop"),
        ("after_rollout", "keep"),
        ("observe", "anything"),
    ],
)
def test_a_right_answer_passes(hook, answer):
    check_answer("mine", hook, answer, ARGUMENTS)


def test_without_gradients_a_loss_needs_none():
    outputs = SimpleNamespace(score=SCORE.detach())
    check_answer("mine", "preference_loss", torch.zeros(4), {"outputs": outputs})


def test_ppo_is_an_algorithm():
    plugin = object.__new__(PPO)
    plugin.config = PPO.Config()
    check_answer("ppo", "policy_algorithm", plugin.policy_algorithm(), {})


def test_every_check_is_of_a_hook():
    assert CHECKS.keys() <= KINDS.keys()
