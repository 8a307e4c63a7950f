"""Disks that are full, read-only, or not ours: one sentence, and nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ostinato
from kill_runs import differing, outcome
from ostinato import UserError
from ostinato.runs import disk
from ostinato.runs.directory import RunDirectory
from run_kit import TOY, keep, opened, release


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, which only root can have made."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError) as caught:
        opened(small_disk / "run")
    assert str(caught.value) == f"{small_disk / 'run'}: cannot be written: Read-only file system"


def test_a_full_disk_and_then_a_larger_one(small_disk: Path, whole: Path) -> None:
    size, out, said = 400, small_disk / "run", []
    for _ in range(40):
        try:
            ostinato.run("toy", out, TOY)
        except UserError as error:
            said.append(str(error))
            size += 700
            grow = ["mount", "-o", f"remount,size={size}k", str(small_disk)]
            subprocess.run(grow, check=True)
        else:
            break
    assert len(said) > 2
    assert all("the disk is full; free some space and run the same" in line for line in said)
    assert all(line.startswith(str(small_disk)) for line in said)
    assert differing(outcome(out), outcome(whole)) == []


WRITERS = [  # in the order in which a run comes to them
    "ostinato.models.policy.save_model",
    "ostinato.runs.directory.sync",
    "pathlib.Path.rename",
    "ostinato.data.preferences.write_arrow",
    "ostinato.models.reward_model.save_model",
    "ostinato.runs.directory.save_file",
]


def test_every_kind_of_write_may_meet_a_full_disk(
    out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for writer in WRITERS:
        monkeypatch.setattr(writer, fail)
        with pytest.raises(UserError, match="the disk is full; free"):
            ostinato.run("toy", out, TOY)
        monkeypatch.undo()
        assert list(out.rglob(".making-*/*")) == []
    ostinato.run("toy", out, TOY)
    assert differing(outcome(out), outcome(whole)) == []


def test_words_of_libraries_that_wrap_the_systems_error() -> None:
    wrapped = Exception("Io(Os { code: 28, kind: StorageFull, message: No space left on device })")
    with pytest.raises(UserError, match="f: the disk is full"), disk.disk_errors(Path("f")):
        raise wrapped
    with pytest.raises(ZeroDivisionError), disk.disk_errors(Path("f")):
        raise ZeroDivisionError


# Permissions


FORBIDDEN = ["metrics.jsonl", "run.yaml", "iteration-1", "iteration-1/data/text.txt", "sft"]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_may_not_be_read_is_told_as_that(
    name: str, open_prepared: Callable[[Path], RunDirectory], nobody: Path
) -> None:
    out = nobody / "run"
    first = open_prepared(out)
    first.metrics.write({"kind": "a"})
    keep(first, "sft", "a text")
    keep(first, "iteration-1/data", "a text")
    release()

    def resume() -> None:
        again = open_prepared(out)
        keep(again, "sft", "x")
        keep(again, "iteration-1/data", "x")

    mode = (out / name).stat().st_mode
    (out / name).chmod(0)
    try:
        with pytest.raises(UserError) as caught:
            resume()
    finally:
        release()
        (out / name).chmod(mode)
    assert str(caught.value) == f"{out / name}: cannot be read: Permission denied"


def test_what_may_not_be_written_is_told_as_that(
    open_prepared: Callable[[Path], RunDirectory], nobody: Path
) -> None:
    out = nobody / "run"
    open_prepared(out)
    release()
    (out / "lock").chmod(0o444)
    with pytest.raises(UserError, match="run: cannot be written: Permission denied"):
        open_prepared(out)
