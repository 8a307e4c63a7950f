"""What the tests of the run folder share: an open folder of a toy run, an artefact of one text.

``tests/core/runs/conftest.py`` makes its fixtures known.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import ostinato
from kill_runs import MICRO
from ostinato.config.reading import load_config
from ostinato.config.sections import RunConfig
from ostinato.contract.plugins import Plugins, activate
from ostinato.runs.directory import RunDirectory

TOY = [
    *(o for o in MICRO if not o.startswith(("plugins", "iterations"))),
    "iterations=1",
    "plugins=[concat, strength, flip]",
    "plugins.strength.models=1",
    "rl.rollouts=2",
]


def plugins(*names: str) -> Plugins:
    return activate([(name, {}) for name in names], "run.yaml")


OPEN: list[RunDirectory] = []


def opened(
    path: Path, *overrides: str, active: Plugins | None = None, config: RunConfig | None = None
) -> RunDirectory:
    """The run directory of a toy run, after those opened before are let go."""
    release()
    directory = RunDirectory(path, config or load_config("toy", overrides), active or plugins())
    OPEN.append(directory)
    return directory


def release() -> None:
    while OPEN:
        OPEN.pop().close()


@pytest.fixture(autouse=True, name="_released")
def _released() -> Iterator[None]:
    yield
    release()


def text(value: str) -> Callable[[Path], None]:
    """Saves ``value`` as text.txt."""
    return lambda folder: (folder / "text.txt").write_text(value) and None


def read(folder: Path) -> str:
    return (folder / "text.txt").read_text()


def keep(directory: RunDirectory, name: str, value: str) -> str:
    return directory.artefact(name, lambda: value, lambda v, f: text(v)(f), read)


@pytest.fixture(name="out")
def _out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ostinato.run("toy", out, TOY)
    return out


@pytest.fixture(name="open_prepared")
def _open_prepared() -> Callable[[Path], RunDirectory]:
    """Opens as somebody who may not read where the package is installed: it was read before."""
    return partial(opened, config=load_config("toy"), active=plugins())


@pytest.fixture(name="nobody")
def _nobody() -> Iterator[Path]:
    """A folder of somebody who is not root, as whom the test goes on."""
    folder = Path(tempfile.mkdtemp())
    if os.name != "posix":
        pytest.skip("permissions are another thing here")
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
        os.setegid(0)
    shutil.rmtree(folder)
