"""The penalty against numbers worked out by hand, in a run, and as any plugin must be."""

import pytest
from ostinato_length_penalty import LengthPenalty

import ostinato
from ostinato import testing


def test_each_token_beyond_the_free_ones_costs_its_weight():
    plugin, ctx = testing.configured(LengthPenalty, free=2, weight=0.25), testing.context()
    before = testing.rewards([1, 2, 3, 6], score=[1.0, 1.0, 1.0, -1.0])
    assert plugin.reward_transform(before, ctx).score.tolist() == [1.0, 1.0, 0.75, -2.0]
    assert ctx.logged == {"length_penalty/tokens_over": 1.25}


def test_it_acts_in_a_run(ostinato_run):
    run = ostinato_run([{LengthPenalty: {"free": 4, "weight": 0.5}}])
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert len(rows) == 4
    for row in rows:
        taken_off = 0.5 * row["length_penalty/tokens_over"]
        assert taken_off > 0
        assert row["actions"]["length_penalty.reward_transform"] == pytest.approx(taken_off)
        assert row["reward"] == pytest.approx(row["score"] - taken_off, abs=1e-5)


def test_a_wrong_setting_is_refused():
    with pytest.raises(ostinato.UserError, match="did you mean 'weight'"):
        testing.configured(LengthPenalty, weigth=1)


def test_it_conforms():
    testing.conformance(LengthPenalty, {"free": 4, "weight": 0.5})
