"""What pytest makes of the kit in a project of somebody else's, where warnings are errors."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

TESTS = """
import sys


def test_pytest_has_not_imported_torch():
    assert "ostinato" in sys.modules
    assert not {"torch", "transformers", "pydantic"} & set(sys.modules)


def test_two_runs(ostinato_run, tmp_path):
    first, second = (ostinato_run(["worst_case"], iterations=1, seed=s) for s in (0, 1))
    assert first.directory.parent == second.directory.parent == tmp_path
    assert first.directory != second.directory
    assert first.iterations[0]["kl"] != second.iterations[0]["kl"]
"""


@pytest.mark.slow
def test_the_fixture_is_there(tmp_path):
    (tmp_path / "test_them.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    options = ["--rootdir=.", f"--basetemp={tmp_path / 't'}", "test_them.py"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_it_is_named_once():
    (point,) = [p for p in entry_points(group="pytest11") if p.name == "ostinato"]
    assert point.value == "ostinato.testing.pytest_plugin"
