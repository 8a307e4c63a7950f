"""Mean and spread of rewards against NumPy, and which prompts are drawn for them."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_selection.curriculum import Curriculum, standard

import ostinato


class Prompts:
    def __init__(self, count):
        self.texts = [f"p{i}" for i in range(count)]

    def __len__(self):
        return len(self.texts)


def see(plugin, ctx, texts, scores):
    rewards = SimpleNamespace(samples=SimpleNamespace(prompts=texts), score=torch.tensor(scores))
    assert plugin.reward_transform(rewards, ctx) is rewards


def test_utilities_are_those_of_weighted_mean_and_spread(made, context):
    """Each observation counts ``memory`` less with every later one of its prompt."""
    plugin, ctx = made(Curriculum, spread=2.0, mean=-0.5, memory=0.7), context()
    draw = np.random.default_rng(0)
    rewards = {f"p{i}": draw.normal(i, i + 1, size=n).tolist() for i, n in enumerate((5, 3, 1, 6))}
    for text, scores in rewards.items():
        see(plugin, ctx, [text] * len(scores), scores)
    weight = {t: 0.7 ** np.arange(len(s))[::-1] for t, s in rewards.items()}
    mean = {t: np.average(s, weights=weight[t]) for t, s in rewards.items()}
    total = {t: w.sum() for t, w in weight.items()}
    every = np.concatenate(list(weight.values()))
    middle = np.average(np.concatenate(list(rewards.values())), weights=every)
    whole = np.average((np.concatenate(list(rewards.values())) - middle) ** 2, weights=every)
    squares = {t: (weight[t] * (np.array(s) - mean[t]) ** 2).sum() for t, s in rewards.items()}
    std = np.array([np.sqrt((squares[t] + 0.5 * whole) / (total[t] + 0.5)) for t in rewards])
    level = np.array([(total[t] * mean[t] + 0.5 * middle) / (total[t] + 0.5) for t in rewards])
    z = [(x - x.mean()) / x.std() for x in (std, level)]
    found = plugin.utilities(list(rewards))
    assert found.tolist() == pytest.approx((2.0 * z[0] - 0.5 * z[1]).tolist(), rel=1e-5)


def test_equal_facts_tell_no_prompts_apart():
    assert standard(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_prompts_whose_rewards_spread_are_drawn_more_often(made, context):
    """Half of the prompts have rewards that vary, the others' are all alike."""
    plugin, ctx = made(Curriculum, fresh=0.0, temperature=0.5), context()
    for _ in range(5):
        for sign in (-1.0, 1.0):
            see(
                plugin, ctx, [f"p{i}" for i in range(8)], [sign if i < 4 else 0.5 for i in range(8)]
            )
    drawn = [plugin.choose_prompts(Prompts(8), 2, 0, context(seed)) for seed in range(200)]
    assert all(len(set(rows)) == 2 for rows in drawn)  # none twice in a rollout
    varied = sum(row < 4 for rows in drawn for row in rows)
    assert varied > 330  # of 400; chance says 200
    easy = made(Curriculum, fresh=0.0, spread=0.0, mean=1.0, temperature=0.01)
    see(easy, ctx, [f"p{i}" for i in range(8)], [float(i) for i in range(8)])
    assert sorted(easy.choose_prompts(Prompts(8), 3, 0, ctx)) == [5, 6, 7]


def test_a_share_is_of_prompts_not_seen_yet(made, context):
    plugin, ctx = made(Curriculum, fresh=0.25), context()
    first = plugin.choose_prompts(Prompts(20), 8, 0, ctx)
    assert len(set(first)) == 8  # nothing is known: all are fresh
    see(plugin, ctx, [f"p{row}" for row in first], [0.0] * 8)
    second = plugin.choose_prompts(Prompts(20), 8, 1, ctx)
    assert len(set(second) - set(first)) == 2
    assert ctx.logged == {"curriculum/unseen": 12}
    many = plugin.choose_prompts(Prompts(20), 50, 2, ctx)
    assert (len(many), set(many)) == (50, set(range(20)))  # some come again, each at least twice


def test_what_is_known_comes_back_and_ends_with_its_iteration(made, context):
    plugin, ctx = made(Curriculum, fresh=0.0), context()
    see(plugin, ctx, ["p0", "p1", "p2"], [1.0, 2.0, 5.0])
    other = made(Curriculum, fresh=0.0)
    other.load_state_dict(plugin.state_dict())
    assert other.utilities(["p0", "p2"]).tolist() == plugin.utilities(["p0", "p2"]).tolist()
    other.choose_prompts(Prompts(3), 1, 0, context(iteration=2))
    assert other.known == {}


def test_a_run_draws_by_what_it_has_seen(run):
    rl = {"rollouts": 4, "rollout_size": 8, "minibatch": 8, "epochs": 1}
    rows = [
        r for r in run([{"curriculum": {"fresh": 0.5}}], rl=rl).metrics if r["kind"] == "policy"
    ]
    unseen = [row["curriculum/unseen"] for row in rows]
    assert [a - b for a, b in pairwise(unseen)] == [8, 4, 4]
    assert all(row["actions"]["curriculum.choose_prompts"] > 0 for row in rows)


def test_weights_of_nothing_are_refused(run):
    with pytest.raises(ostinato.UserError, match="spread and mean are both 0"):
        run([{"curriculum": {"spread": 0}}])
