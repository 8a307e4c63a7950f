"""Finished runs, read back from their folders and put into groups that differ in the seed alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from ostinato.config.errors import UserError
from ostinato.config.reading import flat
from ostinato.config.records import FORMAT, Record
from ostinato.config.sections import plugin_name
from ostinato.config.yaml_files import read_file
from ostinato.report.tables import EVALUATION, known, number, readable

UNCOMPARED = ("seed", "backend", "checkpoint_every")  # what two runs of one group may differ in
WIDEST = 100  # characters of a group's title


class _Sample(BaseModel, strict=True):
    prompt: str
    response: str


class _Row(BaseModel, strict=True):
    """What a report reads of any row of metrics.jsonl, beside measures."""

    kind: str
    iteration: int
    step: int = 0
    samples: list[_Sample] = []


class _Evaluation(_Row, strict=True):
    kl: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it; ``config`` is the resolved run file, ``rows`` all metrics."""

    path: Path
    config: dict[str, Any]
    plugins: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @property
    def iterations(self) -> list[dict[str, Any]]:
        """One summary row a finished iteration."""
        return [row for row in self.rows if row["kind"] == "iteration"]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """All ``eval`` rows by rollout; a run writes that of a policy that was kept last."""
        found = [row for row in self.rows if row["kind"] == "eval"]
        return sorted(found, key=lambda row: (row["iteration"], row.get("step", 0)))


def read_run(path: Path) -> RunRecord:
    """A run's folder; UserError in one sentence where it is none, damaged, or too young."""
    record = path / "run.yaml"
    try:
        if not path.is_dir():
            what = "is a file, not a run's folder" if path.exists() else "no such run folder"
            raise UserError(f"{path}: {what}")
        if not record.is_file():
            raise UserError(f"{path}: holds no run.yaml, so it is not a run's folder")
        facts = read_file(record)
        if facts.get("format") != FORMAT:
            raise UserError(f"{path}: holds a run of another edition of Ostinato")
        Record.model_validate(facts)
        found = RunRecord(path, facts["config"], facts["plugins"], _rows(path))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{record}: is damaged at '{where}', and cannot be shown") from None
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    if not found.iterations:
        raise UserError(
            f"{path}: no iteration is finished yet; let the run go on first{_so_far(found)}"
        )
    return found


def _so_far(run: RunRecord) -> str:
    """The evaluations of an unfinished iteration, in brief."""
    if not run.evaluations:
        return ""
    last, count = run.evaluations[-1], len(run.evaluations)
    said = [f"{name} {number(last[key], f)}" for name, key, f in EVALUATION if known(last, key)]
    return f" ({count} evaluation{'s' * (count > 1)}; rollout {last['step']}: {', '.join(said)})"


