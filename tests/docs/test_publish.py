"""The stand-alone distribution of contrib/: built, installed and found as a third party's is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def site(docs, tmp_path_factory):
    """A folder that pip installed the distribution into, from a copy of its source."""
    target = tmp_path_factory.mktemp("site")
    source = docs.parent / "contrib" / "ostinato-length-penalty"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    return target


def test_wheel_holds_the_package_and_its_marker(site):
    package = site / "ostinato_length_penalty"
    assert {p.name for p in package.iterdir()} >= {"__init__.py", "py.typed"}


def test_ostinato_finds_it_with_its_distribution(site):
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ostinato.terminal.cli import main; main()",
            "plugins",
            "--json",
        ],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    (found,) = [p for p in json.loads(done.stdout) if p["name"] == "length_penalty"]
    assert found["distribution"] == "ostinato-length-penalty"
    assert found["hooks"] == ["reward_transform"]
    assert found["summary"] == "Take reward off each token beyond a free length."


@pytest.mark.slow
def test_its_own_tests_pass_on_what_was_installed(site, docs, tmp_path):
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    tests = docs.parent / "contrib" / "ostinato-length-penalty" / "tests"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(tmp_path / "t"),
            str(tests),
        ],
        cwd=tests.parent,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
