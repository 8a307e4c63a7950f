"""``ostinato report``: the table of finished runs, mean and deviation over seeds, and pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ostinato.config.errors import UserError
from ostinato.report.gold_against_kl import FIT, FIT_HEADS, NONE, Frontier, frontiers
from ostinato.report.pages import comparison_page, run_page, write_page
from ostinato.report.results import Group, RunRecord, groups_of, read_run, titles
from ostinato.report.tables import OVER_RUNS, number, saturation, spread
from ostinato.terminal.printing import Screen, numbers, show


def table_of(group: Group) -> Table:
    """The last evaluation of each iteration, mean and standard deviation over the runs."""
    rows = [
        # the deviation below the mean, or eight measures do not fit into 80 columns
        [str(k), *(spread(group.values(k, key), f).replace(" ±", "\n±") for _, key, f in OVER_RUNS)]
        for k in group.iterations
    ]
    return numbers(["iter.", *(heading for heading, _, _ in OVER_RUNS)], rows)


def buckets_of(found: Sequence[Frontier]) -> Table:
    """Gold by iteration and bucket of KL, mean and deviation over the evaluations of all runs."""
    places = sorted({place for frontier in found for place in frontier.buckets})
    heads = [f"to {number(found[0].edges[p + 1], '.2f')}" if p else "at 0" for p in places]
    rows = []
    for frontier in found:
        cells = [str(frontier.iteration)]
        for place in places:
            _, mean, std, count = frontier.buckets.get(place, (None, None, None, 0))
            deviation = f"\n± {number(std, '.2f')}" if count > 1 else ""
            cells.append(number(mean, "+.2f") + deviation)
        rows.append(cells)
    return numbers(["iter.", *heads], rows)


def heading_of(group: Group, title: str) -> Text:
    """A group's title, and how many runs of which seeds it holds."""
    count, seeds = len(group.runs), group.seeds
    runs = "1 run" if count == 1 else f"{count} runs, mean ± standard deviation"
    about = f"  {runs}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return Text.assemble((title, "bold"), (about, "dim"))


def report_runs(paths: Sequence[Path], out: Path | None = None) -> None:
    """Print the runs by iteration; write report.html into each, and the comparison to ``out``.

    A path that holds no run to show, and a page that cannot be written into a run, is a warning.
    """
    runs = _runs(paths)
    groups = groups_of(runs)
    screen = Screen()
    listed = list(zip(groups, titles(groups), frontiers(groups), strict=True))
    for group, title, found in listed:
        show(screen, "", heading_of(group, title), table_of(group))
        if said := saturation(group.rows):
            show(screen, said)
        if found:
            fits = numbers(FIT_HEADS, [frontier.cells() for frontier in found])
            fits.columns[-1].justify = "left"
            show(screen, "Gold by KL:", buckets_of(found), "Gao's fit:", fits)
        else:
            show(screen, NONE)
    if any(found for _, _, found in listed):
        show(screen, FIT, "")
    written = []
    for run in runs:
        try:
            write_page(run.path / "report.html", run_page(run))
            written.append(str(run.path / "report.html"))
        except UserError as error:
            _warn(str(error))
    if len(written) > 1:
        written = [f"report.html in {len(written)} run folders"]
    if out is not None:
        write_page(out, comparison_page(listed))
        written.append(str(out))
    if written:
        show(screen, f"written: {', '.join(written)}")


def _runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs that can be shown; UserError where there is none."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except UserError as error:
            problems.append(str(error))
    if not runs:
        raise UserError("\n".join(problems))
    for problem in problems:
        _warn(f"left out: {problem}")
    return runs


def _warn(text: str) -> None:
    Screen(stderr=True).print(f"warning: {text}", style="yellow", soft_wrap=True)
