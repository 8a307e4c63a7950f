"""k_wise: the Plackett-Luce likelihood of a ranking of K responses (Book 7.4.3)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets

from ostinato import RMOutputs, UserError
from ostinato.engine.calibration import held_out_accuracy
from ostinato.engine.comparisons import ranks

DRAW = np.random.default_rng(0)


def loss_of(kit, batch, logits, plugin="k_wise"):
    one = kit.make(plugin)
    leaf = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    outputs = RMOutputs(leaf.mean(-1), leaf, torch.zeros(*leaf.shape[:2], 1))
    made = one.plugins.one("preference_loss", batch=batch, outputs=outputs, ctx=one.ctx)
    return made, leaf


def batch_of(kit, data):
    one = kit.make()
    return one.batch(data, one.initial())


def labelled(batch, label):
    """The batch with other labels, and the ranks that follow from them."""
    label = torch.as_tensor(label, dtype=torch.float32)
    return replace(batch, label=label, rank=ranks(batch.pairs, label, batch.group))


def plackett_luce(rewards):
    """-log of the product over choices of exp(r) / sum of exp(r) of what is left, best first."""
    total = 0.0
    for k in range(len(rewards)):
        total -= np.log(np.exp(rewards[k]) / np.exp(rewards[k:]).sum())
    return total


def rankings(batch):
    """The rows of each group, the best first."""
    group, rank = batch.group.numpy(), batch.rank.numpy()
    rows = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    return [mine[np.argsort(rank[mine])] for mine in rows]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_against_the_formula_in_float64(kit, comparisons, k, heads, views):
    batch = batch_of(kit, comparisons(3, responses=k))
    logits = DRAW.normal(size=(views, 3 * k, heads))
    made, _ = loss_of(kit, batch, logits)
    for v in range(views):
        for c, row in enumerate(batch.pairs[:, 0]):
            rows = rankings(batch)[batch.group[row]]
            expected = sum(plackett_luce(logits[v, rows, h]) for h in range(heads))
            assert made[v, c].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_two_responses_are_bradley_terry_with_soft_labels_too(kit, comparisons, heads):
    batch = labelled(batch_of(kit, comparisons(6)), [1.0, 0.9, 0.5, 0.7, 0.3, 0.0])
    logits = 3 * DRAW.normal(size=(2, 12, heads))
    made, leaf = loss_of(kit, batch, logits)
    expected, other = loss_of(kit, batch, logits, "bradley_terry")
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    made.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-5, atol=1e-6)


# --- Soft labels ----------------------------------------------------------------------------------


def tree_sum(rates, root):
    """Over all trees in which every other node has a path to root, the product of their steps.

    By the matrix-tree theorem a walk with these rates (n, n), from row to column, is at each node
    in proportion to it.
    """
    size, total = len(rates), 0.0
    others = [n for n in range(size) if n != root]
    for parents in itertools.product(range(size), repeat=size - 1):
        step = dict(zip(others, parents, strict=True))

        def arrives(node, step=step):
            for _ in range(size):
                node = step.get(node, root)
            return node == root

        if all(arrives(n) and n != p for n, p in step.items()):
            total += np.prod([rates[n, p] for n, p in step.items()])
    return total


def brute_force(beats, rewards):
    """Mean loss over all K! rankings, each choice by trees of steps towards who beats whom."""
    total = whole = 0.0
    for order in itertools.permutations(range(len(rewards))):
        chance = 1.0
        for k in range(len(order) - 1):
            left = list(order[k:])
            sums = [tree_sum(beats[np.ix_(left, left)].T, i) for i in range(len(left))]
            chance *= sums[0] / sum(sums)
        whole += chance
        total += chance * plackett_luce(rewards[list(order)])
    assert whole == pytest.approx(1)
    return total


def beats_of(batch, rows):
    """P(row beats column) of one group, one half where nobody compared them."""
    beats = np.full((len(batch.group),) * 2, 0.5)
    for (c, r), p in zip(batch.pairs.tolist(), batch.label.double().tolist(), strict=True):
        beats[c, r], beats[r, c] = p, 1 - p
    return beats[np.ix_(rows, rows)]


@pytest.mark.parametrize("k", [3, 4])
def test_labels_of_a_plackett_luce_model_give_its_mean_loss_and_no_bias(kit, comparisons, k):
    """P(i beats j) = w_i / (w_i + w_j): the mean over rankings of the model, by brute force.

    As a mean of -log P it is least at the model's own worths: the gradient there is 0.
    """
    batch, worth = batch_of(kit, comparisons(1, responses=k)), DRAW.normal(size=k)
    difference = worth[batch.pairs[:, 0]] - worth[batch.pairs[:, 1]]
    batch = labelled(batch, 1 / (1 + np.exp(-difference)))
    logits = DRAW.normal(size=k)
    made, _ = loss_of(kit, batch, logits[None, :, None])
    rankings = [list(order) for order in itertools.permutations(range(k))]
    expected = sum(np.exp(-plackett_luce(worth[o])) * plackett_luce(logits[o]) for o in rankings)
    assert made[0].tolist() == pytest.approx([expected] * len(batch.pairs), rel=1e-5)
    at, leaf = loss_of(kit, batch, worth[None, :, None])
    at[0, 0].backward()
    assert leaf.grad.flatten().tolist() == pytest.approx([0] * k, abs=1e-6)


def test_any_soft_labels_are_a_mean_over_rankings(kit, comparisons):
    """Of two groups at once, with labels that no Plackett-Luce model has."""
    batch = labelled(batch_of(kit, comparisons(2, responses=4)), DRAW.uniform(0.1, 1, 12))
    logits = DRAW.normal(size=(1, 8, 2))
    made, _ = loss_of(kit, batch, logits)
    for group in (0, 1):
        rows = np.flatnonzero(batch.group.numpy() == group)
        beats = beats_of(batch, rows)
        expected = sum(brute_force(beats, logits[0, rows, h]) for h in (0, 1))
        mine = batch.group[batch.pairs[:, 0]] == group
        assert made[0, mine].tolist() == pytest.approx([expected] * 6, rel=1e-4)


def test_tied_responses_are_not_told_apart(kit, comparisons):
    """Two share the first place: half of each order, and no push of one above the other."""
    batch = batch_of(kit, comparisons(1, responses=3))
    batch = labelled(replace(batch, pairs=torch.tensor([[0, 1], [0, 2], [1, 2]])), [0.5, 1, 1])
    logits = np.array([0.3, -0.4, 1.1])
    made, _ = loss_of(kit, batch, logits[None, :, None])
    orders = plackett_luce(logits), plackett_luce(logits[[1, 0, 2]])
    assert made[0, 0].item() == pytest.approx(np.mean(orders), rel=1e-6)
    level, leaf = loss_of(kit, batch, np.zeros((1, 3, 1)))
    level[0, 0].backward()
    first, second, last = leaf.grad[0, :, 0].tolist()
    assert first == pytest.approx(second)
    assert first < 0 < last


def test_a_cycle_is_shared_equally(kit, comparisons):
    """A beats B, B beats C, C beats A: nobody is pushed."""
    batch = batch_of(kit, comparisons(1, responses=3))
    batch = labelled(replace(batch, pairs=torch.tensor([[0, 1], [1, 2], [2, 0]])), [1.0, 1, 1])
    made, leaf = loss_of(kit, batch, np.zeros((1, 3, 1)))
    assert made[0, 0].item() == pytest.approx(np.log(3) + np.log(2), rel=1e-5)
    made[0, 0].backward()
    assert leaf.grad[0, :, 0].tolist() == pytest.approx([0] * 3, abs=1e-6)


def test_a_response_that_loses_to_a_whole_cycle_comes_last(kit, comparisons):
    batch = batch_of(kit, comparisons(1, responses=4))
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 3], [1, 3], [2, 3]])
    batch = labelled(replace(batch, pairs=pairs), [1.0] * 6)
    made, _ = loss_of(kit, batch, [[[0.0], [0.0], [0.0], [-40.0]]])
    assert made[0, 0].item() == pytest.approx(np.log(3) + np.log(2), rel=1e-4)


@pytest.mark.parametrize("labels", [[1.0, 1.0], [0.8, 0.7]])
def test_a_missing_comparison_counts_one_half(kit, comparisons, labels):
    batch = batch_of(kit, comparisons(1, responses=3))
    left = labelled(replace(batch, pairs=torch.tensor([[0, 1], [0, 2]])), labels)
    logits = np.array([2.0, 0.5, -1.0])
    asked, _ = loss_of(kit, left, logits[None, :, None])
    expected = brute_force(beats_of(left, [0, 1, 2]), logits)
    assert asked[0].tolist() == pytest.approx([expected] * 2, rel=1e-5)
    if labels == [1.0, 1.0]:  # by hand: sure of the first, and half of each order of the others
        orders = plackett_luce(logits), plackett_luce(logits[[0, 2, 1]])
        assert expected == pytest.approx(np.mean(orders))


def test_huge_differences_stay_finite(kit, comparisons):
    batch = batch_of(kit, comparisons(4, responses=5))
    made, leaf = loss_of(kit, batch, 1e4 * DRAW.normal(size=(1, 20, 2)))
    made.sum().backward()
    assert bool(made.isfinite().all())
    assert bool(leaf.grad.isfinite().all())


def test_the_loss_is_the_mean_over_rankings_and_no_group_is_split(kit, comparisons):
    data, found = comparisons(4, responses=3), []
    for accumulate in (1, 2, 3):
        one = kit.make("k_wise", updates=1, batch=12, accumulate=accumulate)
        start = one.initial()
        one.trainer()(start, data)
        found.append(one.rows[0]["terms"]["k_wise"])
    batch = one.batch(data, start)
    score = start(batch.input_ids, batch.mask).score[0].detach().double().numpy()
    expected = np.mean([plackett_luce(score[rows]) for rows in rankings(batch)])
    assert found == pytest.approx([expected] * 3, rel=1e-5)


def test_with_balance_each_ranking_counts_once_whatever_its_length(kit, comparisons):
    """Without it a ranking counts by its comparisons: here 3 against 10."""
    three, five = (comparisons(2, seed=k, responses=n, iteration=k) for n, k in ((3, 1), (5, 2)))
    data, found = concatenate_datasets([three, five]), {}
    for plugins in (("k_wise",), ("k_wise", "per_prompt_balance")):
        one = kit.make(*plugins, updates=1, batch=64)
        made, start = data, one.initial()
        if len(plugins) == 2:
            made = one.plugins.call("per_prompt_balance", "refine_data", data=data, ctx=one.ctx)
        one.trainer()(start, made)
        found[len(plugins)] = one.rows[0]["terms"]["k_wise"]
    batch = one.batch(data, start)
    score = start(batch.input_ids, batch.mask).score[0].detach().double().numpy()
    each = [plackett_luce(score[rows]) for rows in rankings(batch)]
    assert found[1] == pytest.approx(np.average(each, weights=[3, 3, 10, 10]), rel=1e-5)
    assert found[2] == pytest.approx(np.mean(each), rel=1e-5)


def test_effect_the_worths_behind_a_sample_of_rankings_come_back(kit, comparisons):
    """400 rankings of 4 out of 6 items, drawn from Plackett-Luce with known worths.

    The worths that make the loss least are the maximum-likelihood estimate, near the truth.
    """
    worth = np.array([1.5, 0.9, 0.3, -0.3, -0.9, -1.5])
    items = np.stack([DRAW.permutation(6)[:4] for _ in range(400)])  # (rankings, 4)
    keys = worth[items] + DRAW.gumbel(size=items.shape)  # sorting these draws from the model
    items = np.take_along_axis(items, np.argsort(-keys, 1), 1).reshape(-1)
    rows = np.arange(1600).reshape(400, 4)
    i, j = np.triu_indices(4, 1)
    pairs = torch.from_numpy(np.stack([rows[:, i], rows[:, j]], -1).reshape(-1, 2))
    batch = replace(
        batch_of(kit, comparisons(1)),
        pairs=pairs,
        group=torch.arange(400).repeat_interleave(4),
        rank=torch.arange(4).repeat(400),
        label=torch.ones(len(pairs)),
    )
    one, guess = kit.make("k_wise"), torch.zeros(6, requires_grad=True)
    optimiser = torch.optim.LBFGS([guess], max_iter=20)

    def closure():
        optimiser.zero_grad()
        logits = guess[torch.from_numpy(items)][None, :, None]
        outputs = RMOutputs(logits[..., 0], logits, logits)
        each = one.plugins.one("preference_loss", batch=batch, outputs=outputs, ctx=one.ctx)
        each.mean().backward()
        return each.mean()

    optimiser.step(closure)
    np.testing.assert_allclose(guess.detach() - guess.detach().mean(), worth, atol=0.2)


def test_effect_a_reward_model_learns_the_ranking(kit, comparisons):
    data, held = comparisons(48, responses=4), comparisons(64, seed=50)
    one = kit.make("k_wise", batch=48, updates=60, lr=1e-2)
    fit = one.trainer()
    model = fit(one.initial(), data)
    assert held_out_accuracy(model, held, fit.policy_tokenizer)["accuracy"] > 0.9
    assert one.rows[0]["terms"]["k_wise"] == pytest.approx(np.log(24), abs=0.5)  # 4! rankings
    assert one.rows[-1]["terms"]["k_wise"] < 1.5


def test_it_may_not_stand_beside_another_preference_loss(kit):
    with pytest.raises(UserError, match="'preference_loss' has one owner"):
        kit.make("k_wise", "bradley_terry")
