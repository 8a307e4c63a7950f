"""WARP whole: an EMA anchor, runs merged by SLERP, and LITI, over two iterations of a toy run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import ostinato
from kill_runs import Crash, crash_at, differing, outcome
from ostinato import UserError
from ostinato.contract.plugins import activate
from policy_kit import Watched, float64

TINY = [
    "iterations=2",
    "plugins=[concat, worst_case, {warp: {mu: 0.2}}]",
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "checkpoint_every=1",
]
SMALL = {"rollouts": 2, "rollout_size": 8, "minibatch": 8, "epochs": 2, "lr": 1e-2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, what it leaves, its writes) of a run that was never stopped."""
    out = tmp_path_factory.mktemp("warp") / "run"
    with crash_at(-1) as writes:
        ostinato.run("toy", out, TINY)
    return out, outcome(out), writes


def rows(out, kind, iteration):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [r for r in found if r["kind"] == kind and r["iteration"] == iteration]


def test_the_next_start_is_liti_of_the_last_one_and_the_merged_policy(run):
    out, _, _ = run
    start = json.loads((out / "iteration-1/policy_init/policy_init.json").read_text())
    assert start == {"policy": "sft"}
    names = ("sft", "iteration-1/policy", "iteration-2/policy_init")
    sft, merged, start = (load_file(out / name / "model.safetensors") for name in names)
    for name, weight in sft.items():
        wanted = 0.7 * weight.astype(np.float64) + 0.3 * merged[name].astype(np.float64)
        np.testing.assert_allclose(start[name], wanted, atol=1e-6, err_msg=name)
    assert max(np.abs(start[n] - sft[n]).max() for n in sft) > 1e-4


def test_an_iteration_is_evaluated_where_it_starts_and_merged(run):
    out, _, _ = run
    for k in (1, 2):
        first, last = rows(out, "eval", k)
        assert (first["step"], last["step"]) == (0, 4)  # 2 runs of 2 rollouts
        assert first["kl_init"] == pytest.approx(0, abs=1e-6)
        assert last["kl_init"] > 0.01
        assert last["warp/distance"] > 0
        trained = [(r["name"], r["step"]) for r in rows(out, "policy", k)]
        assert trained == [("run-1", 1), ("run-1", 2), ("run-2", 1), ("run-2", 2)]
    assert rows(out, "eval", 2)[0]["kl"] > 0.001  # to SFT, from which LITI has moved
    assert rows(out, "eval", 1)[1]["kl"] == rows(out, "eval", 1)[1]["kl_init"]


# Where it is killed, and the rollouts that are then still made.
BOTH = [("run-1", 1), ("run-1", 2), ("run-2", 1), ("run-2", 2)]
CHECKPOINTS = "iteration-2/policy.checkpoints"
MOMENTS = {
    f"before {CHECKPOINTS}/evaluation-1-0": BOTH,
    f"after {CHECKPOINTS}/run-2-1": BOTH[3:],  # in the middle of run 2
    f"before {CHECKPOINTS}/evaluation-2-4": [],
    "before iteration-2/policy": [],
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bits_and_makes_no_rollout_twice(run, moment, tmp_path):
    folder, whole, writes = run
    made = []

    def watch(event):
        if event.kind == "stage_advanced" and event.data["stage"] == "policy":
            made.append((event.data["row"]["name"], event.data["row"]["step"]))

    out = tmp_path / "run"
    shutil.copytree(folder, out)
    shutil.rmtree(out / "iteration-2/policy")  # the last stage; all before it is only loaded
    before = writes.index("after iteration-2/policy_init") + 1
    with crash_at(writes.index(moment) - before) as seen, pytest.raises(Crash):
        ostinato.run("toy", out, TINY)
    assert seen[-1] == moment
    ostinato.run("toy", out, TINY, watch=[watch])
    assert differing(outcome(out), whole) == []
    assert made == MOMENTS[moment]


@pytest.mark.parametrize("count", [1, 2])
def test_each_run_has_an_anchor_of_its_own_and_the_merge_is_slerp(policies, function_reward, count):
    """One run alone is EMA and LITI; the anchor of each starts from pi_k_init again."""
    mu = 0.3
    kit = policies.make(plugins=[{"warp": {"runs": count, "mu": mu}}], rl=SMALL)
    initial, thetas = kit.word_policy(), {}

    class Recording(Watched):
        def __call__(self, *models, on_update, name, **asked):
            def recorded(policy, anchor):
                thetas.setdefault(name, []).append(float64(policy))
                on_update(policy, anchor)

            return super().__call__(*models, on_update=recorded, name=name, **asked)

    watched = Recording(kit.engine([[2], [3, 4], [5, 2]]))
    merged = kit.plugins.call(
        "warp",
        "train_policy",
        optimise=watched,
        initial=initial,
        reward_model=function_reward(lambda s: (s.response_ids == 4).float().mean(1)),
        data=None,
        prompts=None,
        ctx=kit.ctx,
    )
    start, found = float64(initial), float64(merged)
    ends = [float64(end) for end in watched.ends]
    lasts = [tensors for step, tensors in kit.directory.checkpoints if step == 2 and tensors]
    assert len(lasts) == len(ends) == count
    for name, origin in start.items():
        for seen, tensors in zip(thetas.values(), lasts, strict=True):
            n = len(seen)
            wanted = (1 - mu) ** n * origin
            wanted += sum(mu * (1 - mu) ** (n - 1 - i) * p[name] for i, p in enumerate(seen))
            kept = tensors[f"reference.lm.{name}"].double().numpy()
            np.testing.assert_allclose(kept, wanted, atol=1e-6, err_msg=name)
        if count == 1:
            np.testing.assert_array_equal(found[name], ends[0][name])
            continue
        x, y = (end[name] - origin for end in ends)
        cos = (x * y).sum() / (np.sqrt((x**2).sum() * (y**2).sum()) or 1.0)
        half = np.arccos(np.clip(cos, -1, 1)) / 2
        share = 0.5 / np.cos(half)  # sin(W/2) / sin W
        np.testing.assert_allclose(found[name], origin + share * (x + y), atol=2e-6)


@pytest.mark.parametrize(
    ("key", "value"), [("runs", 0), ("runs", 2.5), ("mu", 2), ("eta", -0.1), ("etta", 0.3)]
)
def test_wrong_settings_are_refused(key, value):
    with pytest.raises(UserError, match=rf"plugins\.warp\.{key}"):
        activate([("warp", {key: value})], "test")


def test_the_settings_are_the_papers():
    settings = activate([("warp", {})], "test")["warp"].settings
    assert settings == {"runs": 2, "mu": 0.01, "eta": 0.3}


def test_it_owns_the_start_too():
    with pytest.raises(UserError, match="'warp' and 'liti' claim it"):
        activate([("warp", {}), ("liti", {})], "test")
