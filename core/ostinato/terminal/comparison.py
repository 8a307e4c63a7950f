"""``ostinato report``: the table of finished runs, mean and deviation over seeds, and pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ostinato.report.gold_against_kl import Frontier, frontiers
from ostinato.report.pages import comparison_page, run_page, write_page
from ostinato.report.results import Group, groups_of, read_run, titles
from ostinato.report.tables import OVER_RUNS, number, spread
from ostinato.terminal.printing import show


def table_of(group: Group) -> Table:
    """The last evaluation of each iteration, mean and standard deviation over the runs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("iter.", justify="right")
    for heading, _, _ in OVER_RUNS:
        table.add_column(heading, justify="right")
    for iteration in group.iterations:
        # the deviation below the mean, or six measures do not fit into 80 columns
        cells = [
            spread(group.values(iteration, key), form).replace(" ±", "\n±")
            for _, key, form in OVER_RUNS
        ]
        table.add_row(str(iteration), *cells)
    return table


def buckets_of(frontier: Frontier) -> Table:
    """Gold by bucket of KL, mean and standard deviation over the evaluations of all runs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("KL")
    for centre, _, _, _ in frontier.buckets:
        table.add_column(number(centre, ".2f"), justify="right")
    columns = [
        (number(mean, "+.2f"), f"± {number(std, '.2f')}", str(count))
        for _, mean, std, count in frontier.buckets
    ]
    for name, cells in zip(("gold", "", "points"), zip(*columns, strict=True), strict=True):
        table.add_row(name, *cells)
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
    runs = [read_run(path) for path in paths]
    groups = groups_of(runs)
    console = Console(highlight=False)
    for group, title, frontier in zip(groups, titles(groups), frontiers(groups), strict=True):
        show(console, "", heading_of(group, title), table_of(group))
        if frontier.buckets:
            show(console, buckets_of(frontier))
        show(console, frontier.words())
    written = [(run.path / "report.html", run_page(run)) for run in runs]
    if out is not None:
        written.append((out, comparison_page(groups, titles(groups))))
    for file, page in written:
        write_page(file, page)
        show(console, f"written: {file}")
