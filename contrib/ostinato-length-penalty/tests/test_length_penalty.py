"""The penalty against numbers worked out by hand, and in a run of the toy world."""

from types import SimpleNamespace

import pytest
import torch
from ostinato_length_penalty import LengthPenalty

import ostinato

TINY = ("iterations=1", "rl.rollouts=2", "rl.rollout_size=8", "rl.minibatch=8")
SMALL = ("reward_model.updates=3", "prompts.preference=16", "prompts.evaluation=8")


def rewards(lengths, scores):
    """A batch of rollouts with these lengths and scores."""
    score = torch.tensor(scores)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    samples = ostinato.Samples(None, None, None, None, mask, None)
    rest = dict.fromkeys(("parts", "part_std", "logprobs", "ref_logprobs", "finished", "group"))
    kl_scale = torch.ones_like(score)
    return ostinato.RewardBatch(
        samples=samples, score=score, mask=mask, kl_scale=kl_scale, iteration=1, step=0, **rest
    )


def test_each_token_beyond_the_free_ones_costs_its_weight():
    plugin = LengthPenalty()
    plugin.config = LengthPenalty.Config(free=2, weight=0.25)
    logged = {}
    before = rewards([1, 2, 3, 6], [1.0, 1.0, 1.0, -1.0])
    after = plugin.reward_transform(before, SimpleNamespace(log=logged.update))
    assert after.score.tolist() == [1.0, 1.0, 0.75, -2.0]
    assert before.score.tolist() == [1.0, 1.0, 1.0, -1.0]  # what was given is left alone
    assert logged == {"length_penalty/tokens_over": 1.25}


def test_it_acts_in_a_run(tmp_path):
    listed = "plugins=[{length_penalty: {free: 4, weight: 0.5}}]"
    unclipped = "rl.clip_score=null"
    run = ostinato.run("toy", tmp_path / "run", [*TINY, *SMALL, unclipped, listed])
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert len(rows) == 2
    for row in rows:
        taken_off = 0.5 * row["length_penalty/tokens_over"]
        assert taken_off > 0
        assert row["actions"]["length_penalty.reward_transform"] == pytest.approx(taken_off)
        assert row["reward"] == pytest.approx(row["score"] - taken_off, abs=1e-5)


def test_a_wrong_setting_is_refused(tmp_path):
    with pytest.raises(ostinato.UserError, match="did you mean 'weight'"):
        ostinato.run("toy", tmp_path / "run", ["plugins=[{length_penalty: {weigth: 1}}]"])
