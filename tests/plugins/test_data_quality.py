"""Strength, flip, soft_labels, margin and balance together (Secrets of RLHF II, 2.5)."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

import ostinato
from ostinato import UserError
from ostinato.data.preferences import load_data
from ostinato.data.training import refine_data
from ostinato_plugins.data.per_prompt_balance import PerPromptBalance
from ostinato_plugins.data.strength import Strength

STRENGTH = np.array([0.5, -0.1, 2.0, -3.0, 0.0, 1.0, -0.2, 0.3])


def refined(kit, data, *names):
    """D_k after ``strength`` with known votes, then the others in this order."""
    one = kit.make("strength", *names)
    votes = {c: STRENGTH.tolist() for c in ("strength_mean", "strength_std")}
    ctx = one.ctx.at(cached=lambda name, make: data.from_dict(votes))
    made = refine_data(data, one.plugins, ctx)
    one.ctx.logged.clear()
    return one, made


FLIPPED = STRENGTH < 0


def test_flip_and_margin_in_either_order(kit, comparisons):
    """Both point from chosen to rejected: the margin of what was flipped is its absolute value."""
    data = comparisons(8)
    for names in permutations(["flip", "margin"]):
        _, made = refined(kit, data, *names)
        assert made["margin"][:] == np.abs(STRENGTH).tolist()
        assert (np.array(made["chosen"]) != np.array(data["chosen"])).tolist() == FLIPPED.tolist()


def test_soft_labels_and_margin(kit, comparisons):
    """The paper's fourth method: smoothed where negative, a margin, negative there, everywhere."""
    for names in permutations(["soft_labels", "margin"]):
        _, made = refined(kit, comparisons(8), *names)
        assert made["margin"][:] == STRENGTH.tolist()
        assert made["label"][:] == np.where(FLIPPED, 0.9, 1.0).tolist()


def test_all_four(kit, comparisons):
    """Soft labels before flip soften what is flipped; after it no strength is negative."""
    for names in permutations(["flip", "margin", "soft_labels"]):
        one, made = refined(kit, comparisons(8), *names)
        before = names.index("soft_labels") < names.index("flip")
        assert made["margin"][:] == np.abs(STRENGTH).tolist()
        assert made["label"][:] == np.where(FLIPPED & before, 0.9, 1.0).tolist()
        changed = one.plugins.taken_actions()["soft_labels.refine_data"]
        assert changed == (FLIPPED.sum() if before else 0)


@pytest.mark.parametrize(
    "plugins",
    [
        ["flip", "margin"],
        ["soft_labels", "margin"],
        ["flip", "margin", "soft_labels"],
        ["flip", "soft_labels", "k_wise", "per_prompt_balance"],
        ["flip", "margin", "per_prompt_balance", "centre", "lm_regulariser", "simcse"],
    ],
)
def test_they_train_a_reward_model_together(kit, comparisons, plugins):
    one, made = refined(kit, comparisons(8), *plugins)
    one.ctx.config.reward_model.updates = 2
    one.trainer()(one.initial(), made)
    terms = one.rows[-1]["terms"]
    assert len(terms) == 1 + len({"centre", "lm_regulariser", "simcse"} & set(plugins))
    assert all(np.isfinite(value) for value in terms.values())


@pytest.mark.parametrize(
    ("plugins", "complaint"),
    [
        (["flip", "strength"], "'flip' consumes column 'strength_mean', which no plugin listed be"),
        (["soft_labels"], "'soft_labels' consumes column 'strength_mean'"),
        (["margin", "strength"], "'margin' consumes column 'strength_mean', which no plugin liste"),
        (["strength", "margin", "k_wise"], "'margin' provides column 'margin', which nothing"),
    ],
)
def test_what_cannot_work_is_one_sentence(kit, plugins, complaint):
    with pytest.raises(UserError) as caught:
        kit.make(*plugins)
    assert any(complaint in line for line in str(caught.value).splitlines())


SETTINGS = [
    "iterations=1",
    "plugins=[{strength: {models: 2}}, soft_labels, flip, margin, per_prompt_balance, centre, "
    "lm_regulariser]",
    "preferences.responses=3",
    "reward_model.updates=3",
    "reward_model.batch=12",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
]


def timeless(run):
    """The metrics without their timings."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics]


def test_a_run_that_is_resumed_votes_once_and_ends_the_same(tmp_path):
    """Cut short in the last link of the chain: the votes are read, everything after them made."""
    whole = ostinato.run("toy", tmp_path / "whole", SETTINGS)

    def stop(self, data):
        raise RuntimeError("cut short")

    def never(self, data, ctx):
        raise AssertionError("the votes lie in the run directory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerPromptBalance, "refine_data", ostinato.hookimpl(stop))
        with pytest.raises(RuntimeError, match="cut short"):
            ostinato.run("toy", tmp_path / "cut", SETTINGS)
    assert (tmp_path / "cut" / "iteration-1" / "cache-strength").is_dir()
    assert not (tmp_path / "cut" / "iteration-1" / "data").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Strength, "_vote", never)
        again = ostinato.run("toy", tmp_path / "cut", SETTINGS)
    assert timeless(again) == timeless(whole)
    data = [load_data(run.directory / "iteration-1" / "data") for run in (whole, again)]
    assert data[0].to_dict() == data[1].to_dict()
    assert data[0]["weight"][:] == pytest.approx([1 / 3] * 48)
    assert min(data[0]["strength_mean"]) >= 0  # flipped where the votes were below 0
    assert data[0]["margin"][:] == data[0]["strength_mean"][:]
    trained = [r for r in whole.metrics if r.get("purpose") == "reward model"]
    assert set(trained[0]["terms"]) == {"bradley_terry", "centre/squared", "lm_regulariser/nll"}
