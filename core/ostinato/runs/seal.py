"""done.json, the mark of a finished folder: checksums of every file in it, and of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostinato.config.errors import UserError
from ostinato.runs.disk import checksum, disk_errors

SEAL = "done.json"


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Mark a folder as whole; every file gets the permissions that the umask gives the mark."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = {p.relative_to(folder).as_posix(): checksum(p) for p in files}
    (folder / SEAL).write_bytes(_sealed({"files": sums, **facts}))
    mode = (folder / SEAL).stat().st_mode & 0o777
    for path in files:  # safetensors writes for the owner alone
        path.chmod(mode)


def unsealed(folder: Path) -> dict[str, Any]:
    """The facts of a mark. UserError where the folder is not, file by file, what was marked."""
    done: dict[str, Any] = {}
    with disk_errors(folder / SEAL, "read"):
        try:
            found = (folder / SEAL).read_bytes()
            done = json.loads(found)
            del done["sha256"]
            whole = found == _sealed(done)
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            whole = False
    files = done["files"] if whole else {}
    changed = (name for name, value in files.items() if not _kept(folder / name, value))
    wrong = next(changed, None) if whole else SEAL
    if wrong:
        raise UserError(
            f"{folder / wrong}: is missing, truncated or changed since the run wrote it; "
            f"restore it, or delete {folder} and what was made after it to compute it again"
        )
    known = {folder / SEAL, *(p for n in files for p in (folder / n, *(folder / n).parents))}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path not in known and not hidden:  # hidden ones are a desktop's or a file server's
            raise UserError(f"{path}: was not written by the run; move it to another place")
    return done


def _kept(path: Path, value: str) -> bool:
    with disk_errors(path, "read"):
        return path.is_file() and checksum(path) == value


def _sealed(facts: Mapping[str, Any]) -> bytes:
    """JSON whose last key is the checksum of all the others."""
    own = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return json.dumps({**facts, "sha256": own}, indent=1).encode()
