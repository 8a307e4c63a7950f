"""Added rows against all fourteen kinds in plain loops; a run that tells foreign responses."""

from collections import Counter

import numpy as np
import pytest
import torch
from ostinato_selection.rrm import RRM, candidates, foreign

import ostinato

TEXTS = {f"p{i}": [(f"p{i} good", f"p{i} bad")] for i in range(6)}


def kind_of(row):
    """(whose the chosen is, whose the rejected is, label), by what the texts say."""
    sides = [row[side].split() for side in ("chosen", "rejected")]
    return tuple(
        "own " + word if prompt == row["prompt"] else "foreign " + word for prompt, word in sides
    )


def refined(made, context, data, **settings):
    ctx = context(cached=lambda name, make: make())
    return made(RRM, **settings).refine_data(data, ctx), ctx


def test_all_fourteen_stand_beside_each_row(made, context, labelled):
    data = labelled(TEXTS)
    after, ctx = refined(made, context, data, share=1, wrong=0)
    assert after.to_list()[:6] == data.to_list()
    added = after.to_list()[6:]
    words = ("good", "bad")
    won = {(f"own {a}", f"foreign {b}"): 2 for a in words for b in words}
    tied = Counter()
    for j, k in [("good", "good"), ("good", "bad"), ("bad", "bad")]:
        tied[frozenset((f"foreign {j}", f"foreign {k}"))] += 1 if j == k else 4
    for place in range(6):
        rows = added[14 * place : 14 * place + 14]
        assert {row["prompt"] for row in rows} == {f"p{place}"}
        assert Counter(kind_of(r) for r in rows if r["label"] == 1.0) == won
        assert Counter(frozenset(kind_of(r)) for r in rows if r["label"] == 0.5) == tied
        others = {row[s].split()[0] for row in rows for s in ("chosen", "rejected")} - {f"p{place}"}
        assert len(others) == 2  # j and k, the same in all of them
        ties = [{r["chosen"], r["rejected"]} for r in rows if r["label"] == 0.5]
        assert len({frozenset(t) for t in ties}) == 6  # every two of the four foreign responses
    assert ctx.logged == {"rrm/won": 48, "rrm/tied": 36}


def test_rows_are_whole_and_name_what_they_named(made, context, labelled):
    data = labelled(TEXTS, strength_mean=[float(i) for i in range(6)])
    after, _ = refined(made, context, data, share=1, wrong=0)
    known = {}
    for row in after:
        for side in ("chosen", "rejected"):
            parts = [row[f"{side}{part}"] for part in ("", "_ids", "_finished")]
            assert known.setdefault(row[f"{side}_id"], parts) == parts
            own = row[side].startswith(row["prompt"])
            assert row[f"{side}_gold"] == (float(len(row[side])) if own else None)
        assert row["prompt_ids"] == [row["prompt_id"]] == [int(row["prompt"][1:])]
        assert row["strength_mean"] == float(row["prompt"][1:])
        assert row["margin"] == 0.0
        assert row["weight"] == 1.0
    groups = Counter((row["iteration"], row["group"]) for row in after)
    assert set(groups.values()) == {1}  # nobody else's group is torn
    assert after.features == data.features


def test_a_share_of_them_is_drawn_and_prompts_are_others(labelled):
    texts = {f"p{i}": [(f"p{i} a", f"p{i} b"), (f"p{i} a", f"p{i} c")] for i in range(50)}
    made = candidates(labelled(texts), 0.25, torch.Generator().manual_seed(0))
    assert abs(len(made) - 350) < 4 * np.sqrt(1400 * 0.25 * 0.75)
    generator = torch.Generator().manual_seed(1)
    prompts = ["a", "a", "b", "c", "c", "d"]
    drawn = [foreign(prompts, 0, generator) for _ in range(200)]
    assert {frozenset(prompts[i] for i in two) for two in drawn} == {
        frozenset(two) for two in ("bc", "bd", "cd")
    }


def test_only_what_a_model_has_wrong_stays(made, context, labelled):
    """A model that likes "good" by one nat, whatever the prompt: P is .5, .73 or .27."""
    data = labelled(TEXTS)
    asked = []

    class Model:
        def score(self, prompts, responses, finished):
            assert len(prompts) == len(responses) == len(finished)
            return torch.tensor([float("good" in text) for text in responses])

    def fit(given, purpose):
        asked.append((given.to_list(), purpose))
        return Model()

    ctx = context(cached=lambda name, make: make(), fit=fit)
    after = made(RRM, share=1, wrong=0.25).refine_data(data, ctx)
    assert asked == [(data.to_list(), "rrm")]
    added = after.to_list()[len(data) :]
    # sigmoid(1) = .731: off by .269 where won, off by .231 where tied
    words = Counter(tuple(row[s].split()[1] for s in ("chosen", "rejected")) for row in added)
    two = ("good", "bad")
    assert words == {(a, b): 12 for a in two for b in two}
    assert {row["label"] for row in added} == {1.0}


def test_two_prompts_are_too_few(made, context, labelled):
    data = labelled({key: TEXTS[key] for key in ("p0", "p1")})
    with pytest.raises(ostinato.UserError, match="the data has 2 prompts, expected 3 or more"):
        refined(made, context, data, wrong=0)


def test_what_no_prompt_explains_pays_less(made, context, labelled):
    """All chosen are long and none is off its prompt: a model learns length, unless rows come.

    A logistic regression on two facts of a response: whether it names its prompt, and its length.
    """
    draw = np.random.default_rng(0)
    texts = {}
    for i in range(80):
        long, short = f"p{i} " + "x" * draw.integers(4, 9), f"p{i} " + "x" * draw.integers(1, 6)
        texts[f"p{i}"] = [(long, short)]
    data = labelled(texts)
    worth = {}
    for name, rows in {"plain": data, "rrm": refined(made, context, data, wrong=0)[0]}.items():
        facts = np.array(
            [
                [
                    [row[side].startswith(row["prompt"] + " "), len(row[side].split()[1])]
                    for side in ("chosen", "rejected")
                ]
                for row in rows
            ],
            dtype=float,
        )
        difference, label, slope = (
            facts[:, 0] - facts[:, 1],
            np.array(rows["label"][:]),
            np.zeros(2),
        )
        for _ in range(500):
            off = label - 1 / (1 + np.exp(-difference @ slope))
            slope += 0.1 * (difference * off[:, None]).mean(0) - 0.001 * slope
        worth[name] = slope
    assert worth["plain"][0] == 0  # it never saw a response off its prompt
    assert worth["rrm"][0] > 1
    assert worth["rrm"][1] < 0.5 * worth["plain"][1]
