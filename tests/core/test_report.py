"""Reports of finished runs: means over seeds, faults, and the pages."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ostinato.errors import UserError
from ostinato.events import Event
from ostinato.report import groups_of, read_run, report_runs, spread, titles, write_report
from ostinato.report_html import NO_PLOTS, comparison_page, run_page

PROMPT = {"prompt": "the <soup> :", "proxy": 0.5}


def eval_row(k: int, step: int, gold: float | None, response: str) -> dict[str, Any]:
    return {
        "kind": "eval",
        "iteration": k,
        "step": step,
        "gold_reward": gold,
        "proxy_reward": 0.5 * step,
        "gap": None if gold is None else 1.0 - gold,
        "gap_latest": None if gold is None else 2.0 - 2.0 * gold,
        "kl": float(step),
        "mmd": None if gold is None else 0.5 / k,
        "samples": [{**PROMPT, "response": response, "gold": gold}],
    }


def make_run(
    path: Path, seed: int = 0, golds: tuple[float | None, ...] = (0.25, 0.75), **config: Any
) -> Path:
    path.mkdir(parents=True)
    whole = {"seed": seed, "iterations": len(golds), "rl": {"rollouts": 4}, **config}
    plugin = {
        "name": "concat",
        "hooks": ["combine_data"],
        "distribution": "ostinato",
        "version": "0.1.0",
        "settings": {},
    }
    facts = {"config": whole, "plugins": [plugin], "owners": {"combine_data": "concat"}}
    (path / "run.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    rows = []
    for k, gold in enumerate(golds, start=1):
        rows += [eval_row(k, 0, gold and 0.0, "bland & dull"), eval_row(k, 4, gold, "tasty")]
        rows.append({**rows[-1], "kind": "iteration", "peak_gold": gold, "accuracy": 0.7})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return path


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


def test_groups_differ_in_more_than_the_seed(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a", 0, rl={"rollouts": 4, "lr": 0.1}, backend={"threads": 1}),
        make_run(tmp_path / "b", 0, rl={"rollouts": 8, "lr": 0.1}, plugins=[{"ppo": {"clip": 1}}]),
        make_run(tmp_path / "c", 1, rl={"rollouts": 4, "lr": 0.1}, backend={"threads": 2}),
    ]
    groups = groups_of([read_run(path) for path in paths])
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert groups[0].seeds == [0, 1]
    assert titles(groups) == [
        "rl.rollouts 4, plugins null",
        "rl.rollouts 8, plugins [ppo: clip: 1]",
    ]
    with pytest.raises(UserError, match="is given twice"):
        groups_of([read_run(paths[0]), read_run(paths[0])])


def test_runs_of_unequal_length(tmp_path: Path) -> None:
    long = make_run(tmp_path / "long", 0, (0.25, 0.75), iterations=2)
    short = make_run(tmp_path / "short", 1, (0.5,), iterations=2)
    [group] = groups_of([read_run(long), read_run(short)])
    assert group.values(1, "gold_reward") == [0.25, 0.5]
    assert group.values(2, "gold_reward") == [0.75]


@pytest.mark.parametrize(
    ("values", "text"), [([], "–"), ([0.5], "+0.50"), ([1.0, 2.0, 3.0], "+2.00 ± 1.00")]
)
def test_spread(values: list[float], text: str) -> None:
    assert spread(values, "+.2f") == text


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
    assert Page(text).tags.count("svg") == 1
    assert "rl.rollouts 4" in text
    assert text.count("+0.25 ± 0.00") == 2 * 2  # gold at first, gap at last, in both groups


def test_without_gold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run", golds=(None, None))
    report_runs([path], tmp_path / "all.html")
    assert re.search(r"^ +1 +– +– +– +4\.00 +– +0\.70$", capsys.readouterr().out, re.MULTILINE)
    Page((path / "report.html").read_text(encoding="utf-8"))
    Page((tmp_path / "all.html").read_text(encoding="utf-8"))


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    record = read_run(make_run(tmp_path / "run"))
    text = run_page(record)
    assert NO_PLOTS in text
    assert "svg" not in Page(text).tags
    groups = groups_of([record])
    assert NO_PLOTS in comparison_page(groups, titles(groups))


def test_a_finished_run_gets_its_page(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    write_report(Event("iteration_finished", 1))
    assert not (path / "report.html").exists()
    write_report(Event("run_finished", 2, data={"directory": path}))
    Page((path / "report.html").read_text(encoding="utf-8"))


def test_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ev')
    assert len(read_run(path).iterations) == 2


def _no_folder(path: Path) -> str:
    return f"{path / 'none'}: no such run folder"


def _no_metrics(path: Path) -> str:
    (path / "metrics.jsonl").unlink()
    return f"{path}: holds no metrics.jsonl, so it is not a run's folder"


def _no_record(path: Path) -> str:
    (path / "run.yaml").unlink()
    return f"{path}: holds no run.yaml, so it is not a run's folder"


def _bad_record(path: Path) -> str:
    (path / "run.yaml").write_text("config: [")
    return f"{path / 'run.yaml'}: is damaged and cannot be read"


def _other_record(path: Path) -> str:
    (path / "run.yaml").write_text("config: {seed: 0}\n")
    return f"{path / 'run.yaml'}: is damaged and cannot be read"


def _bad_line(path: Path) -> str:
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:20]
    file.write_text("\n".join(lines) + "\n")
    return f"{file}: line 3 is damaged, expected a metrics row"


def _no_row(path: Path) -> str:
    file = path / "metrics.jsonl"
    file.write_text("[1]\n")
    return f"{file}: line 1 is damaged, expected a metrics row"


def _no_iteration(path: Path) -> str:
    file = path / "metrics.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    return f"{file}: no iteration is finished yet; let the run go on first"


def _read_only(path: Path) -> str:
    (path / ".report.html.new").mkdir()
    return f"{path / 'report.html'}: cannot be written: Is a directory"


@pytest.mark.parametrize(
    "damage",
    [
        _no_folder,
        _no_metrics,
        _no_record,
        _bad_record,
        _other_record,
        _bad_line,
        _no_row,
        _no_iteration,
        _read_only,
    ],
)
def test_damage_is_one_sentence(damage: Any, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    expected = damage(path)
    given = path / "none" if damage is _no_folder else path
    with pytest.raises(UserError) as caught:
        report_runs([given])
    assert str(caught.value) == expected
