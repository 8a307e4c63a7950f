"""A run that is stopped anywhere and goes on ends as if it had never stopped, bit for bit.

``tests/kill_runs.py`` does the same with kill -9, and with every single write.
"""

from __future__ import annotations

import importlib
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
from distributions import STATEFUL, offered, plugin, write_distribution
from kill_runs import (
    MICRO,
    MIXTURES,
    SIZES,
    Crash,
    append,
    crash_at,
    differing,
    mixture,
    outcome,
    run,
)
from mixing.micro import furnish
from ostinato import UserError
from ostinato.contract.events import Event
from ostinato.runs.metrics import Metrics

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
    def filter_rollout(self: Any, rollout: Any) -> torch.Tensor:
        return (rollout.score > rollout.score.mean()).nonzero().flatten()

    offered(monkeypatch, plugin(filter_rollout=filter_rollout))
    settings = [s for s in MICRO if not s.startswith("plugins")]
    settings += ["iterations=1", "rl.minibatch=2", "plugins=[concat, made]"]
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


@pytest.mark.parametrize("size", [2, 3])
def test_batches_of_two_and_three_round_as_if_nothing_had_been_loaded(
    size: int, tmp_path: Path
) -> None:
    """Their products depend on how the weights lie in memory."""
    settings = [*mixture("warp", (size, size), tmp_path), "plugins=[concat]", "iterations=1"]
    with crash_at(-1) as writes:
        ostinato.run("toy", tmp_path / "whole", settings)
    place = writes.index("before iteration-1/policy.checkpoints/policy-3")
    with crash_at(place), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "run", settings)
    ostinato.run("toy", tmp_path / "run", settings)
    assert differing(outcome(tmp_path / "run"), outcome(tmp_path / "whole")) == []


@pytest.fixture(scope="module")
def furniture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reward model of another run."""
    folder = tmp_path_factory.mktemp("furniture")
    furnish(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_two_crashes_of_a_mixture(
    name: str, site: Path, furniture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a checkpoint of the policy, and at any write; ``kill_runs.py`` takes more sizes."""
    place = list(MIXTURES).index(name)
    settings = mixture(name, SIZES[place % len(SIZES)], furniture)
    with crash_at(-1) as writes:
        run(tmp_path / "whole", settings)
    saved = [i for i, w in enumerate(writes) if w.startswith("after") and ".checkpoints/" in w]
    for number in (saved[len(saved) * 2 // 3] + 1, random.Random(place).randrange(2, 12)):
        with crash_at(number), pytest.raises(Crash):
            run(tmp_path / "run", settings)
    run(tmp_path / "run", settings)
    assert differing(outcome(tmp_path / "run"), outcome(tmp_path / "whole")) == []


def test_checkpoints_by_time_change_nothing(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that runs at any pace; the run says so in run.yaml, and nowhere else."""
    draw, now = random.Random(0), [0.0]

    def clock() -> float:
        now[0] += draw.choice([0.0, 40.0, 200.0])
        return now[0]

    monkeypatch.setattr("ostinato.runs.checkpoints.time.monotonic", clock)
    settings = [*MICRO, "checkpoint_every=3 min"]
    with crash_at(-1) as writes:
        ostinato.run("toy", tmp_path / "timed", settings)
    before = [w for w in writes if w.startswith("after") and "policy.checkpoints" in w]
    assert len(before) < len([w for w in WRITES if w.startswith("after") and "checkpoints" in w])
    assert all(f"after iteration-{k}/policy.checkpoints/policy-4" in before for k in (1, 2))
    for number in (len(writes) * 2 // 3, 20):
        with crash_at(number), pytest.raises(Crash):
            ostinato.run("toy", tmp_path / "run", settings)
    ostinato.run("toy", tmp_path / "run", settings)
    assert differing(outcome(tmp_path / "run"), whole) == ["run.yaml"]


TALLY = """
    from ostinato import hookimpl


    class Tally:
        "The newest reward model, and how often it was asked for one."

        def __init__(self):
            self.asked = 0

        @hookimpl
        def combine_rm(self, reward_models):
            self.asked += 1
            return reward_models[-1]

        @hookimpl
        def evaluate(self, ctx):
            return {"asked": self.asked}

        def state_dict(self):
            return {"asked": self.asked}

        def load_state_dict(self, state):
            self.asked = state["asked"]
    """


def test_a_reward_that_is_combined_again_counts_once(site: Path, tmp_path: Path) -> None:
    """Loading R_k asks the plugin again, so its state comes back after that."""
    write_distribution(site, "tally_plugin", TALLY, {"tally": "Tally"})
    settings = [*(s for s in MICRO if not s.startswith("plugins")), "plugins=[concat, tally]"]
    with crash_at(-1) as writes:
        run = ostinato.run("toy", tmp_path / "whole", settings)
    counts = [row["tally/asked"] for row in run.metrics if row["kind"] == "eval"]
    assert counts == [1, 1, 1, 2, 2, 2]
    with crash_at(writes.index("before iteration-2/policy_init")), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "run", settings)
    ostinato.run("toy", tmp_path / "run", settings)
    assert differing(outcome(tmp_path / "run"), outcome(tmp_path / "whole")) == []


TWICE = """
    from ostinato import hookimpl


    class Twice:
        "A warm-up and a run, by names of which one begins like the other."

        def __init__(self):
            self.names = ["policy-warmup", "policy"]

        @hookimpl
        def train_policy(self, optimise, initial, reward_model):
            for name in self.names:
                initial = optimise(initial, reward_model, name=name)
            return initial
    """


TWO_RUNS = [
    *(s for s in MICRO if not s.startswith("plugins")),
    "plugins=[concat, twice]",
    "iterations=1",
]


@pytest.fixture(scope="module")
def twice(site: Path) -> Any:
    """The plugin, installed."""
    write_distribution(site, "twice_plugin", TWICE, {"twice": "Twice"})
    yield importlib.import_module("twice_plugin").Twice
    sys.modules.pop("twice_plugin")


def test_two_runs_of_an_iteration_are_both_made(twice: Any, tmp_path: Path) -> None:
    settings = TWO_RUNS
    with crash_at(-1) as writes:
        run = ostinato.run("toy", tmp_path / "whole", settings)
    names = [row["name"] for row in run.metrics if row["kind"] == "policy"]
    assert names == ["policy-warmup"] * 4 + ["policy"] * 4
    for place in ("policy-warmup-4", "policy-2"):
        number = writes.index(f"after iteration-1/policy.checkpoints/{place}")
        with crash_at(number + 1), pytest.raises(Crash):
            ostinato.run("toy", tmp_path / place, settings)
        ostinato.run("toy", tmp_path / place, settings)
        assert differing(outcome(tmp_path / place), outcome(tmp_path / "whole")) == []


def test_a_name_that_is_used_twice_is_refused(
    twice: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run would go on from the first one's last checkpoint, and do nothing."""
    monkeypatch.setattr(twice, "__init__", lambda self: setattr(self, "names", ["a", "a"]))
    with pytest.raises(UserError) as caught:
        ostinato.run("toy", tmp_path / "run", TWO_RUNS)
    assert str(caught.value) == (
        "plugin 'twice': hook 'train_policy' made two runs with the name 'a'; give each a name of "
        "its own, optimise(name=...)"
    )


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
