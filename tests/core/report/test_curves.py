"""The curves of a run's page."""

from __future__ import annotations

import re
from pathlib import Path

from finished_runs import make_run
from ostinato.report.curves import run_curves
from ostinato.report.gold_against_kl import frontiers
from ostinato.report.results import Group, read_run


def test_the_iterations_stand_on_the_same_axes(tmp_path: Path) -> None:
    """The second one's gold goes to 9, so the first one's axis does."""
    for golds in ((0.5, 9.0), (9.0, 0.5)):
        run = read_run(make_run(tmp_path / str(golds), golds=golds))
        panels = run_curves(run, *frontiers([Group([run])]))[1].panels
        first, second = (re.findall(r"<text[^>]*>([^<]*)</text>", svg) for svg in panels)
        assert first[-1] == "iteration 1"
        assert second[-1] == "iteration 2"
        assert first[:-1] == second[:-1]
        assert "8" in first
