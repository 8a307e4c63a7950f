"""What a run does to the disk: errors in one sentence, files that last, checksums."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ostinato.config.errors import UserError


@contextmanager
def disk_errors(what: Path, done: str = "written") -> Iterator[None]:
    """A disk that is full, read-only, forbidden or broken becomes one sentence.

    safetensors, pyarrow and tokenizers each wrap the system's error in one of their own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):
            raise UserError(
                f"{what}: the disk is full; free some space and run the same command again"
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"{what}: cannot be {done}: {error.strerror or error}") from error
        raise


def sync(path: Path) -> None:
    """Make a file or folder last through a power cut."""
    if path.is_dir() and os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
