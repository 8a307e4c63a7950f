"""Reports of finished runs on the terminal: means over seeds, and what cannot be shown."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from finished_runs import change_rows, make_run
from ostinato.config.errors import UserError
from ostinato.terminal.comparison import report_runs


def test_means_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golds = [(0.25, 0.75), (0.5, 1.0), (0.1, 1.7)]
    runs = [make_run(tmp_path / str(i), i, golds[i]) for i in range(3)]
    report_runs(runs)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    array = np.array(golds)
    for k in (0, 1):
        mean, std = array[:, k].mean(), array[:, k].std(ddof=1)
        wins = 0.5 + array[:, k] / 10
        place = lines.index(
            f"{k + 1} {mean:+.2f} {wins.mean():.0%} 90% {1 - mean:+.2f} {2 - 2 * mean:+.2f} 4.00 "
            "0.25 70%"
        )
        assert lines[place + 1] == (
            f"± {std:.2f} ± {wins.std(ddof=1):.0%} ± 0% ± {std:.2f} ± {2 * std:.2f} ± 0.00 ± 0.00 "
            "± 0%"
        )
    assert "3 runs, mean ± standard deviation, seeds 0, 1, 2" in " ".join(lines)
    assert all((run / "report.html").exists() for run in runs)


def test_without_gold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run", golds=(None, None))
    report_runs([path], tmp_path / "all.html")
    out = capsys.readouterr().out
    assert re.search(r"^ +1 +– +– +90% +– +– +4\.00 +– +70%$", out, re.MULTILINE)


def test_paths_that_are_no_run_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in ``ostinato report runs/*``."""
    runs = [make_run(tmp_path / str(i), i) for i in range(2)]
    notes = tmp_path / "notes.txt"
    notes.write_text("notes")
    report_runs([notes, *runs, tmp_path])
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"warning: left out: {notes}: is a file, not a run's folder",
        f"warning: left out: {tmp_path}: holds no run.yaml, so it is not a run's folder",
    ]
    assert "2 runs, mean ± standard deviation, seeds 0, 1" in " ".join(said.out.split())


def test_no_run_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UserError) as caught:
        report_runs(paths)
    assert str(caught.value) == "\n".join(f"{path}: no such run folder" for path in paths)


def test_what_was_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # the folders of tests have long names
    runs = [make_run(tmp_path / str(i), i) for i in range(3)]
    report_runs(runs, tmp_path / "all.html")
    squeezed = " ".join(capsys.readouterr().out.split())
    assert f"written: report.html in 3 run folders, {tmp_path / 'all.html'}" in squeezed
    assert squeezed.count("written:") == 1
    assert all((run / "report.html").exists() for run in runs)
    report_runs(runs[:1])
    assert f"written: {runs[0] / 'report.html'}" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_may_not_be_written_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page is left out with a warning; what --out asks for is made, or is an error."""
    monkeypatch.setenv("COLUMNS", "400")
    path = make_run(tmp_path / "run")
    (path / ".report.html.new").mkdir()
    report_runs([path], tmp_path / "all.html")
    said = capsys.readouterr()
    assert said.err == f"warning: {path / 'report.html'}: cannot be written: Is a directory\n"
    assert f"written: {tmp_path / 'all.html'}" in " ".join(said.out.split())
    assert (tmp_path / "all.html").exists()
    report_runs([path])
    assert "written" not in capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        report_runs([path], tmp_path / "none" / "all.html")
    place = tmp_path / "none" / "all.html"
    assert str(caught.value) == f"{place}: cannot be written: No such file or directory"


def test_nothing_that_a_report_prints_commands_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ESC and markup in a folder's name, a world's, and a path that is no run."""
    runs = [
        make_run(tmp_path / f"\x1b[2J[/b]{i}", 0, world=f"/x/\x1b[31m{i}", rl={"rollouts": i})
        for i in (1, 2)
    ]
    report_runs([*runs, tmp_path / "\x1b]0;owned\x07"])
    report_runs(runs[:1])
    said = capsys.readouterr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said.out + said.err)
    assert "rl.rollouts 1, world x/·[31m1  1 run" in said.out
    assert "␛[2J[/b]1/report.html" in said.out.replace("\n  ", "")
    assert "␛]0;owned␇: no such run folder" in said.err


def test_saturated_wins_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run")
    report_runs([path], tmp_path / "all.html")
    assert "Saturated" not in capsys.readouterr().out
    change_rows(path, lambda row: row["iteration"] == 2 and row.update(proxy_wins=0.985))
    report_runs([path], tmp_path / "all.html")
    sentence = (
        "Saturated: proxy wins above 98% in iteration 2; a gap between shares so near 1 says "
        "little, so look at gold, proxy and spearman."
    )
    assert sentence in " ".join(capsys.readouterr().out.split())
    for page in (path / "report.html", tmp_path / "all.html"):
        assert page.read_text(encoding="utf-8").count(sentence) == 1, page
