"""metrics.jsonl: one object a line, cut back to the last checkpoint when a run is resumed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ostinato.config.errors import NonFiniteError, UserError
from ostinato.runs.disk import disk_errors


class Metrics:
    """The rows of a run. ``position`` is the end of what is known to be good; what lies behind it
    is cut off at the next write, so a resumed run goes on exactly behind its last checkpoint."""

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.check = check  # raises where the run's folder is no longer there
        self.position = 0
        self._hash = hashlib.sha256()
        self._captured: list[dict[str, Any]] | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one object. Raises NonFiniteError, which names the number."""
        if self._captured is not None:
            self._captured.append(dict(row))
            return
        for key in non_finite(row):
            where = f"at iteration {row.get('iteration')}, step {row.get('step', 0)}"
            raise NonFiniteError(f"'{key}' of a '{row.get('kind')}' row is not finite {where}")
        line = (json.dumps(row) + "\n").encode()
        self.check()
        with disk_errors(self.path), self.path.open("ab") as file:
            if file.tell() < self.position:
                self._refuse()
            file.truncate(self.position)
            file.write(line)
        self.position += len(line)
        self._hash.update(line)

    @contextmanager
    def captured(self) -> Iterator[list[dict[str, Any]]]:
        """Keep rows back inside the block."""
        rows: list[dict[str, Any]] = []
        before, self._captured = self._captured, rows
        try:
            yield rows
        finally:
            self._captured = before

    def mark(self) -> dict[str, Any]:
        """Where the file ends now, and the checksum of all before it."""
        return {"bytes": self.position, "sha256": self._hash.hexdigest()}

    def go_back(self, mark: Mapping[str, Any]) -> None:
        """Go on from a mark. Raises UserError if the file is not what it was there."""
        with disk_errors(self.path, "read"):
            good = self.path.read_bytes()[: mark["bytes"]] if self.path.exists() else b""
        self._hash = hashlib.sha256(good)
        self.position = len(good)
        if self.mark() != mark:
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"{self.path}: is missing, truncated or changed since the run wrote it; restore "
            "it, or start again in another folder"
        )

    def rows(self) -> list[dict[str, Any]]:
        """All rows up to ``position``."""
        if not self.path.exists():
            return []
        with disk_errors(self.path, "read"), self.path.open("rb") as file:
            return [json.loads(line) for line in file.read(self.position).splitlines()]


def non_finite(value: Any, key: str = "") -> Iterator[str]:
    """Keys, ``a.b.c``, of numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    for name, part in value.items() if isinstance(value, Mapping) else ():
        yield from non_finite(part, f"{key}.{name}" if key else str(name))
