"""A run that is stopped anywhere and goes on ends as if it had never stopped, bit for bit.

``tests/kill_runs.py`` does the same with kill -9, and with every single write.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ostinato
from distributions import STATEFUL, write_distribution
from kill_runs import MICRO, Crash, append, crash_at, differing, outcome
from ostinato.contract.events import Event
from ostinato.runs.metrics import Metrics
from ostinato_plugins.optimisers.ppo import PPO

WRITES: list[str] = []  # of the whole run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an installed plugin that holds state."""
    folder = tmp_path_factory.mktemp("site")
    write_distribution(folder, "drift_plugin", STATEFUL, {"drift": "Drift"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("drift_plugin", None)


@pytest.fixture(scope="module")
def whole(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with crash_at(-1) as writes:
        ostinato.run("toy", out, MICRO)
    WRITES.extend(writes)
    return outcome(out)


def test_the_same_run_twice_is_the_same(whole: dict[str, Any], tmp_path: Path) -> None:
    ostinato.run("toy", tmp_path / "again", MICRO)
    assert differing(outcome(tmp_path / "again"), whole) == []
    ostinato.run("toy", tmp_path / "again", MICRO)  # a finished run is only loaded
    assert differing(outcome(tmp_path / "again"), whole) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_crashes_again_and_again(
    seed: int, whole: dict[str, Any], tmp_path: Path
) -> None:
    draw = random.Random(seed)  # a stage of its own takes at most 12 writes
    stopped = []
    for _ in range(40):
        with crash_at(draw.randint(12, 24)):
            try:
                ostinato.run("toy", tmp_path / "run", MICRO)
            except Crash as crash:
                stopped.append(str(crash))
            else:
                break
    assert len(stopped) >= 5
    assert differing(outcome(tmp_path / "run"), whole) == []


def test_a_crash_between_an_evaluation_and_its_checkpoint(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    place = "before iteration-2/policy.checkpoints/policy-2"
    assert WRITES[WRITES.index(place) - 1] == "a eval row"
    with crash_at(WRITES.index(place)), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "run", MICRO)
    ostinato.run("toy", tmp_path / "run", MICRO)
    assert differing(outcome(tmp_path / "run"), whole) == []


def test_a_crash_of_a_run_whose_rollouts_take_differing_numbers_of_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(self: PPO, rollout: Any) -> torch.Tensor:
        return (rollout.score > rollout.score.mean()).nonzero().flatten()

    monkeypatch.setattr(PPO, "keep", keep, raising=False)
    settings = [s for s in MICRO if not s.startswith("plugins")]
    settings += ["iterations=1", "rl.minibatch=2", "plugins=[concat]"]
    with crash_at(-1) as writes:
        run = ostinato.run("toy", tmp_path / "whole", settings)
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert len({row["kept"] for row in rows}) > 1
    assert rows[-1]["updates"] == sum(2 * -(-row["kept"] // 2) for row in rows)  # two epochs
    place = writes.index("before iteration-1/policy.checkpoints/policy-3")
    with crash_at(place), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "run", settings)
    ostinato.run("toy", tmp_path / "run", settings)
    assert differing(outcome(tmp_path / "run"), outcome(tmp_path / "whole")) == []


def test_a_crash_of_a_run_whose_value_model_starts_from_the_reward_model(tmp_path: Path) -> None:
    """It learns on from its checkpoint, not from the reward model again."""
    settings = [s for s in MICRO if not s.startswith("plugins")]
    settings += ["plugins=[worst_case]", "policy.value=reward_model", "iterations=1"]
    with crash_at(-1) as writes:
        ostinato.run("toy", tmp_path / "whole", settings)
    for step in (1, 3):  # before the first checkpoint, and after two
        place = writes.index(f"before iteration-1/policy.checkpoints/policy-{step}")
        with crash_at(place), pytest.raises(Crash):
            ostinato.run("toy", tmp_path / f"run-{step}", settings)
        ostinato.run("toy", tmp_path / f"run-{step}", settings)
        assert differing(outcome(tmp_path / f"run-{step}"), outcome(tmp_path / "whole")) == []


def test_an_interrupt_from_the_keyboard(whole: dict[str, Any], tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if event.kind == "evaluated" and (event.iteration, event.step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ostinato.run("toy", tmp_path / "run", MICRO, watch=[interrupt])
    resumed = []
    ostinato.run("toy", tmp_path / "run", MICRO, watch=[resumed.append])
    assert resumed[0].data["resumed"]
    assert differing(outcome(tmp_path / "run"), whole) == []


@pytest.mark.slow
def test_a_terminated_process(whole: dict[str, Any], site: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import ostinato\n"
        f"ostinato.run('toy', {str(out)!r}, {MICRO!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        while process.poll() is None and not (out / "iteration-1/policy.checkpoints").exists():
            time.sleep(0.01)
    finally:
        process.terminate()
        assert process.wait() == -signal.SIGTERM
    ostinato.run("toy", out, MICRO)
    assert differing(outcome(out), whole) == []


def test_a_run_of_one_iteration_goes_on_to_two(whole: dict[str, Any], tmp_path: Path) -> None:
    ostinato.run("toy", tmp_path / "run", [*MICRO, "iterations=1"])
    done = ostinato.run("toy", tmp_path / "run", MICRO)
    assert [row["iteration"] for row in done.iterations] == [1, 2]
    assert differing(outcome(tmp_path / "run"), whole) == []


def test_the_comparison_sees_a_difference(whole: dict[str, Any], tmp_path: Path) -> None:
    ostinato.run("toy", tmp_path / "run", [*MICRO, "seed=1"])
    wrong = differing(outcome(tmp_path / "run"), whole)
    assert "iteration-2/policy/model.safetensors" in wrong
    assert "run.yaml" in wrong
    append(tmp_path / "run" / "metrics.jsonl", '{"kind": "x"}\n')
    assert len(differing(outcome(tmp_path / "run"), whole)) == len(wrong) + 1


def test_nothing_is_left_that_only_a_resume_needs(whole: dict[str, Any]) -> None:
    assert not [name for name in whole if ".checkpoints" in name or ".making" in name]


def test_a_row_half_written_does_not_survive(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m")
    metrics.write({"kind": "x", "number": 0})
    with crash_at(0), pytest.raises(Crash):
        metrics.write({"kind": "x", "number": 1})
    assert not metrics.path.read_text().endswith("}\n")
    metrics.write({"kind": "x", "number": 1})
    assert [row["number"] for row in metrics.rows()] == [0, 1]
