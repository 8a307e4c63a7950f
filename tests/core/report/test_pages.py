"""The pages of finished runs: whole, self-contained, and escaping what a stranger wrote."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from finished_runs import change_rows, make_run
from ostinato.config.yaml_files import parsed
from ostinato.contract.events import Event
from ostinato.report.gold_against_kl import frontiers
from ostinato.report.pages import comparison_page, run_page, write_report
from ostinato.report.results import groups_of, read_run, titles


class Page(HTMLParser):
    """Checks that tags close in order; keeps them, their text, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))


def compared(*paths: Path) -> str:
    groups = groups_of([read_run(path) for path in paths])
    return comparison_page(list(zip(groups, titles(groups), frontiers(groups), strict=True)))


def test_the_page_of_a_run(tmp_path: Path) -> None:
    record = read_run(make_run(tmp_path / "run"))
    text = run_page(record)
    page = Page(text)
    # rewards and wins over rollouts, both rewards against KL by iteration, gap and MMD
    assert page.tags.count("svg") == 2 + 2 + 2
    assert text == run_page(record)
    assert "(nats per response)" in text
    row = page.texts.index("iteration")
    assert page.texts[row : row + 11] == [
        *("iteration", "gold", "peak", "gold wins", "proxy wins", "gap", "latest", "KL"),
        *("spearman", "accuracy", "MMD"),
    ]
    assert page.texts[row + 11 : row + 22] == [
        *("1", "+0.25", "+0.25", "52%", "90%", "+0.75 ±0.12", "+1.50", "4.00", "0.25", "70%"),
        "0.500",
    ]


def test_no_page_asks_for_anything_from_anywhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for text in (run_page(read_run(run)), compared(run)):
        assert all(reference.startswith("#") for reference in Page(text).references)
        assert not re.search(r"@import|url\((?!#)", text)
        assert not {"script", "link", "img", "iframe"} & set(Page(text).tags)


def test_pages_follow_the_reader_into_the_dark(tmp_path: Path) -> None:
    """Curves have the colour of the page's text: none of black or white is fixed."""
    text = run_page(read_run(make_run(tmp_path / "run")))
    assert "prefers-color-scheme: dark" in text
    svg = text[text.index("<svg") : text.rindex("</svg>")]
    assert "currentColor" in svg
    assert not re.search(r"(?:fill|stroke): #(?:000000|ffffff|5b6473)", svg)


def test_the_comparison(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), i % 2, rl={"rollouts": 4 + i // 2}) for i in range(4)]
    text = compared(*runs)
    page = Page(text)
    # gold, gold wins, gap and MMD by iteration; gold against KL in both iterations
    assert page.tags.count("svg") == 4 + 2
    for title in ("rl.rollouts 4", "rl.rollouts 5"):
        assert page.texts.count(title) == 1 + 2  # as a heading, and in two legends
    assert page.texts.count("+0.25 ± 0.00") == 2 * (2 + 1)  # gold, gap at last, the bucket's gold


def test_runs_of_one_group_have_no_legend(tmp_path: Path) -> None:
    assert "legend" not in re.sub(
        r"<style>.*?</style>", "", compared(make_run(tmp_path / "run")), flags=re.S
    )


def test_without_gold(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", golds=(None, None))
    page = Page(run_page(read_run(path)))
    assert page.tags.count("svg") == 2 + 2  # the proxy over rollouts, its wins, and against KL
    assert Page(compared(path)).tags.count("svg") == 0


EVIL = "<script>alert(1)</script>"


def texts_of_strangers(path: Path) -> Path:
    """A run in which every text that a page shows holds a tag."""
    run = make_run(path / f"{EVIL[:-9]}<b>")
    record = run / "run.yaml"
    facts: dict[str, Any] = parsed(record.read_text())
    facts["config"] |= {"world": EVIL, "note": EVIL}
    for key in ("name", "distribution", "version"):
        facts["plugins"][0][key] = EVIL
    facts["plugins"][0]["hooks"] = [EVIL]
    record.write_text(json.dumps(facts))

    def change(row: dict[str, Any]) -> None:
        for sample in row["samples"]:
            sample |= {"prompt": EVIL, "response": EVIL, "gold": EVIL}

    return change_rows(run, change)


def test_what_strangers_wrote_is_text(tmp_path: Path) -> None:
    """Folder names, settings, plugins, prompts and responses."""
    folder = tmp_path / "<i>&'\""
    one, two = texts_of_strangers(folder / "a"), texts_of_strangers(folder / "b")
    change = (two / "run.yaml").read_text().replace('"rollouts": 4', f'"rollouts": "{EVIL}"')
    (two / "run.yaml").write_text(change)
    for text in (run_page(read_run(one)), compared(one, two)):
        tags = set(Page(text).tags)
        assert not tags & {"script", "b"}
        assert "&lt;script&gt;" in text
    assert "<i>&'" not in compared(one)
    assert "&lt;i&gt;&amp;&#39;&#34;/a/" in compared(one)


@pytest.mark.parametrize("key", ["seed", "iterations"])
def test_seed_and_iterations_are_numbers(key: str, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    facts = parsed((path / "run.yaml").read_text())
    facts["config"][key] = EVIL
    (path / "run.yaml").write_text(json.dumps(facts))
    with pytest.raises(Exception, match=f"damaged at 'config.{key}'"):
        read_run(path)


def test_before_and_after_are_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", golds=(0.5,))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    last = rows[1] | {"step": 8, "samples": [rows[1]["samples"][0] | {"response": "divine"}]}
    lines = [json.dumps(row) + "\n" for row in (*rows[:2], last, rows[2])]
    (path / "metrics.jsonl").write_text("".join(lines))
    texts = Page(run_page(read_run(path))).texts
    place = texts.index("before")
    assert texts[place - 1] == "Iteration 1: the <soup> :"
    assert texts[place + 1] == "bland & dull"
    assert texts[texts.index("after") + 1] == "divine"


def test_signs_of_mathematics_are_no_crash(tmp_path: Path) -> None:
    """matplotlib would read what stands between two dollars."""
    runs = [
        make_run(tmp_path / str(i), prompts={"template": f"a ${{x$ \\frac{{ {i}"}) for i in range(2)
    ]
    assert "prompts.template a ${x$ \\frac{ 1" in Page(compared(*runs)).texts


def test_a_finished_run_gets_its_page(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    write_report(Event("iteration_finished", 1))
    assert not (path / "report.html").exists()
    write_report(Event("run_finished", 2, data={"directory": path}))
    Page((path / "report.html").read_text(encoding="utf-8"))
