"""Several runs an iteration, merged by SLERP of their task vectors (WARP 3.2)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostinato import UserError
from ostinato.contract.plugins import activate
from policy_kit import Watched, float64

PROMPTS = [[2], [3, 4], [5, 2], [4, 4], [2, 2, 3]]
SMALL = {"rollouts": 3, "rollout_size": 8, "minibatch": 8, "epochs": 2, "lr": 1e-2}


def spherical(x, y, t):
    """SLERP of two tensors in float64, from the formula; no plane to turn in: linear."""
    norms = math.sqrt((x**2).sum() * (y**2).sum())
    angle = math.acos(min(1.0, max(-1.0, (x * y).sum() / norms))) if norms else 0.0
    if math.sin(angle) < 1e-4:
        return (1 - t) * x + t * y
    return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)


def merge(policies, function_reward, runs, **policy):
    """(kit, initial, the watched engine, the merged policy, [(policy, step) evaluated])."""
    kit = policies.make(plugins=[{"slerp_runs": {"runs": runs}}], rl=SMALL, policy=policy)
    evaluated = []
    engine = kit.engine(PROMPTS, lambda made, step: evaluated.append((float64(made), step)))
    watched, initial = Watched(engine), kit.word_policy()
    merged = kit.plugins.call(
        "slerp_runs",
        "train_policy",
        optimise=watched,
        initial=initial,
        reward_model=function_reward(lambda s: (s.response_ids == 4).float().mean(1)),
        data=None,
        prompts=None,
        ctx=kit.ctx,
    )
    return kit, initial, watched, merged, evaluated


@pytest.mark.parametrize("value", ["shared", "separate"])
@pytest.mark.parametrize("runs", [2, 3])
def test_the_merge_is_slerp_tensor_by_tensor_in_float64(policies, function_reward, runs, value):
    _, initial, watched, merged, evaluated = merge(policies, function_reward, runs, value=value)
    start, ends = float64(initial), [float64(end) for end in watched.ends]
    assert len(ends) == runs
    found = float64(merged)
    assert max(np.abs(found[name] - start[name]).max() for name in start) > 0.01
    for name, origin in start.items():
        wanted = ends[0][name] - origin
        for m in range(2, runs + 1):  # the m-th with t = 1/m
            wanted = spherical(wanted, ends[m - 1][name] - origin, 1 / m)
        np.testing.assert_allclose(found[name], origin + wanted, atol=2e-6, err_msg=name)
    assert merged.value_head is None  # as of every policy between two iterations
    assert merged.value_trunk is None
    # evaluated where it starts, and merged, with the rollouts that all runs have cost
    assert [step for _, step in evaluated] == [0, 3 * runs]
    for given, policy in zip((p for p, _ in evaluated), (start, found), strict=True):
        assert all(np.array_equal(given[name], policy[name]) for name in policy)


def test_runs_differ_in_prompts_and_samples_and_the_start_is_left_alone(policies, function_reward):
    kit, initial, watched, _, _ = merge(policies, function_reward, 2)
    assert [asked["name"] for asked in watched.runs] == ["run-1", "run-2"]
    assert not any(asked["evaluate"] for asked in watched.runs)
    assert [(row["name"], row["step"]) for row in kit.rows] == [
        (f"run-{m}", step) for m in (1, 2) for step in (1, 2, 3)
    ]
    one, other = ([r["score"] for r in kit.rows if r["name"] == f"run-{m}"] for m in (1, 2))
    assert one != other
    fresh = float64(kit.word_policy())
    assert all(np.array_equal(w, fresh[name]) for name, w in float64(initial).items())


def test_effect_slerp_keeps_the_norm_of_trained_task_vectors(policies, function_reward):
    """WARP 3.2: averaging shrinks the task vectors of two runs, and SLERP does not."""
    kit, initial, watched, merged, _ = merge(policies, function_reward, 2)
    start, ends = float64(initial), [float64(end) for end in watched.ends]

    def norm(weights):
        return math.sqrt(sum(((weights[n] - start[n]) ** 2).sum() for n in start))

    reached = (norm(ends[0]) + norm(ends[1])) / 2
    averaged = norm({n: (ends[0][n] + ends[1][n]) / 2 for n in start})
    assert averaged < 0.9 * reached
    assert norm(float64(merged)) == pytest.approx(reached, rel=0.02)
    logged = kit.plugins.logged if kit.plugins.logged else kit.ctx.logged
    assert logged["slerp_runs/distance"] == pytest.approx(norm(float64(merged)), rel=1e-4)
    assert logged["slerp_runs/run_distance"] == pytest.approx(reached, rel=1e-4)


@pytest.mark.parametrize("runs", [1, 0, -2, 1.5])
def test_a_wrong_number_of_runs_is_refused(runs):
    with pytest.raises(UserError, match=r"plugins\.slerp_runs\.runs"):
        activate([("slerp_runs", {"runs": runs})], "test")


def test_its_parts_have_one_owner():
    with pytest.raises(UserError, match="'slerp_runs' and 'ema_anchor' claim it"):
        activate([("slerp_runs", {}), ("ema_anchor", {})], "test")
