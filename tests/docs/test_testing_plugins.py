"""The page on the test kit: its tests pass, its examples run, it names what there is."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

from ostinato import testing


@pytest.fixture(scope="module")
def code(docs, blocks):
    """Python of the page by title."""
    return dict(blocks(docs / "testing-plugins.md", "python"))


@pytest.mark.slow
def test_its_tests_pass(code, tmp_path):
    (tmp_path / "test_cap.py").write_text(code["test_cap.py"], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir=.", f"--basetemp={tmp_path / 't'}"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_its_examples_run(code):
    exec(compile(code[""], "testing-plugins.md", "exec"), {})


def test_arguments_of_conformance_are_told(docs):
    page = (docs / "testing-plugins.md").read_text(encoding="utf-8")
    for name in list(inspect.signature(testing.conformance).parameters)[1:]:
        assert f"\n| `{name}` | " in page, name
