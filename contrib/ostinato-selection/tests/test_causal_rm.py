"""MMD and bins against NumPy; features that stop telling a response's length."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_selection.causal_rm import CausalRM, binned, mmd2


def mmd_by_hand(x, y, pooled):
    """V-statistic with the median heuristic, in plain loops."""
    squared = sorted(((a - b) ** 2).sum() for a, b in combinations(pooled, 2))
    median = squared[(len(squared) - 1) // 2]

    def mean(a, b):
        return np.mean([np.exp(-((u - v) ** 2).sum() / median) for u in a for v in b])

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def outputs_of(hidden):
    return SimpleNamespace(hidden=hidden)


def batch_of(lengths, pairs):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return SimpleNamespace(response_mask=mask, pairs=torch.tensor(pairs))


LENGTHS = [3, 9, 4, 9, 1, 7, 2, 8]
PAIRS = [[0, 1], [3, 2], [4, 5], [7, 6]]


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("bins", [2, 3])
def test_the_term_is_the_mean_mmd_of_pairs_of_bins(made, conditional, bins):
    hidden = np.random.default_rng(bins).normal(size=(2, 8, 3))
    plugin = made(CausalRM, weight=0.5, bins=bins, conditional=conditional)
    found = plugin.rm_loss(batch_of(LENGTHS, PAIRS), outputs_of(torch.tensor(hidden)))
    states, terms = hidden.mean(0), []
    sides = [[0, 3, 4, 7], [1, 2, 5, 6]] if conditional else [list(range(8))]
    for rows in sides:
        ordered = sorted(LENGTHS[row] for row in rows)
        edges = [ordered[(len(rows) - 1) * i // bins] for i in range(1, bins)]
        number = {row: sum(LENGTHS[row] > edge for edge in edges) for row in rows}
        groups = [[row for row in rows if number[row] == n] for n in range(bins)]
        assert all(groups)
        terms += [mmd_by_hand(states[a], states[b], states) for a, b in combinations(groups, 2)]
    assert list(found) == ["mmd"]
    assert float(found["mmd"]) == pytest.approx(0.5 * np.mean(terms), rel=1e-5)


def test_equal_samples_have_no_distance():
    x = torch.randn(6, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert float(mmd2(x, x.flip(0), x)) == pytest.approx(0.0, abs=1e-12)
    assert float(mmd2(x, x + 9, torch.cat([x, x + 9]))) > 0.5


def test_equal_lengths_share_a_bin():
    found = [rows.tolist() for rows in binned(torch.tensor([5, 5, 5, 5, 9]), 4)]
    assert found == [[0, 1, 2, 3], [4]]
    assert [rows.tolist() for rows in binned(torch.tensor([3, 3]), 2)] == [[0, 1]]


def test_one_length_gives_0_with_a_gradient(made):
    hidden = torch.randn(1, 4, 3, requires_grad=True)
    found = made(CausalRM).rm_loss(batch_of([2] * 4, [[0, 1], [2, 3]]), outputs_of(hidden))
    found["mmd"].backward()
    assert found["mmd"].item() == 0
    assert hidden.grad.abs().sum() == 0


def test_a_score_that_followed_length_follows_quality(made):
    """Labellers like what is good and what is long; the features are a linear map of the two."""
    draw = np.random.default_rng(0)
    quality, longer = draw.normal(size=96), draw.integers(0, 2, size=96).astype(float)
    liked = quality + 1.5 * longer
    pairs = [(i, i + 1) if liked[i] > liked[i + 1] else (i + 1, i) for i in range(95)]
    facts = torch.tensor(np.stack([quality, longer], 1))
    batch = batch_of((5 + 10 * longer).astype(int).tolist(), pairs)
    chosen, rejected = torch.tensor(pairs).T
    share = {}
    for weight in (0.01, 10.0):
        plugin = made(CausalRM, weight=weight, bins=2)
        body = torch.eye(2, dtype=torch.double).requires_grad_()
        head = torch.ones(2, dtype=torch.double).requires_grad_()
        optimiser = torch.optim.Adam([body, head], lr=0.03)
        for _ in range(100):
            hidden = facts @ body
            score = hidden @ head
            loss = torch.nn.functional.softplus(score[rejected] - score[chosen]).mean()
            (loss + plugin.rm_loss(batch, outputs_of(hidden[None]))["mmd"]).backward()
            optimiser.step()
            optimiser.zero_grad()
        slope = (body @ head).detach()
        assert slope[0] > 0.5  # what is good is still seen
        share[weight] = float(slope[1] / slope[0])  # what a long response is worth, in good
    assert share[0.01] > 1.0
    assert share[10.0] < 0.3


def test_a_run_has_the_term(run):
    sections = {"generation": {"max_new_tokens": 24}, "reward_model": {"batch": 16, "updates": 3}}
    rows = run([{"causal_rm": {"bins": 2}}], **sections).metrics
    terms = [row["terms"]["causal_rm/mmd"] for row in rows if row["kind"] == "reward_model"]
    assert terms
    assert all(term > 0 for term in terms)
