"""gold_labels: the gold model's preferences, exact, sampled, or with mistakes (Wolf 2.1)."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from ostinato import UserError, load_config
from ostinato.config.draws import Draws
from ostinato.engine.session import check


def labelled(kit, first, second, seed=0, **settings):
    one = kit.make(("gold_labels", settings))
    data = Dataset.from_dict({"first_gold": list(first), "second_gold": list(second)})
    ctx = one.ctx.at(draws=Draws(seed, 1))
    return np.array(one.plugins.one("label", comparisons=data, ctx=ctx))


def test_the_higher_gold_wins_and_a_tie_is_half(kit):
    made = labelled(kit, [1.0, -2.0, 0.5, 1e-9], [0.0, -1.0, 0.5, 0.0])
    assert made.tolist() == [1.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(("difference", "temperature"), [(0.7, 1.0), (-1.2, 0.5), (1.0, 4.0)])
def test_sampled_frequencies_are_bradley_terry(kit, difference, temperature):
    """P(first wins) = s(difference / temperature), within four standard errors of 20,000."""
    n = 20_000
    settings = {"mode": "sampled", "temperature": temperature}
    made = labelled(kit, np.full(n, difference), np.zeros(n), **settings)
    p = 1 / (1 + np.exp(-difference / temperature))
    assert set(made) == {0.0, 1.0}
    assert made.mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


def test_a_share_of_labels_is_turned_round(kit):
    """Two annotators who each err with e agree 1 - 2e(1 - e): .24 gives the literature's .63."""
    n, e = 20_000, 0.24
    gold = np.random.default_rng(0).normal(size=(2, n))
    truth = (gold[0] > gold[1]).astype(float)
    one, other = (labelled(kit, *gold, seed=s, flip=e) for s in (0, 1))
    assert (one != truth).mean() == pytest.approx(e, abs=4 * np.sqrt(e * (1 - e) / n))
    agree = 1 - 2 * e * (1 - e)
    assert (one == other).mean() == pytest.approx(agree, abs=4 * np.sqrt(agree * (1 - agree) / n))
    assert agree == pytest.approx(0.635, abs=1e-3)


def test_mistakes_are_drawn_apart_from_the_winner(kit):
    """P(first wins) = p (1 - e) + (1 - p) e; one draw for both would give |p - e|."""
    n, e, difference = 20_000, 0.2, 0.8
    made = labelled(kit, np.full(n, difference), np.zeros(n), mode="sampled", flip=e)
    p = 1 / (1 + np.exp(-difference))
    expected = p * (1 - e) + (1 - p) * e
    error = np.sqrt(expected * (1 - expected) / n)
    assert abs(abs(p - e) - expected) > 20 * error
    assert made.mean() == pytest.approx(expected, abs=4 * error)


def test_draws_repeat_and_differ_by_seed(kit):
    gold = np.zeros((2, 64))
    settings = {"mode": "sampled"}
    first = labelled(kit, *gold, **settings)
    assert (labelled(kit, *gold, **settings) == first).all()
    assert (labelled(kit, *gold, seed=1, **settings) != first).any()


def test_a_run_without_gold_is_refused():
    config = load_config("toy").model_copy(update={"gold": None})
    with pytest.raises(UserError, match="'gold_labels', which needs a gold model"):
        check(config, "toy")
