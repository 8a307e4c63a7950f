"""Every way to get a run file wrong: one sentence a fault, exit status 2, nothing computed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ostinato.engine import session  # noqa: F401  start-up is not what the time limit is about
from ostinato.terminal.cli import app

FOLDER = Path(__file__).parent / "malformed"
FILES = sorted(FOLDER.glob("*.yaml"))


def fragments(file: Path) -> list[str]:
    """What each complaint about the file must say, from its first line."""
    first = file.read_bytes().split(b"\n")[0].decode()
    return first.removeprefix("# ").split(" || ")


def assert_sentences(file: Path, stderr: str) -> None:
    lines = stderr.splitlines()
    expected = fragments(file)
    assert len(lines) == len(expected), stderr
    for line, fragment in zip(lines, expected, strict=True):
        assert line.startswith(f"{file}: "), line
        assert fragment in line
        assert len(line) < 600
        assert "Traceback" not in line


def test_there_are_at_least_thirty() -> None:
    assert len(FILES) >= 30


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_one_sentence_a_fault(file: Path, command: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    where = ["--out", str(out)] if command == "run" else []
    started = time.perf_counter()
    result = CliRunner().invoke(app, [command, str(file), *where])
    assert time.perf_counter() - started < 2.0
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert_sentences(file, result.stderr)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unknown_key_top", "yaml_tab", "two_owners", "binary"])
def test_the_same_as_a_command(name: str, tmp_path: Path) -> None:
    file = FOLDER / f"{name}.yaml"
    made = subprocess.run(
        [sys.executable, "-m", "ostinato", "run", str(file), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 2
    assert made.stdout == ""
    assert_sentences(file, made.stderr)


def test_a_missing_file_names_its_neighbour() -> None:
    result = CliRunner().invoke(app, ["check", str(FOLDER / "two_owner.yaml")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"{FOLDER / 'two_owner.yaml'}: no such run file; did you mean 'two_owners.yaml'?\n"
    )


def test_a_folder_is_no_run_file() -> None:
    result = CliRunner().invoke(app, ["check", str(FOLDER)])
    assert result.exit_code == 2
    assert result.stderr == f"{FOLDER}: is a folder, expected a run file\n"
