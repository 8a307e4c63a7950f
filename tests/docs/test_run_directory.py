"""docs/run-directory.md against a real run: its code, its layout and its table of columns."""

from __future__ import annotations

import json
import re

import pytest

import ostinato


@pytest.fixture(scope="module")
def page(docs):
    return (docs / "run-directory.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented") / "runs" / "one"
    ostinato.run("toy", folder, tiny)
    return folder


def test_layout(page, run):
    shown = page.split("```text\n", 1)[1].split("```", 1)[0]
    named = set(re.findall(r"^  (?:  )?([a-z_]+(?:\.yaml|\.jsonl|/))", shown, re.M))
    # the console and the command line write the report; caches and checkpoints come and go
    for name in sorted(named - {"report.html", "error.txt", "labels/", "cache-"}):
        assert (run / name).exists() or (run / "iteration-1" / name).exists(), name
    extra = {p.name for p in run.iterdir()} - {n.rstrip("/") for n in named}
    assert extra <= {"iteration-1", "iteration-2", "lock", "report.html"}
    assert {p.name for p in (run / "iteration-1").iterdir()} <= {n.rstrip("/") for n in named}


def test_code_loads_the_checkpoints(page, run, blocks, docs, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    ((_, code),) = blocks(docs / "run-directory.md", "python")
    made = {}
    exec(compile(code, "docs/run-directory.md", "exec"), made)
    row = made["row"]
    known = ostinato.RewardModel.load_checkpoint(run / "iteration-1" / "reward_model")
    score = known.score([row["prompt"]], [row["chosen"]], [row["chosen_finished"]])
    assert made["score"] == pytest.approx(float(score), abs=1e-5)
    assert len(made["curve"]) == 4
    assert made["policy"].config.vocab_size >= len(made["tokenizer"])


def documented(page, kind):
    section = re.search(rf"^### {kind}\n(.*?)(?=^##)", page, re.M | re.S)[1]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.M)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    "kind", ["eval", "policy", "reward_model", "reward_model_trained", "actions", "iteration"]
)
def test_every_column_is_documented(kind, page, run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == kind]
    assert rows
    columns = set().union(*rows) - {"kind", "iteration"}
    wanted = documented(page, kind)
    if kind == "iteration":
        wanted |= documented(page, "eval") - {"step", "samples"}
    assert columns == wanted


def test_no_other_kind_of_row(page, run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = {json.loads(line)["kind"] for line in lines}
    assert kinds == set(re.findall(r"^### (\w+)$", page, re.M))
