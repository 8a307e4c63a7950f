"""The variance of differences against NumPy; runs that label what two members disagree on."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from ostinato_selection.active_pairs import ActivePairs

import ostinato


@pytest.mark.parametrize("of", ["difference", "probability"])
def test_the_share_with_the_largest_variance(made, context, ask, pairs, of):
    draw = np.random.default_rng(3)
    rows = [(f"p{i}", f"{i} a", f"{i} b") for i in range(9)]
    known = {text: (3 * draw.normal(size=4)).tolist() for row in rows for text in row[1:]}
    ctx = context(responses=ask.responses)
    plugin = made(ActivePairs, share=0.5, of=of)
    kept = plugin.select_comparisons(pairs(rows), [None, ask.votes(known)], ctx)
    variance = {}
    for _, first, second in rows:
        difference = np.array(known[first]) - np.array(known[second])
        found = 1 / (1 + np.exp(-difference)) if of == "probability" else difference
        variance[first] = ((found - found.mean()) ** 2).sum() / 3
    best = sorted(variance, key=variance.get, reverse=True)[:4]  # round(4.5) is 4
    assert kept["first"][:] == sorted(best)
    assert ctx.logged["active_pairs/variance"] == pytest.approx(np.mean(list(variance.values())))


def test_sure_pairs_are_not_asked_for_and_unsure_ones_are(made, context, ask, pairs):
    """Both members know of the first pair who is far better, and disagree on the second."""
    known = {"a": [5.0, 5.0], "b": [-5.0, -5.0], "c": [1.0, -1.0], "d": [0.0, 0.0]}
    given = pairs([("p", "a", "b"), ("q", "c", "d")])
    kept = made(ActivePairs).select_comparisons(
        given, [ask.votes(known)], context(responses=ask.responses)
    )
    assert kept.to_list() == given.to_list()[1:]


def test_without_a_reward_model_the_share_is_drawn(made, context, pairs):
    given = pairs([(f"p{i}", f"{i} a", f"{i} b") for i in range(40)])
    kept = [made(ActivePairs).select_comparisons(given, [], context(seed)) for seed in (0, 1)]
    assert [len(data) for data in kept] == [20, 20]
    assert kept[0]["first"][:] != kept[1]["first"][:]
    assert kept[0]["first"][:] != given["first"][:20]


def test_one_member_cannot_disagree(made, context, ask, pairs):
    given, models = pairs([("p", "a", "b")]), [ask.votes({"a": [0.0], "b": [1.0]})]
    with pytest.raises(ostinato.UserError, match="'active_pairs': the reward has one member"):
        made(ActivePairs).select_comparisons(given, models, context(responses=ask.responses))


def test_a_run_asks_for_as_many_labels_as_the_share(run):
    made = run([{"active_pairs": {"share": 0.25}}], iterations=2)
    for k in (1, 2):
        folder = made.directory / f"iteration-{k}" / "preferences"
        assert len(Dataset.from_file(str(folder / "train.arrow"))) == 2
        assert len(Dataset.from_file(str(folder / "held_out.arrow"))) == 4
    assert (
        torch.tensor(
            [r["active_pairs/variance"] for r in made.metrics if "active_pairs/variance" in r]
        )
        .gt(0)
        .all()
    )


def test_a_run_of_one_member_is_refused(run):
    with pytest.raises(ostinato.UserError, match="active_pairs"):
        run(["active_pairs"], reward_model={"members": 1})