def _finite(text: str) -> float:
    """A number of JSON; what Python alone takes, and what a float cannot hold, is none."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(text) if text.lstrip("-").isdigit() else value


def _rows(folder: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line without its end is one that is being written."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():  # nothing was logged yet
        return []
    marks = sorted(_marks(folder))  # before the rows, or a run that goes on may be ahead of them
    text = metrics.read_bytes()
    digest, at = hashlib.sha256(), 0
    for length, noted, done in marks:
        digest.update(text[at:length])
        at = length
        if digest.hexdigest() != noted:
            raise UserError(
                f"{metrics}: is not what {done} noted of it, so its numbers are not shown; one of "
                "the two was changed since the run wrote them, restore it"
            )
    rows = []
    for i, line in enumerate(text.rpartition(b"\n")[0].splitlines(), start=1):
        try:
            row = json.loads(line, parse_int=_finite, parse_float=_finite, parse_constant=_finite)
            (_Evaluation if row["kind"] in ("eval", "iteration") else _Row).model_validate(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{metrics}: line {i} is damaged, expected a metrics row") from None
        rows.append(row)
    return rows


def _marks(folder: Path) -> Iterator[tuple[int, str, Path]]:
    """What each finished stage noted of metrics.jsonl: its length then, and the checksum."""
    for done in folder.glob("iteration-*/*/done.json"):
        try:
            mark = json.loads(done.read_bytes())["metrics"]
            noted = int(mark["bytes"]), str(mark["sha256"]), done
        except (ValueError, TypeError, LookupError):
            continue  # what cannot be read says nothing of the rows
        if not done.parent.name.startswith("cache-"):  # made while rows were held back
            yield noted


@dataclass(frozen=True)
class Group:
    """Runs of one config that differ in their seed alone."""

    runs: list[RunRecord]

    @property
    def settings(self) -> dict[str, Any]:
        """What all runs of the group have in common; of a plugin's file its content."""
        first = self.runs[0]
        shared = {k: v for k, v in first.config.items() if k not in UNCOMPARED}
        entries = [e if isinstance(e, dict) else {e: {}} for e in shared.get("plugins", ())]
        sums = {p["name"]: {"file": p["sha256"][:12]} for p in first.plugins if p.get("sha256")}
        return shared | {
            "plugins": [
                {(n := plugin_name(name)): (own or {}) | sums.get(n, {}) for name, own in e.items()}
                for e in entries
            ]
        }

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config["seed"] for run in self.runs})

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The summary rows of all runs."""
        return [row for run in self.runs for row in run.iterations]

    @property
    def iterations(self) -> list[int]:
        return sorted({row["iteration"] for row in self.rows})

    @property
    def evaluated(self) -> list[int]:
        """The iterations again, and one that is not finished yet."""
        return sorted({row["iteration"] for run in self.runs for row in run.evaluations})

    def values(self, iteration: int, key: str) -> list[float]:
        """A measure at an iteration's end, one value a run that has it."""
        return [float(r[key]) for r in self.rows if r["iteration"] == iteration and known(r, key)]

    def points(self, iteration: int, *keys: str) -> list[tuple[float, ...]]:
        """Measures of an iteration's evaluations, all runs together, where all are known."""
        found = [r for run in self.runs for r in run.evaluations if r["iteration"] == iteration]
        return [
            tuple(float(r[key]) for key in keys) for r in found if all(known(r, k) for k in keys)
        ]


def groups_of(runs: Sequence[RunRecord]) -> list[Group]:
    """The runs by config, in the order in which they came.

    Raises UserError where one folder is given twice.
    """
    for path, count in Counter(run.path.resolve() for run in runs).items():
        if count > 1:
            raise UserError(f"{path}: is given twice")
    groups: list[Group] = []
    for run in runs:
        alone = Group([run])
        same = next((group for group in groups if group.settings == alone.settings), alone)
        if same is alone:
            groups.append(alone)
        else:
            same.runs.append(run)
    return groups


def titles(groups: Sequence[Group]) -> list[str]:
    """What tells the groups apart, on a line: the settings in which they differ, or the folder."""
    every = [_settings(group) for group in groups]
    keys = dict.fromkeys(key for settings in every for key in settings)
    first = every[0]
    differing = [k for k in keys if any(s.get(k, keys) != first.get(k, keys) for s in every)]
    made = [_title(*one, differing) for one in zip(groups, every, strict=True)]
    return [
        title if made.count(title) == 1 else f"{title} ({readable(group.runs[0].path.name)})"
        for title, group in zip(made, groups, strict=True)
    ]


def _title(group: Group, settings: dict[str, Any], differing: Sequence[str]) -> str:
    names = {key: key.removeprefix("plugins.") for key in differing}
    parts = [f"{name} {_brief(settings[k])}" for k, name in names.items() if k in settings]
    if not differing:
        parts = [Path(group.settings.get("world") or group.runs[0].path.resolve()).name]
    elif not parts:
        parts = [f"without {name}" for name in names.values()]
    return readable(", ".join(part.strip() for part in parts), WIDEST)


def _settings(group: Group) -> dict[str, Any]:
    """A group's settings as ``a.b.c`` keys, those of its plugins by their names."""
    settings = group.settings
    for entry in settings.pop("plugins"):
        settings |= {f"plugins.{name}": value for name, value in entry.items()}
    return flat(settings)


def _brief(value: Any) -> str:
    """A setting as a title has it; of a path its end, nothing of a plugin without settings."""
    if value == {}:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return readable("/".join(Path(text).parts[-2:]) if text.startswith("/") else text, 40)
