"""``report.html``: one self-contained page of curves, tables, sample texts and settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ostinato.config.errors import UserError
from ostinato.contract.events import Event
from ostinato.report.curves import group_figures, run_figures
from ostinato.report.gold_against_kl import FIT, FIT_HEADS, Frontier, frontiers
from ostinato.report.results import Group, RunRecord, read_run
from ostinato.report.tables import (
    ITERATION,
    LEGEND,
    MMD,
    OVER_RUNS,
    measured,
    number,
    readable,
    saturation,
    spread,
)


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("ostinato.report"),
        autoescape=True,  # a run's folder, texts and settings are a stranger's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(readable=readable, number=number)
    made.globals.update(legend=LEGEND, fit=FIT, fit_heads=FIT_HEADS)
    return made


def run_page(run: RunRecord) -> str:
    """The page of one run."""
    columns = (*ITERATION, MMD)
    (found,) = frontiers([Group([run], {})])
    return (
        _templates()
        .get_template("run.html")
        .render(
            title=readable(run.path.resolve().name),
            run=run,
            heads=["iteration", *(heading for heading, _, _ in columns)],
            rows=[
                [row["iteration"], *(measured(row, key, form) for _, key, form in columns)]
                for row in run.iterations
            ],
            saturation=saturation(run.iterations),
            figures=run_figures(run),
            fits=[frontier.cells() for frontier in found],
            samples=_samples(run),
            settings=(run.path / "run.yaml").read_text(encoding="utf-8"),
        )
    )


def comparison_page(groups: Sequence[Group], titles: Sequence[str]) -> str:
    """The page that compares groups of runs."""
    columns = (*OVER_RUNS, MMD)
    return (
        _templates()
        .get_template("comparison.html")
        .render(
            title="Runs compared",
            figures=group_figures(groups, titles),
            heads=["iteration", *(heading for heading, _, _ in columns)],
            groups=[
                {
                    "title": title,
                    "seeds": group.seeds,
                    "runs": [readable(str(run.path)) for run in group.runs],
                    "rows": [
                        [k, *(spread(group.values(k, key), form) for _, key, form in columns)]
                        for k in group.iterations
                    ],
                    "saturation": saturation([row for run in group.runs for row in run.iterations]),
                    "fits": [frontier.cells() for frontier in found],
                    "buckets": [row for frontier in found for row in _buckets(frontier)],
                }
                for group, title, found in zip(groups, titles, frontiers(groups), strict=True)
            ],
        )
    )


def _buckets(frontier: Frontier) -> list[list[str]]:
    return [
        [
            str(frontier.iteration),
            number(kl, ".2f"),
            f"{number(mean, '+.2f')} ± {number(std, '.2f')}",
            str(count),
        ]
        for kl, mean, std, count in frontier.buckets
    ]


def _samples(run: RunRecord) -> list[dict[str, Any]]:
    """The sample texts of each iteration's first and last evaluation."""
    found = []
    for k in sorted({row["iteration"] for row in run.evaluations}):
        texts = [row.get("samples", []) for row in run.evaluations if row["iteration"] == k]
        for before, after in zip(texts[0], texts[-1], strict=False) if len(texts) > 1 else ():
            one = {"iteration": k, "prompt": before["prompt"], "before": before, "after": after}
            found.append(one)
    return found


def write_page(file: Path, page: str) -> None:
    """Write a page whole; UserError where the place cannot be written."""
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def write_report(event: Event) -> None:
    """A watcher that leaves report.html in a run when it is finished."""
    if event.kind == "run_finished":
        folder = Path(event.data["directory"])
        write_page(folder / "report.html", run_page(read_run(folder)))
