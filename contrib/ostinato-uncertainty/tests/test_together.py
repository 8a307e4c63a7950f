"""Methods of this package in one run with each other and with built-in ones, and cut short."""

import re

import numpy as np
import pytest
from uncertainty_kit import actions, toy

import ostinato


def test_advpo_stands_with_warp(tmp_path):
    run = toy(tmp_path / "run", "advpo, warp")
    assert actions(run, "advpo.reward_transform")[0] > 0
    assert max(actions(run, "warp.train_policy")) > 0
    rows = [row for row in run.metrics if row["kind"] == "eval"]
    assert all(np.isfinite(row["advpo/uncertainty"]) for row in rows)


def test_inform_stands_with_sharpe_over_three_members_and_with_ibl(tmp_path):
    listed = "{inform: {latent: 4}}, ibl, sharpe"
    run = toy(tmp_path / "run", listed, "reward_model.members=3")
    assert all(x > 0 for x in actions(run, "sharpe.reward_transform"))
    assert actions(run, "ibl.wrap_reward")[0] > 0
    trained = next(row for row in run.metrics if row["kind"] == "reward_model_trained")
    assert len(trained["calibration"]) == 3


RULES = "{function_reward: {functions: [FILE:length, FILE:length]}}"


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("advpo, RULES", "needs the features of reward models, and the reward is of plugin 'func"),
        ("ibl, RULES", "needs the features of reward models, and the reward is of plugin 'func"),
        ("purm, RULES", "'function_reward' brings parts that have none"),
        ("uarm", "needs the variance of the reward, and that of plugin 'take_last_rm' has one"),
        ("uarm, ensemble", "needs the variance of the reward, and that of plugin 'ensemble' has"),
        ("uarm, warm", "'uarm' needs the variance of members, and 'warm' makes one model of them"),
        ("{uwo: {over: heads}}, uarm", "plugin 'uwo' needs at least 2"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(tmp_path, listed, said):
    rules = tmp_path / "rules.py"
    rules.write_text("def length(completions):\n    return [len(text) for text in completions]\n")
    members = 2 if "warm" in listed else 1
    listed = listed.replace("RULES", RULES.replace("FILE", str(rules)))
    with pytest.raises(ostinato.UserError, match=re.escape(said)):
        toy(tmp_path / "run", listed, f"reward_model.members={members}")
    assert not (tmp_path / "run").exists()


def test_a_penalty_that_is_off_asks_for_no_standard_deviation(tmp_path):
    first = toy(tmp_path / "first", "", "rl.rollouts=1").directory / "iteration-1" / "reward_model"
    fused = f"{{reward_fusion: {{models: ['{first}']}}}}"
    with pytest.raises(ostinato.UserError, match="'reward_fusion' brings parts that have none"):
        toy(tmp_path / "refused", f"purm, {fused}")
    run = toy(tmp_path / "run", f"{{purm: {{penalty: 0}}}}, {fused}", "rl.rollouts=1")
    assert actions(run, "purm.train_rm")[0] > 0
    assert actions(run, "purm.reward_transform") == [0.0]


class Stopped(Exception):
    """The run is cut short."""


@pytest.mark.parametrize(
    "listed", ["{inform: {latent: 4}}, ibl", "advpo, warm", "purm", "laplace_head, bspo"]
)
def test_a_run_that_is_cut_short_goes_on_as_if_it_had_not_been(tmp_path, listed):
    """Cut after two rollouts: what readers, wrappers and states know comes back."""
    settings = ("checkpoint_every=1", "reward_model.members=2", "rl.rollouts=3")
    whole = toy(tmp_path / "whole", listed, *settings)

    def cut(event):
        if event.kind == "stage_advanced" and event.data["stage"] == "policy" and event.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        toy(tmp_path / "cut", listed, *settings, watch=[cut])
    resumed = toy(tmp_path / "cut", listed, *settings)
    for before, after in zip(whole.metrics, resumed.metrics, strict=True):
        for key in ("kind", "score", "reward", "kl", "gold_sft_std", "proxy_sft_std", "terms"):
            assert before.get(key) == after.get(key)
