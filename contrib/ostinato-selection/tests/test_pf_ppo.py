"""Which responses stay, against the paper's weights and by hand; what filtering is for."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_selection.pf_ppo import PFPPO

import ostinato


def rollout(score, group):
    return SimpleNamespace(score=torch.tensor(score), group=torch.tensor(group))


SCORE = [0.1, 3.0, -2.0, 0.5, 9.0, 7.0, 8.0, 1.0]
GROUP = [0, 5, 0, 0, 5, 5, 5, 0]  # of prompt 0: rows 0 2 3 7; of prompt 5: rows 1 4 5 6


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep": "best"}, [3, 4, 6, 7]),
        ({"keep": "best", "share": 0.25}, [4, 7]),
        ({"keep": "best_worst"}, [1, 2, 4, 7]),
        ({"keep": "best_worst", "share": 0.75}, [1, 2, 3, 4, 6, 7]),
        ({"keep": "best_worst", "pool": "rollout", "share": 0.25}, [2, 4]),
        ({"keep": "best_random", "share": 1}, list(range(8))),
        ({"keep": "power", "share": 1}, list(range(8))),
    ],
)
def test_rows_that_stay(made, context, settings, kept):
    rows = made(PFPPO, **settings).filter_rollout(rollout(SCORE, GROUP), context())
    assert rows.dtype == torch.int64
    assert rows.tolist() == kept


def test_best_random_has_the_papers_weights(made, context):
    """Half of what is trained on is the best, the other half each other with 1/(2 (N - 1))."""
    score = np.random.default_rng(0).normal(size=5)
    plugin, seen = made(PFPPO, share=0.4), Counter()
    for seed in range(2000):
        seen.update(plugin.filter_rollout(rollout(score, [0] * 5), context(seed)).tolist())
    best = int(score.argmax())
    assert seen.pop(best) == 2000
    assert all(abs(count - 500) < 4 * np.sqrt(2000 * 3 / 16) for count in seen.values())
    assert len(seen) == 4


def test_power_draws_by_the_size_of_the_reward(made, context):
    score = [1.0, -2.0, 3.0]
    plugin, seen = made(PFPPO, keep="power", share=0.3, power=2.0), Counter()
    for seed in range(3000):
        seen.update(plugin.filter_rollout(rollout(score, [0] * 3), context(seed)).tolist())
    for row, chance in enumerate(np.square(score) / 14):
        assert abs(seen[row] - 3000 * chance) < 4 * np.sqrt(3000 * chance * (1 - chance))


@pytest.mark.parametrize("keep", ["best_worst", "best_random"])
def test_rewards_of_what_stays_say_more(made, context, keep):
    """The paper's criterion: R^2 of reward and true score, where middling rewards are noise."""
    draw = np.random.default_rng(1)
    true = draw.normal(size=4000)
    noise = draw.normal(size=4000)
    reward = np.where(np.abs(true) > 1, true, noise * 0.8)
    group = np.repeat(np.arange(500), 8)
    rows = made(PFPPO, keep=keep, share=0.25).filter_rollout(rollout(reward, group), context())
    r2 = [np.corrcoef(reward[r], true[r])[0, 1] ** 2 for r in (slice(None), rows.numpy())]
    assert r2[1] > r2[0] + 0.02


def test_one_response_a_prompt_has_no_rank(made, context):
    config = SimpleNamespace(rl=SimpleNamespace(rollout_size=2))
    with pytest.raises(ostinato.UserError, match="each prompt has one response; list an algorithm"):
        made(PFPPO).filter_rollout(rollout([1.0, 2.0], [0, 1]), context(config=config))
    config.rl.rollout_size = 4  # another filter has dropped the other two
    left = rollout([1.0, 2.0], [0, 1])
    for pool, kept in (("prompt", [0, 1]), ("rollout", [1])):
        plugin = made(PFPPO, keep="best", pool=pool)
        assert plugin.filter_rollout(left, context(config=config)).tolist() == kept


def test_it_may_stand_behind_a_filter_that_leaves_one_response_a_prompt(run):
    listed = [{"rejection_sampling": {"responses": 4}}, "pf_ppo"]
    policy = [row for row in run(listed).metrics if row["kind"] == "policy"]
    assert [row["kept"] for row in policy] == [2, 2]


def test_an_algorithm_of_one_response_a_prompt_is_refused_before_the_run(run, tmp_path):
    with pytest.raises(ostinato.UserError, match="each prompt has one response; list an algorithm"):
        run(["pf_ppo"])
    assert not (tmp_path / "run").exists()
    assert run([{"pf_ppo": {"pool": "rollout"}}]).metrics


def test_a_run_trains_on_half(run):
    rows = run(["rloo", "pf_ppo"]).metrics
    policy = [row for row in rows if row["kind"] == "policy"]
    assert [row["kept"] for row in policy] == [4, 4]
    assert [row["actions"]["pf_ppo.filter_rollout"] for row in policy] == [0.5, 0.5]
    assert all(row["pf_ppo/score"] != row["reward"] for row in policy)
