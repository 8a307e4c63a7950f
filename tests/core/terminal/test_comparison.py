"""Reports of finished runs: means over seeds, and the pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from finished_runs import make_run
from ostinato.config.errors import UserError
from ostinato.contract.events import Event
from ostinato.report.pages import run_page, write_report
from ostinato.report.results import read_run
from ostinato.terminal.comparison import report_runs


class Page(HTMLParser):
    """Checks that tags close in order; keeps them, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in {"src", "href", "xlink:href"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_means_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golds = [(0.25, 0.75), (0.5, 1.0), (0.1, 1.7)]
    runs = [make_run(tmp_path / str(i), i, golds[i]) for i in range(3)]
    report_runs(runs)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    array = np.array(golds)
    for k in (0, 1):
        mean, std = array[:, k].mean(), array[:, k].std(ddof=1)
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{k + 1} {mean:+.2f} "))
        assert lines[place + 1].startswith(f"± {std:.2f} ± {std:.2f} ± {2 * std:.2f} ± 0.00")
    assert "3 runs, mean ± standard deviation, seeds 0, 1, 2" in " ".join(lines)
    assert all((run / "report.html").exists() for run in runs)


def test_the_page_of_a_run(tmp_path: Path) -> None:
    record = read_run(make_run(tmp_path / "run"))
    text = run_page(record)
    page = Page(text)
    assert page.tags.count("svg") == 2
    assert all(reference.startswith("#") for reference in page.references)
    assert "the &lt;soup&gt; :" in text
    assert "bland &amp; dull" in text
    assert "(nats per response)" in text
    assert text == run_page(record)


def test_the_comparison(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), i % 2, rl={"rollouts": 4 + i // 2}) for i in range(4)]
    out = tmp_path / "compare.html"
    report_runs(runs, out)
    text = out.read_text(encoding="utf-8")
    assert Page(text).tags.count("svg") == 2
    assert "rl.rollouts 4" in text
    assert text.count("+0.25 ± 0.00") == 2 * 2  # gold at first, gap at last, in both groups


def test_without_gold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run", golds=(None, None))
    report_runs([path], tmp_path / "all.html")
    assert re.search(r"^ +1 +– +– +– +4\.00 +– +0\.70$", capsys.readouterr().out, re.MULTILINE)
    Page((path / "report.html").read_text(encoding="utf-8"))
    Page((tmp_path / "all.html").read_text(encoding="utf-8"))


def test_a_finished_run_gets_its_page(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    write_report(Event("iteration_finished", 1))
    assert not (path / "report.html").exists()
    write_report(Event("run_finished", 2, data={"directory": path}))
    Page((path / "report.html").read_text(encoding="utf-8"))


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    (path / ".report.html.new").mkdir()
    with pytest.raises(UserError) as caught:
        report_runs([path])
    assert str(caught.value) == f"{path / 'report.html'}: cannot be written: Is a directory"
