"""Duels against a search by hand, and the chances with which responses fight."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from datasets import Dataset
from ostinato_selection.thompson_duels import ThompsonDuels, duel

import ostinato


def fights(known, second, seeds=300):
    """How often each two fight, over seeds: {names: count}, and how often the choice was drawn."""
    names = list(known)
    pairs = {frozenset(two): place for place, two in enumerate(combinations(names, 2))}
    turned = {place: "".join(sorted(two)) for two, place in pairs.items()}
    votes = {name: torch.tensor(known[name]) for name in names}
    found = [
        duel(votes, pairs, second, torch.Generator().manual_seed(seed)) for seed in range(seeds)
    ]
    return Counter(turned[row] for row, _ in found), sum(drawn for _, drawn in found)


def test_favourites_of_two_members_fight():
    """Member 0 likes a, member 1 likes b, member 2 likes c: each two as often."""
    known = {"a": [3.0, 0, 0], "b": [0, 3.0, 0], "c": [0, 0, 3.0], "d": [2.0, 2.0, 2.0]}
    found, drawn = fights(known, "best", 600)
    assert set(found) == {"ab", "ac", "bc"}
    assert all(150 < count < 250 for count in found.values())
    assert drawn == 0


def test_where_all_agree_the_other_is_drawn():
    found, drawn = fights({"a": [3.0, 2.0], "b": [0, 1.0], "c": [1.0, 0]}, "best")
    assert set(found) == {"ab", "ac"}
    assert min(found.values()) > 100
    assert drawn == 300


def test_reversed_the_best_fights_another_members_worst():
    known = {"a": [3.0, 1.0], "b": [0, 3.0], "c": [1.0, 0], "d": [2.0, 2.0]}
    found, drawn = fights(known, "worst")
    assert set(found) == {"ac", "ab", "bc", "bd"}
    assert found["ac"] + drawn == 300  # b is member 1's best and member 0's worst: another is drawn
    assert 110 < drawn < 190


def test_uncertain_takes_the_pair_whose_difference_varies_most():
    draw = np.random.default_rng(5)
    known = {name: draw.normal(size=4).tolist() for name in "abcde"}
    found, _ = fights(known, "uncertain")
    expected = set()
    for member in range(4):
        first = max(known, key=lambda name: known[name][member])
        spread = {
            name: np.var(np.array(known[first]) - known[name], ddof=1)
            for name in known
            if name != first
        }
        expected.add("".join(sorted(first + max(spread, key=spread.get))))
    assert set(found) == expected


def test_one_pair_of_each_prompt_stays(made, context, ask, pairs):
    names = {p: [f"{p}{i}" for i in range(4)] for p in "pqr"}
    rows = [(p, a, b) for p in names for a, b in combinations(names[p], 2)]
    draw = np.random.default_rng(0)
    known = {name: draw.normal(size=3).tolist() for p in names for name in names[p]}
    ctx = context(responses=ask.responses)
    given = pairs(rows)
    kept = made(ThompsonDuels).select_comparisons(given, [ask.votes(known)], ctx)
    assert kept["prompt"][:] == list("pqr")
    for row in kept:
        best = {max(names[row["prompt"]], key=lambda name: known[name][e]) for e in range(3)}
        assert {row["first"], row["second"]} <= best or len(best) == 1
    assert 0 <= ctx.logged["thompson_duels/agreed"] <= 1
    drawn = made(ThompsonDuels).select_comparisons(given, [], ctx)
    assert drawn["prompt"][:] == list("pqr")


def test_a_run_labels_one_pair_a_prompt(run):
    made = run(["thompson_duels"], iterations=2, preferences={"responses": 4})
    for k in (1, 2):
        folder = made.directory / f"iteration-{k}" / "preferences"
        data = Dataset.from_file(str(folder / "train.arrow"))
        assert len(data) == len(set(data["group"][:])) == 8


def test_two_responses_leave_no_choice(run):
    with pytest.raises(ostinato.UserError, match="chooses one pair of several responses"):
        run(["thompson_duels"])
