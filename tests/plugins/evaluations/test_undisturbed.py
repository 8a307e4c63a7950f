"""No evaluation plugin changes the run that it measures, and all of them measure it."""

from __future__ import annotations

import json

import ostinato

SMALL = [
    "iterations=1",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
]
ADDED = {"agreement", "best_of_n", "win_rate"}


def test_a_run_has_the_same_numbers_with_and_without_them(tmp_path):
    plain = ostinato.run("toy", tmp_path / "plain", [*SMALL, "plugins=[worst_case]"])
    judge = {"template": "{prompt} {second} {first}", "lead": "overall"}
    judge |= {"answers": [" great", " awful"]}
    win_rate = {"judge": judge, "against": str(plain.directory)}
    listed = ["worst_case", "agreement", {"best_of_n": {"n": [2, 3]}}, {"win_rate": win_rate}]
    wanted = f"plugins={json.dumps(listed)}"
    rich = ostinato.run("toy", tmp_path / "rich", [*SMALL, wanted])
    added = set()

    def bare(row):
        mine = {key for key in row if key.split("/")[0] in ADDED}
        added.update(mine)
        kept = {key: value for key, value in row.items() if key not in mine and key != "seconds"}
        actions = kept.get("actions", {})
        return kept | {
            "actions": {k: v for k, v in actions.items() if k.split(".")[0] not in ADDED}
        }

    assert [bare(row) for row in rich.metrics] == [bare(row) for row in plain.metrics]
    weights = "iteration-1/policy/model.safetensors"
    both = [(run.directory / weights).read_bytes() for run in (plain, rich)]
    assert both[0] == both[1]
    last = rich.iterations[-1]
    assert {
        f"best_of_n/{key}_{n}" for key in ("gold", "proxy", "kl_bound") for n in (2, 3)
    } <= added
    assert {"agreement/accuracy", "agreement/spearman", "win_rate/tie"} <= added
    assert last["best_of_n/proxy_3"] > last["best_of_n/proxy_2"]
    for kind in ("", "judge_", "against_", "against_judge_"):
        shares = [last[f"win_rate/{kind}{key}"] for key in ("win", "tie", "lose")]
        assert abs(sum(shares) - 1) < 1e-9
