"""per_prompt_balance: 1 / C(K, 2) for each comparison of a prompt (Book 7.4.2, equation 6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets

from ostinato.data.preferences import swapped


def balanced(kit, data):
    one = kit.make("per_prompt_balance")
    return one.plugins.call("per_prompt_balance", "refine_data", data=data, ctx=one.ctx)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_one_over_k_choose_2(kit, comparisons, k):
    data = comparisons(4, responses=k)
    made = balanced(kit, data)
    assert made["weight"][:] == pytest.approx([1 / math.comb(k, 2)] * len(data))
    others = [c for c in data.column_names if c != "weight"]
    assert made.select_columns(others).to_dict() == data.select_columns(others).to_dict()


def test_rows_that_are_left_count_and_weights_multiply(kit, comparisons):
    """Of two iterations with equal group numbers; one lost a comparison to another plugin."""
    first, second = (comparisons(2, responses=3, iteration=k) for k in (1, 2))  # 3 a group
    data = concatenate_datasets([first, second.select([0, 1, 3, 4, 5])])
    weight = np.random.default_rng(0).uniform(0.5, 2, len(data))
    data = data.from_dict(data.to_dict() | {"weight": weight.tolist()}, features=data.features)
    count = np.array([3] * 6 + [2, 2] + [3] * 3)
    np.testing.assert_allclose(balanced(kit, data)["weight"][:], weight / count)


def test_the_loss_is_the_mean_over_prompts(kit, comparisons):
    """Of batches with unequal prompts: the mean over prompts of the mean over their pairs."""
    three = comparisons(3, seed=1, responses=3, iteration=2)
    data = concatenate_datasets([three, comparisons(3, seed=2, responses=5)])
    made, one = balanced(kit, data), kit.make(updates=1, batch=64)
    start = one.initial()
    one.trainer()(start, made)
    batch = one.batch(made, start)
    score = start(batch.input_ids, batch.mask).score[0].detach().double().numpy()
    loss = np.log1p(np.exp(score[batch.pairs[:, 1]] - score[batch.pairs[:, 0]]))
    group = batch.group[batch.pairs[:, 0]].numpy()
    expected = np.mean([loss[group == g].mean() for g in range(6)])
    assert abs(loss.mean() - expected) > 1e-4  # the two are told apart
    assert one.rows[0]["terms"]["bradley_terry"] == pytest.approx(expected, rel=1e-5)


def test_effect_prompts_with_many_pairs_do_not_dominate(kit, comparisons):
    """InstructGPT: each prompt counts once, whatever the number of its comparisons.

    8 prompts with 15 pairs each say that b's are good, 40 prompts with one pair each that a's are.
    Counted by pairs the first win, counted by prompts the second.
    """
    many = comparisons(8, seed=1, responses=6, iteration=2)
    many = swapped(many, [True] * len(many))
    data = concatenate_datasets([many, comparisons(40, seed=2)])
    held, right = comparisons(64, seed=50), []
    for train in (data, balanced(kit, data)):
        one = kit.make(batch=32, updates=60, lr=1e-2)
        model = one.trainer()(one.initial(), train)
        batch = one.batch(held, model)
        with torch.no_grad():
            score = model(batch.input_ids, batch.mask).score[0][batch.pairs]
        right.append(float((score[:, 0] > score[:, 1]).float().mean()))
    assert right[0] < 0.4, right
    assert right[1] > 0.6, right
