"""One process at a time in a run folder, which stays where it is while the process writes there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from ostinato.config.errors import UserError

LOCK = "lock"


class Lock:
    """A process's hold on a folder. It ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # No soft lock: one that is only a file would outlive a killed process.
        self._lock = FileLock(folder / LOCK, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"{folder}: another process is running in this folder") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise UserError(
                f"{folder}: its file system cannot lock a file ({error.strerror}), so nothing "
                "would keep two processes apart; choose a folder on another disk"
            ) from error
        self._held = os.stat(folder / LOCK)

    def check(self) -> None:
        """UserError if the folder, or the lock in it, is no longer the one that was taken."""
        try:
            same = os.path.samestat(os.stat(self.folder / LOCK), self._held)
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"{self.folder}: was deleted, moved or replaced while the run wrote there; put it "
                "back and run the same command again"
            )

    def release(self) -> None:
        self._lock.release()
