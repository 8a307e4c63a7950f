"""The tutorial, done: its files are written, its tests pass, its run proves that it acted."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest
from typer.testing import CliRunner

import ostinato
from ostinato.terminal.cli import app


@pytest.fixture(scope="module")
def package(docs, blocks, tmp_path_factory):
    """The tutorial's folder, with the metadata that ``pip install -e .`` would have made."""
    folder = tmp_path_factory.mktemp("tutorial")
    for language in ("python", "toml", "yaml"):
        for title, code in blocks(docs / "tutorial.md", language):
            (folder / title).write_text(code, encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    facts = folder / f"{name}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = [f"{key} = {value}" for key, value in project["entry-points"]["ostinato"].items()]
    (facts / "entry_points.txt").write_text("\n".join(["[ostinato]", *points, ""]))
    return folder


def test_method_is_as_short_as_the_title_says(package):
    code = (package / "my_methods.py").read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if line.strip()]) <= 30


def test_it_runs_from_its_file(package, tiny, monkeypatch, tmp_path):
    """Where it is not installed, and from another folder."""
    monkeypatch.chdir(tmp_path)
    run = ostinato.run(package / "first.yaml", "runs/first", [*tiny, "plugins.Pessimist.weight=1"])
    rows = [row for row in run.metrics if row.get("stage") == "combined"]
    first, second = (row["actions"]["Pessimist.combine_rm"] for row in rows)
    assert first == 0 < second
    page = CliRunner().invoke(app, ["plugins", f"{package}/my_methods.py:Pessimist"])
    assert "weight of the variance" in page.stdout


@pytest.mark.slow
def test_its_tests_pass(package, tmp_path):
    known = filter(None, [os.environ.get("PYTHONPATH")])
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "t")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_my_methods.py"],
        cwd=package,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *known])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_run_proves_that_it_acted(package, docs, blocks, tiny, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.chdir(package)
    ostinato.run("run.yaml", "runs/pessimist", [*tiny, "iterations=4"])
    capsys.readouterr()
    exec(compile((package / "acted.py").read_text(encoding="utf-8"), "acted.py", "exec"), {})
    ((_, shown),) = blocks(docs / "tutorial.md", "text")
    said, page = (
        [line.rpartition(" ") for line in text.splitlines()]
        for text in (capsys.readouterr().out, shown)
    )
    assert [line for line, _, _ in said] == [line for line, _, _ in page]
    for numbers in (said, page):  # a shorter run has other ones
        first, *later = [float(number) for _, _, number in numbers]
        assert first == 0 < min(later)
