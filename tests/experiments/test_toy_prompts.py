"""BRME, figure 1: eight prompts, eight responses, and a minimum over reward models."""

from __future__ import annotations

import torch

import toy_prompts as experiment


def test_preferences_are_the_diagonal_against_two_others():
    rows = experiment.preferences([3, 0])
    assert rows[:, 0].tolist() == [p for p in range(8) for _ in range(2)]
    assert (rows[:, 1] == rows[:, 0]).all()
    assert (rows[:, 2] != rows[:, 0]).all()
    assert (rows[::2, 2] != rows[1::2, 2]).all()


def test_integration_by_hand():
    tables = torch.tensor([[[10.0, 0.0]], [[1.0, 5.0]], [[3.0, 4.0]]])
    for reduce, others in (("min", [1.0, 4.0]), ("mean", [2.0, 4.5]), ("max", [3.0, 5.0])):
        expected = [[4 + 0.6 * others[0], 0.6 * others[1]]]
        torch.testing.assert_close(
            experiment.integrated(tables, 0.4, reduce), torch.tensor(expected)
        )


def test_reward_models_learn_the_pairs_they_saw():
    pairs = experiment.preferences([0, 0])
    table = experiment.reward_table(pairs, 0, 32)
    assert (table[pairs[:, 0], pairs[:, 1]] > table[pairs[:, 0], pairs[:, 2]]).all()


def test_ppo_finds_the_best_of_a_reward():
    reward = torch.full((8, 8), -1.0).fill_diagonal_(1.0)
    pi = experiment.actor(reward, 0, experiment.BETA, rollouts=30)
    assert (pi.argmax(1) == torch.arange(8)).all()


def test_effect_the_minimum_repairs_the_nominal_reward():
    """The paper's claim, on rewards alone: lambda .4 has more prompts right than lambda 1."""
    right = {0.4: 0.0, 1.0: 0.0}
    for seed in range(5):
        tables = torch.stack(
            [
                experiment.reward_table(experiment.preferences([seed, m]), 1000 * seed + m, 32)
                for m in range(experiment.MODELS)
            ]
        )
        for weight in right:
            best = experiment.integrated(tables, weight).argmax(1) == torch.arange(8)
            right[weight] += float(best.float().mean()) / 5
    assert right[0.4] > right[1.0] + 0.2
    assert right[1.0] < 0.8
