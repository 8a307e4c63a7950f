"""Seven methods in one run of the toy world: each says in metrics.jsonl what it did."""

from __future__ import annotations

import pytest

import ostinato
from ostinato_plugins.data.flip import Flip
from ostinato_plugins.data.strength import Strength

SETTINGS = [
    "iterations=2",
    "plugins=[concat, liti, sharpe, simcse, metarm, {strength: {models: 2}}, flip]",
    "reward_model.members=3",
    "reward_model.updates=4",
    "reward_model.batch=8",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run, cut short once in its first data stage, after the votes, and resumed."""
    out = tmp_path_factory.mktemp("run") / "mixed"
    vote = Strength._vote

    def stop(self, data, ctx):
        raise RuntimeError("cut short")

    def only_later(self, data, ctx):
        assert ctx.iteration > 1, "the votes of iteration 1 lie in the run directory"
        return vote(self, data, ctx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flip, "refine_data", ostinato.hookimpl(stop))
        with pytest.raises(RuntimeError, match="cut short"):
            ostinato.run("toy", out, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Strength, "_vote", only_later)
        return ostinato.run("toy", out, SETTINGS)


def actions(run, kind, iteration, **where):
    """Every action of the rows of this kind, by plugin.hook."""
    rows = [r for r in run.metrics if r["kind"] == kind and r["iteration"] == iteration]
    rows = [r for r in rows if all(r[k] == v for k, v in where.items())]
    assert rows
    return [r["actions"] for r in rows]


@pytest.mark.parametrize("iteration", [1, 2])
def test_every_method_leaves_proof_that_it_acted(run, iteration):
    (data,) = actions(run, "actions", iteration, stage="data")
    assert data["concat.combine_data"] == data["strength.refine_data"] == 16 * iteration
    assert 0 <= data["flip.refine_data"] <= 16 * iteration
    (start,) = actions(run, "actions", iteration, stage="policy_init")
    assert (start["liti.init_policy"] > 0) == (iteration == 2)
    for row in actions(run, "policy", iteration):
        assert row["sharpe.reward_transform"] > 0
    for row in actions(run, "reward_model", iteration, purpose="reward model"):
        assert row["simcse.rm_loss"] > 0
        assert row["metarm.meta_update"] > 0


def test_members_are_trained_apart_and_votes_plainly(run):
    rows = [r for r in run.metrics if r["kind"] == "reward_model" and r["iteration"] == 1]
    trained = [r for r in rows if r["purpose"] == "reward model"]
    places = [(r["member"], r["step"]) for r in trained]
    assert places == [(m, s) for m in range(3) for s in (1, 2, 3, 4)]
    assert len({r["terms"]["bradley_terry"] for r in trained if r["step"] == 1}) == 3
    votes = [r for r in rows if r["purpose"].startswith("strength")]
    assert {r["purpose"] for r in votes} == {"strength 0", "strength 1"}
    assert {tuple(r["terms"]) for r in votes} == {("bradley_terry",)}
    assert {tuple(r["terms"]) for r in trained} == {("bradley_terry", "simcse/contrastive")}


def test_every_member_is_calibrated_and_measured(run):
    trained = [r for r in run.metrics if r["kind"] == "reward_model_trained"]
    assert [len(r["calibration"]) for r in trained] == [3, 3]
    assert all(c["std"] > 0 for r in trained for c in r["calibration"])
    assert all(0 <= a <= 1 for r in trained for a in r["held_out_accuracy"])


def test_sharpe_scales_the_penalty_by_the_members_variance(run):
    for row in (r for r in run.metrics if r["kind"] == "policy"):
        assert row["kl_scale"] > 0
        assert row["kl_scale"] != 1.0


def test_reward_models_come_back_from_the_run_folder(run):
    """What a stage saved is whole: three members, with the calibration that the log names."""
    from ostinato.reward_model import load_reward

    for k in (1, 2):
        again = load_reward(run.directory / f"iteration-{k}" / "reward_model")
        logged = [r for r in run.metrics if r["kind"] == "reward_model_trained"][k - 1]
        assert [m.calibration.__dict__ for m in again.members] == logged["calibration"]
