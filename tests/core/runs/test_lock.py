"""One process at a time, in a folder that stays where it is."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ostinato
from ostinato import UserError
from ostinato.config.reading import load_config
from ostinato.contract.events import Event
from ostinato.runs.directory import RunDirectory
from ostinato.runs.lock import Lock
from run_kit import TOY, keep, opened, plugins


def test_a_second_process_is_turned_away(out: Path) -> None:
    opened(out)
    program = f"from ostinato.terminal.cli import app; app(['run', 'toy', '--out', {str(out)!r}])"
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr == f"{out}: another process is running in this folder\n"


HOLD = """
import os, sys, time
from pathlib import Path
from ostinato.config.errors import UserError
from ostinato.runs.lock import Lock
folder, start = map(Path, sys.argv[1:])
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
try:
    lock = Lock(folder)
except UserError as error:
    sys.exit(str(error))
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path, start: Path) -> subprocess.Popen[str]:
    """A process that waits for ``start`` to appear, then takes the folder and keeps it."""
    command = [sys.executable, "-c", HOLD, str(folder), str(start)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_processes_that_start_at_once_one_wins_and_a_killed_one_blocks_nobody(
    tmp_path: Path,
) -> None:
    for race in range(3):  # into the same folder, whose lock file the kill leaves behind
        start = tmp_path / f"start-{race}"
        racers = [holder(tmp_path, start) for _ in range(3)]
        start.touch()
        lines = [r.stdout.readline() for r in racers if r.stdout]
        assert sorted(lines) == ["", "", "held\n"]
        for racer, line in zip(racers, lines, strict=True):
            if line:
                racer.send_signal(signal.SIGKILL)
            said = racer.communicate(timeout=20)[1]
            assert (racer.returncode, said) == (
                (-signal.SIGKILL, "")
                if line
                else (1, f"{tmp_path}: another process is running in this folder\n")
            )
    Lock(tmp_path).release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_says_so(
    number: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):  # nothing is left that would read as another process
        with pytest.raises(UserError) as caught:
            opened(out)
        assert str(caught.value) == (
            f"{out}: its file system cannot lock a file ({os.strerror(number)}), so nothing would "
            "keep two processes apart; choose a folder on another disk"
        )


GONE = "was deleted, moved or replaced while the run wrote there; put it back and run the same"


@pytest.mark.parametrize("harm", ["deleted", "moved", "replaced", "lock deleted"])
def test_a_folder_that_goes_away_under_the_run(harm: str, out: Path) -> None:
    directory = opened(out)
    keep(directory, "a", "made")
    directory.metrics.write({"kind": "x"})
    if harm == "deleted":
        shutil.rmtree(out)
    elif harm == "lock deleted":
        (out / "lock").unlink()
    else:
        out.rename(out.with_name("elsewhere"))
        if harm == "replaced":
            shutil.copytree(out.with_name("elsewhere"), out)
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=GONE):
        directory.metrics.write({"kind": "y"})
    with pytest.raises(UserError, match=GONE):
        keep(directory, "b", "made")
    assert sorted(out.rglob("*")) == before


def test_a_run_whose_folder_is_moved_ends_and_goes_on_when_it_is_back(out: Path) -> None:
    def move(event: Event) -> None:
        if event.kind == "evaluated":
            out.rename(out.with_name("elsewhere"))

    with pytest.raises(UserError, match=GONE):
        ostinato.run("toy", out, TOY, watch=[move])
    assert not out.exists()
    out.with_name("elsewhere").rename(out)
    assert len(ostinato.run("toy", out, TOY).iterations) == 1


def test_a_run_inside_another_runs_folder_is_left_alone(out: Path) -> None:
    opened(out).close()
    inner = RunDirectory(out / "inner", load_config("toy"), plugins())
    (out / "inner/iteration-1/.making-policy").mkdir(parents=True)  # it is being written
    (out / "iteration-1/.making-policy").mkdir(parents=True)
    keep(inner, "sft", "finished")
    outer = opened(out, "seed=3")  # another config: what inner finished is not outer's
    assert (out / "inner/iteration-1/.making-policy").exists()
    assert not (out / "iteration-1/.making-policy").exists()
    assert keep(outer, "sft", "made") == "made"  # and not later than outer's missing ones
    inner.close()
