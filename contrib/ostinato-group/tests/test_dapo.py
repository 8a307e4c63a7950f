"""DAPO's two further hooks: which groups are trained on, and what long responses cost."""

from types import SimpleNamespace

import pytest
import torch
from ostinato_group.dapo import DAPO

import ostinato


def kept(plugin, rollout, ctx, score, group):
    batch = rollout([[-1.0]] * len(score), score, group)
    return plugin(DAPO, responses=2).filter_rollout(batch, ctx).tolist()


def test_groups_of_one_reward_go(plugin, rollout, ctx):
    score = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, -2.0, -1.0]
    assert kept(plugin, rollout, ctx, score, [4, 4, 5, 5, 6, 6, 7, 7]) == [0, 1, 6, 7]
    assert ctx.logged == {"dapo/groups_of_one_reward": 0.5}


def test_a_group_need_not_be_whole_nor_side_by_side(plugin, rollout, ctx):
    assert kept(plugin, rollout, ctx, [1.0, 3.0, 2.0, 3.0, 5.0], [0, 1, 0, 1, 2]) == [0, 2]
    assert kept(plugin, rollout, ctx, [1.0, 1.0 + 5e-5], [0, 0]) == []  # rounding is no spread


@pytest.mark.parametrize(
    ("share", "lost"),
    [(0.5, [0.0, 0.0, 0.2, 1.0, 1.0]), (0.2, [0, 0, 0, 1, 1]), (0.0, [0] * 5)],
)
def test_the_last_tokens_cost_reward(plugin, ctx, share, lost):
    """By hand, of at most 10 tokens; one of 12, which no run has, loses no more than 1."""
    lengths = [3, 5, 6, 10, 12]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    samples = ostinato.Samples(None, None, None, None, mask, None)
    score = torch.arange(5.0)
    zeros = torch.zeros(5, 12)
    given = dict.fromkeys(("parts", "part_std", "finished", "group", "kl_scale"))
    given |= {"logprobs": zeros, "ref_logprobs": zeros, "mask": mask}
    before = ostinato.RewardBatch(samples=samples, score=score, iteration=1, step=0, **given)
    after = plugin(DAPO, overlong=share).reward_transform(before, ctx)
    assert (score - after.score).tolist() == pytest.approx(lost)
    assert ctx.logged["dapo/overlong"] == pytest.approx(sum(lost) / 5)
    assert before.score.tolist() == [0, 1, 2, 3, 4]


def test_a_rollout_is_filled_up_with_groups_that_differ(tmp_path):
    """Reward 1 for a response with an even number of words: a group is often of one reward."""
    rule = tmp_path / "even.py"
    rule.write_text(
        "def even(completions):\n    return [len(c.split()) % 2 for c in completions]\n"
    )
    settings = [
        "iterations=1",
        "rl.rollouts=3",
        "rl.rollout_size=8",
        "rl.minibatch=8",
        "prompts.evaluation=8",
        f"plugins=[{{function_reward: {{functions: ['{rule}:even']}}}}, "
        "{dapo: {responses: 2, refill: 8, overlong: 0}}]",
    ]
    run = ostinato.run("toy", tmp_path / "run", settings)
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert [row["kept"] for row in rows] == [8, 8, 8]
    assert sum(row["attempts"] for row in rows) > 3
    assert any(row["actions"]["dapo.filter_rollout"] > 0 for row in rows)
    # in each of the four groups of two that are left, one response is better and one is worse
    seen = SimpleNamespace(**rows[0]["actions"])
    assert getattr(seen, "dapo.policy_algorithm") > 0
