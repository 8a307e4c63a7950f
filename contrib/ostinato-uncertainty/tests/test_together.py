"""Methods of this package in one run with each other and with built-in ones, and cut short."""

import numpy as np
import pytest
from uncertainty_kit import actions, toy


def test_advpo_stands_with_warp(tmp_path):
    run = toy(tmp_path / "run", "advpo, warp")
    assert actions(run, "advpo.wrap_reward")[0] > 0
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
