"""The fixed mixtures with two members, cut short, resumed and read again: what lies between."""

from __future__ import annotations

import json

import pytest

import ostinato
from contrib_path import installed
from kill_runs import Crash, crash_at, differing, outcome
from mixing import covering, micro
from ostinato.config.reading import merged
from ostinato.models.reward_model import MEAN, Reader, load_reward
from ostinato_plugins.reward_models.brme import BRME
from text_samples import scored

MIXING = micro.mixing()
LISTED = covering.fixed_set(MIXING)
READERS = {**MEAN, "brme": Reader(BRME.read)}


# Members beside the heads, and no setting at its simplest.
CHANGES = {
    "reward_model": {"members": 2, "batch": 12, "accumulate": 3},  # groups: 2, 1, 1
    "preferences": {"responses": 3},
    "generation": {"temperature": 0.7},
    "rl": {"minibatch": 4, "accumulate": 2},
    "evaluation": {"every": 1},
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    made = micro.run_file(MIXING, LISTED, tmp_path_factory.mktemp("furnished"))
    return merged(made, CHANGES)


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    return ostinato.run(source, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("share", [0.4, 0.9])
def test_cut_short_and_resumed_it_ends_as_if_it_never_stopped(run, source, share, tmp_path):
    """Votes, displacements, dropout, two stages of heads: nothing of one method eats another's."""
    lines = len(outcome(run.directory))
    with crash_at(int(share * lines)), pytest.raises(Crash):
        ostinato.run(source, tmp_path / "cut")
    ostinato.run(source, tmp_path / "cut")
    assert differing(outcome(tmp_path / "cut"), outcome(run.directory)) == []


def test_so_it_does_with_what_distributions_of_others_bring(tmp_path):
    """What wrappers, a curriculum and a stop remember is in the checkpoints too."""
    listed = covering.fixed_set(MIXING, covering.AGAINST_HACKING)
    source = merged(micro.run_file(MIXING, listed, tmp_path), CHANGES)
    with installed():
        run = ostinato.run(source, tmp_path / "whole")
        assert micro.proof(MIXING, listed, run.metrics) == []
        with crash_at(int(0.7 * len(outcome(run.directory)))), pytest.raises(Crash):
            ostinato.run(source, tmp_path / "cut")
        ostinato.run(source, tmp_path / "cut")
    assert differing(outcome(tmp_path / "cut"), outcome(run.directory)) == []


def test_members_are_trained_apart_and_votes_plainly(run):
    """The voters of ``strength`` see neither the auxiliary terms nor the displacement."""
    rows = [r for r in run.metrics if r["kind"] == "reward_model" and r["iteration"] == 1]
    votes = [r for r in rows if r["purpose"].startswith("strength")]
    assert {r["purpose"] for r in votes} == {"strength 0", "strength 1"}
    assert {tuple(r["terms"]) for r in votes} == {("brme",)}
    trained = [r for r in rows if r not in votes]
    assert {r["member"] for r in trained} == {0, 1}
    assert {tuple(r["terms"]) for r in trained} == {("brme", "simcse/contrastive")}
    first = {r["member"]: r["terms"]["brme"] for r in reversed(trained) if r["step"] == 1}
    assert first[0] != first[1]


def test_sharpe_scales_the_penalty_by_the_variance(run):
    rows = [r for r in run.metrics if r["kind"] == "policy"]
    assert rows
    for row in rows:
        assert row["kl_scale"] > 0
        assert row["kl_scale"] != 1.0


def test_reward_models_come_back_from_the_run_folder(run):
    """Two members of two heads each, with the calibration that the log names."""
    for k in (1, 2):
        again = load_reward(run.directory / f"iteration-{k}" / "reward_model", READERS)
        logged = [r for r in run.metrics if r["kind"] == "reward_model_trained"][k - 1]
        found = [json.loads(json.dumps(vars(m.calibration))) for m in again.members]
        assert found == logged["calibration"]
        scores = scored(again, ["the soup :"], ["it was good ."], [True])
        assert scores.parts.shape[:2] == (1, 2)
        assert scores.parts.shape[2] == micro.SETTINGS["brme"]["heads"]


def test_every_method_acts_with_members_too(run):
    assert micro.proof(MIXING, LISTED, run.metrics) == []
