"""Finished runs, read back from their folders and put into groups that differ in the seed alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ostinato.config.errors import UserError
from ostinato.config.reading import flat

UNCOMPARED = ("seed", "backend", "checkpoint_every")  # what two runs of one group may differ in


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it; ``facts`` is run.yaml, ``rows`` is metrics.jsonl."""

    path: Path
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved run file."""
        config: dict[str, Any] = self.facts["config"]
        return config

    @property
    def iterations(self) -> list[dict[str, Any]]:
        """One summary row a finished iteration."""
        return [row for row in self.rows if row["kind"] == "iteration"]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """All ``eval`` rows."""
        return [row for row in self.rows if row["kind"] == "eval"]


def read_run(path: Path) -> RunRecord:
    """A run's folder; UserError in one sentence where it is none, damaged, or too young."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder")
    record, metrics = path / "run.yaml", path / "metrics.jsonl"
    if not record.is_file():
        raise UserError(f"{path}: holds no run.yaml, so it is not a run's folder")
    try:
        facts = yaml.safe_load(record.read_text(encoding="utf-8"))
        dict(facts["config"]), dict(facts["owners"]), list(facts["plugins"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        raise UserError(f"{record}: is damaged and cannot be read") from None
    found = RunRecord(path, facts, _rows(metrics))
    if not found.iterations:
        raise UserError(
            f"{path}: no iteration is finished yet; let the run go on first{_so_far(found)}"
        )
    return found


def _so_far(run: RunRecord) -> str:
    """The evaluations of an unfinished iteration, in brief."""
    if not run.evaluations:
        return ""
    last = run.evaluations[-1]
    known = [
        f"{name} {last[key]:+.2f}"
        for name, key in (("gold", "gold_reward"), ("proxy", "proxy_reward"), ("KL", "kl"))
        if isinstance(last.get(key), int | float)
    ]
    count = len(run.evaluations)
    return f" ({count} evaluation{'s' * (count > 1)}; rollout {last['step']}: {', '.join(known)})"


def _rows(metrics: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line without its end is one that is being written."""
    if not metrics.is_file():  # nothing was logged yet
        return []
    whole, _, _ = metrics.read_bytes().rpartition(b"\n")
    rows = []
    for i, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "kind": row["kind"], "iteration": int(row["iteration"])})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{metrics}: line {i} is damaged, expected a metrics row") from None
    return rows


@dataclass(frozen=True)
class Group:
    """Runs of one config that differ in their seed alone."""

    runs: list[RunRecord]
    settings: dict[str, Any]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config["seed"] for run in self.runs})

    def values(self, iteration: int, key: str) -> list[float]:
        """A measure at an iteration, one value a run that has it."""
        found = [r for run in self.runs for r in run.iterations if r["iteration"] == iteration]
        return [float(r[key]) for r in found if isinstance(r.get(key), int | float)]

    @property
    def iterations(self) -> list[int]:
        return sorted({row["iteration"] for run in self.runs for row in run.iterations})


def groups_of(runs: Sequence[RunRecord]) -> list[Group]:
    """The runs by config, in the order in which they came.

    Raises UserError where one folder is given twice.
    """
    paths = [run.path.resolve() for run in runs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{runs[i].path}: is given twice")
    groups: list[Group] = []
    for run in runs:
        settings = {k: v for k, v in run.config.items() if k not in UNCOMPARED}
        same = next((group for group in groups if group.settings == settings), None)
        if same is None:
            groups.append(Group([run], settings))
        else:
            same.runs.append(run)
    return groups


def titles(groups: Sequence[Group]) -> list[str]:
    """What tells the groups apart: the settings in which they differ."""
    every = [flat(group.settings) for group in groups]
    keys = list(dict.fromkeys(k for s in every for k in s))
    differing = [k for k in keys if len({str(s.get(k)) for s in every}) > 1]
    return [
        ", ".join(f"{key} {_short(settings.get(key))}" for key in differing)
        or str(group.settings.get("world") or group.runs[0].path)
        for group, settings in zip(groups, every, strict=True)
    ]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_short(v)}" for k, v in value.items())
    return "null" if value is None else str(value)
