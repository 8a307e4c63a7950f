"""``report.html``: one self-contained page of curves, tables, sample texts and settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ostinato.config.errors import UserError
from ostinato.contract.events import Event
from ostinato.report import gold_against_kl, tables
from ostinato.report.curves import group_curves, run_curves
from ostinato.report.gold_against_kl import Frontier, frontiers
from ostinato.report.results import Group, RunRecord, read_run


def run_page(run: RunRecord) -> str:
    """The page of one run."""
    (found,) = frontiers([Group([run])])
    settings = (run.path / "run.yaml").read_text(encoding="utf-8")
    values = {"curves": run_curves(run, found), "samples": _samples(run), "settings": settings}
    return _page("run.html", run=run, frontiers=found, **values)


def comparison_page(listed: Sequence[tuple[Group, str, Sequence[Frontier]]]) -> str:
    """The page that compares groups of runs, each with its title and its gold against KL."""
    return _page("comparison.html", groups=listed, curves=group_curves(listed))


def _page(template: str, **values: Any) -> str:
    made = Environment(
        loader=PackageLoader("ostinato.report"),
        autoescape=True,  # a run's folder, texts and settings are a stranger's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(tables=tables, gold_against_kl=gold_against_kl)
    return made.get_template(template).render(values)


def _samples(run: RunRecord) -> list[dict[str, Any]]:
    """The sample texts of each iteration's first and last evaluation."""
    found = []
    for k in Group([run]).evaluated:
        texts = [row.get("samples", []) for row in run.evaluations if row["iteration"] == k]
        for before, after in zip(texts[0], texts[-1], strict=False) if len(texts) > 1 else ():
            found.append({"iteration": k, "before": before, "after": after})
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
