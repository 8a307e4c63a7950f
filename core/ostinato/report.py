"""Finished runs, read back: means over seeds by iteration, as a table; ``report.html`` beside."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ostinato.console import number, show
from ostinato.errors import UserError
from ostinato.events import Event

# (heading, key of an iteration's row, format)
MEASURES = (
    ("gold", "gold_reward", "+.2f"),
    ("gap", "gap", "+.2f"),
    ("gap, newest RM", "gap_latest", "+.2f"),
    ("KL", "kl", ".2f"),
    ("MMD", "mmd", ".3f"),
    ("accuracy", "accuracy", ".2f"),
)
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
    for file in (record, metrics):
        if not file.is_file():
            raise UserError(f"{path}: holds no {file.name}, so it is not a run's folder")
    try:
        facts = yaml.safe_load(record.read_text(encoding="utf-8"))
        dict(facts["config"]), dict(facts["owners"]), list(facts["plugins"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        raise UserError(f"{record}: is damaged and cannot be read") from None
    found = RunRecord(path, facts, _rows(metrics))
    if not found.iterations:
        raise UserError(f"{metrics}: no iteration is finished yet; let the run go on first")
    return found


def _rows(metrics: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line without its end is one that is being written."""
    whole, _, _ = metrics.read_bytes().rpartition(b"\n")
    rows = []
    for i, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "kind": row["kind"], "iteration": int(row["iteration"])})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{metrics}: line {i} is damaged, expected a metrics row") from None
    return rows


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``a.b.c`` keys."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix: settings}
    return {
        k: v
        for key, value in settings.items()
        for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


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


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (ddof 1); the value alone of one run."""
    if not values:
        return number(None, form)
    mean = number(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {number(statistics.stdev(values), form.removeprefix('+'))}"


def table_of(group: Group) -> Table:
    """The last evaluation of each iteration, mean and standard deviation over the runs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("iter.", justify="right")
    for heading, _, _ in MEASURES:
        table.add_column(heading, justify="right")
    for iteration in group.iterations:
        # the deviation below the mean, or six measures do not fit into 80 columns
        cells = [
            spread(group.values(iteration, key), form).replace(" ±", "\n±")
            for _, key, form in MEASURES
        ]
        table.add_row(str(iteration), *cells)
    return table


def heading_of(group: Group, title: str) -> Text:
    """A group's title, and how many runs of which seeds it holds."""
    count = len(group.runs)
    seeds = ", ".join(map(str, group.seeds))
    runs = "1 run" if count == 1 else f"{count} runs, mean ± standard deviation"
    return Text.assemble(
        (title, "bold"), (f"  {runs}, seed{'s' * (len(group.seeds) > 1)} {seeds}", "dim")
    )


def report_runs(paths: Sequence[Path], out: Path | None = None) -> None:
    """Print the runs by iteration; write report.html into each, and the comparison to ``out``."""
    from ostinato.report_html import comparison_page, run_page, write_page

    runs = [read_run(path) for path in paths]
    groups = groups_of(runs)
    console = Console(highlight=False)
    for group, title in zip(groups, titles(groups), strict=True):
        show(console, "", heading_of(group, title), table_of(group))
    written = [(run.path / "report.html", run_page(run)) for run in runs]
    if out is not None:
        written.append((out, comparison_page(groups, titles(groups))))
    for file, page in written:
        write_page(file, page)
        show(console, f"written: {file}")


def write_report(event: Event) -> None:
    """A watcher that leaves report.html in a run when it is finished."""
    if event.kind == "run_finished":
        from ostinato.report_html import run_page, write_page

        folder = Path(event.data["directory"])
        write_page(folder / "report.html", run_page(read_run(folder)))
