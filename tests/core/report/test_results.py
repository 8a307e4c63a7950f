"""Finished runs read back: groups, runs cut short, and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finished_runs import make_run
from ostinato.config.errors import UserError
from ostinato.report.results import groups_of, read_run, titles


def test_groups_differ_in_more_than_the_seed(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a", 0, rl={"rollouts": 4, "lr": 0.1}, backend={"threads": 1}),
        make_run(tmp_path / "b", 0, rl={"rollouts": 8, "lr": 0.1}, plugins=[{"ppo": {"clip": 1}}]),
        make_run(tmp_path / "c", 1, rl={"rollouts": 4, "lr": 0.1}, backend={"threads": 2}),
    ]
    groups = groups_of([read_run(path) for path in paths])
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert groups[0].seeds == [0, 1]
    assert titles(groups) == [
        "rl.rollouts 4, plugins null",
        "rl.rollouts 8, plugins [ppo: clip: 1]",
    ]
    with pytest.raises(UserError, match="is given twice"):
        groups_of([read_run(paths[0]), read_run(paths[0])])


def test_runs_of_unequal_length(tmp_path: Path) -> None:
    long = make_run(tmp_path / "long", 0, (0.25, 0.75), iterations=2)
    short = make_run(tmp_path / "short", 1, (0.5,), iterations=2)
    [group] = groups_of([read_run(long), read_run(short)])
    assert group.values(1, "gold_reward") == [0.25, 0.5]
    assert group.values(2, "gold_reward") == [0.75]


def test_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ev')
    assert len(read_run(path).iterations) == 2


def _no_folder(path: Path) -> str:
    return f"{path / 'none'}: no such run folder"


def _no_metrics(path: Path) -> str:
    """Paused before anything was logged."""
    (path / "metrics.jsonl").unlink()
    return f"{path}: no iteration is finished yet; let the run go on first"


def _no_record(path: Path) -> str:
    (path / "run.yaml").unlink()
    return f"{path}: holds no run.yaml, so it is not a run's folder"


def _bad_record(path: Path) -> str:
    (path / "run.yaml").write_text("config: [")
    return f"{path / 'run.yaml'}: is damaged and cannot be read"


def _other_record(path: Path) -> str:
    (path / "run.yaml").write_text("config: {seed: 0}\n")
    return f"{path / 'run.yaml'}: is damaged and cannot be read"


def _bad_line(path: Path) -> str:
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:20]
    file.write_text("\n".join(lines) + "\n")
    return f"{file}: line 3 is damaged, expected a metrics row"


def _no_row(path: Path) -> str:
    file = path / "metrics.jsonl"
    file.write_text("[1]\n")
    return f"{file}: line 1 is damaged, expected a metrics row"


def _no_iteration(path: Path) -> str:
    file = path / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    return (
        f"{path}: no iteration is finished yet; let the run go on first "
        "(2 evaluations; rollout 4: gold +0.25, proxy +2.00, KL +4.00)"
    )


@pytest.mark.parametrize(
    "damage",
    [
        _no_folder,
        _no_metrics,
        _no_record,
        _bad_record,
        _other_record,
        _bad_line,
        _no_row,
        _no_iteration,
    ],
)
def test_damage_is_one_sentence(damage: Any, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    expected = damage(path)
    given = path / "none" if damage is _no_folder else path
    with pytest.raises(UserError) as caught:
        read_run(given)
    assert str(caught.value) == expected
