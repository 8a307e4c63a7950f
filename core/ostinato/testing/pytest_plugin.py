"""The pytest plugin: the fixture ``ostinato_run``. It imports nothing heavy before that runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ostinato.loop import Run


@pytest.fixture
def ostinato_run(tmp_path: Path) -> Callable[..., Run]:
    """Runs plugins in the micro world, each run in a folder of its own below ``tmp_path``.

    ``ostinato_run([MyPlugin, "worst_case"], iterations=1)``: see ``ostinato.testing.run``.
    """
    numbers = count(1)

    def run(plugins: Sequence[Any] = (), out: str | Path | None = None, **settings: Any) -> Run:
        from ostinato.testing.micro import run as micro_run

        folder = tmp_path / f"ostinato-{next(numbers)}" if out is None else out
        return micro_run(plugins, folder, **settings)

    return run
