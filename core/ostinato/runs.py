"""The run directory: atomic artefacts with checksums, metrics, checkpoints, one process at a time.

Everything is written beside its place and renamed into it, so what has its name is whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ostinato.config import RunConfig
from ostinato.errors import UserError
from ostinato.plugins import Plugins

T = TypeVar("T")
MAY_CHANGE = ("iterations", "backend")
STACK = ("ostinato", "torch", "transformers", "accelerate", "datasets", "trl", "numpy")


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """A full or read-only disk becomes one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):
            raise UserError(
                f"{what}: the disk is full; free some space and run the same command again"
            ) from error
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            raise UserError(f"{what}: cannot be written: {error}") from error
        raise


def sync(path: Path) -> None:
    """Make a file or folder last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Metrics:
    """metrics.jsonl. ``position`` is the end of what is known to be good; the rest is cut off at
    the next write, so a resumed run goes on exactly behind its last checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._captured: list[dict[str, Any]] | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one object."""
        if self._captured is not None:
            self._captured.append(dict(row))
            return
        line = json.dumps(row, allow_nan=False) + "\n"
        with disk_errors(str(self.path)), self.path.open("ab") as file:
            if file.tell() != self.position:
                file.truncate(self.position)
            file.write(line.encode())
        self.position += len(line.encode())

    @contextmanager
    def captured(self) -> Iterator[list[dict[str, Any]]]:
        """Keep rows back inside the block."""
        rows: list[dict[str, Any]] = []
        before, self._captured = self._captured, rows
        try:
            yield rows
        finally:
            self._captured = before

    def rows(self) -> list[dict[str, Any]]:
        """All rows up to ``position``."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            return [json.loads(line) for line in file.read(self.position).splitlines()]


class RunDirectory:
    """One run's folder, held by one process."""

    def __init__(self, path: Path, config: RunConfig, plugins: Plugins) -> None:
        self.path = path
        self.plugins = plugins
        with disk_errors(str(path)):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise UserError(f"{path}: is a file, expected a folder for the run") from None
            self._lock = (path / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"{path}: another process is running in this folder") from None
        try:
            self.resumed = self._claim(config)
        except BaseException:
            self._lock.close()
            raise
        self.metrics = Metrics(path / "metrics.jsonl")

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def _claim(self, config: RunConfig) -> bool:
        record = self.path / "run.yaml"
        mine = config.model_dump(mode="json")
        if record.exists():
            try:
                theirs = yaml.safe_load(record.read_text(encoding="utf-8"))["config"]
            except (yaml.YAMLError, KeyError, TypeError):
                raise UserError(f"{record}: is damaged; the run cannot be resumed") from None
            self._compare(theirs, mine)
        elif any(p.name != "lock" for p in self.path.iterdir()):
            raise UserError(f"{self.path}: is not empty and holds no run; choose another folder")
        resumed = record.exists()
        facts = {
            "config": mine,
            "plugins": [
                {
                    "name": a.name,
                    "distribution": a.found.distribution,
                    "version": a.found.version,
                    "hooks": a.hooks,
                    "settings": a.settings,
                }
                for a in self.plugins.active
            ],
            "owners": self.plugins.owners,
            "versions": stack_versions(),
            "git": git_state(),
        }
        text = yaml.safe_dump(facts, sort_keys=False)
        self.write_file("run.yaml", text)
        for left in self.path.rglob(".making-*"):
            shutil.rmtree(left, ignore_errors=True)
        return resumed

    def _compare(self, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        old, new = flat(theirs), flat(mine)
        changed = [
            f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key.split(".")[0] not in MAY_CHANGE
        ]
        if mine["iterations"] < theirs["iterations"]:
            changed.append(
                f"iterations was {theirs['iterations']}, is {mine['iterations']} (may only grow)"
            )
        if changed:
            raise UserError(
                f"{self.path}: holds a run of another config: {'; '.join(changed)}; "
                "choose another folder"
            )

    def write_file(self, name: str, text: str) -> None:
        """Replace a small file whole."""
        path = self.path / name
        beside = path.with_name(f".{path.name}.new")
        with disk_errors(str(path)):
            beside.write_text(text, encoding="utf-8")
            sync(beside)
            beside.replace(path)

    def artefact(
        self,
        name: str,
        make: Callable[[], T],
        save: Callable[[T, Path], None],
        load: Callable[[Path], T],
    ) -> T:
        """What ``make`` answers, made once; a finished artefact loads if its checksums agree."""
        folder = self.path / name
        if folder.exists():
            done = self._verified(folder)
            self.metrics.position = done["metrics_bytes"]
            self.plugins.load_state(done["plugins"])
            return load(folder)
        made = make()
        self._write(folder, lambda beside: save(made, beside))
        return made

    def cached(
        self,
        name: str,
        make: Callable[[], T],
        save: Callable[[T, Path], None],
        load: Callable[[Path], T],
    ) -> T:
        """A result inside a stage; the metrics rows that it logged come back with it."""
        folder = self.path / name
        if not folder.exists():
            with self.metrics.captured() as rows:
                made = make()

            def write(beside: Path) -> None:
                save(made, beside)
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (beside / "rows.jsonl").write_text(lines, encoding="utf-8")

            self._write(folder, write)
        self._verified(folder)
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            self.metrics.write(json.loads(line))
        return load(folder)

    def _write(self, folder: Path, save: Callable[[Path], None], **extra: Any) -> None:
        beside = folder.with_name(f".making-{folder.name}")
        with disk_errors(str(folder)):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            try:
                save(beside)
                files = sorted(p for p in beside.rglob("*") if p.is_file())
                done = {
                    "files": {str(p.relative_to(beside)): checksum(p) for p in files},
                    "metrics_bytes": self.metrics.position,
                    "plugins": self.plugins.state(),
                    **extra,
                }
                (beside / "done.json").write_text(json.dumps(done, indent=1), encoding="utf-8")
                for file in [*files, beside / "done.json"]:
                    sync(file)
                if self.metrics.path.exists():
                    sync(self.metrics.path)  # the marker's offset must not outlive its rows
                beside.rename(folder)
                sync(folder.parent)
            except BaseException:
                shutil.rmtree(beside, ignore_errors=True)
                raise

    def _verified(self, folder: Path) -> dict[str, Any]:
        try:
            done: dict[str, Any] = json.loads((folder / "done.json").read_text(encoding="utf-8"))
            wrong = [
                name
                for name, value in done["files"].items()
                if not (folder / name).exists() or checksum(folder / name) != value
            ]
        except (OSError, ValueError, KeyError):
            wrong = ["done.json"]
        if wrong:
            raise UserError(
                f"{folder / wrong[0]}: is missing, truncated or changed since the run wrote it; "
                f"restore it, or delete {folder} and all later stages to compute them again"
            )
        if self.metrics.path.exists() and self.metrics.path.stat().st_size < done["metrics_bytes"]:
            raise UserError(
                f"{self.metrics.path}: is shorter than when {folder.name} was finished; "
                "restore it, or start in another folder"
            )
        return done

    def save_checkpoint(
        self,
        stage: str,
        name: str,
        step: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        """Replace the checkpoint of ``name`` inside an unfinished stage."""
        folder = self.path / f"{stage}.checkpoints" / f"{name}-{step}"
        contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}

        def write(beside: Path) -> None:
            save_file(contiguous, beside / "tensors.safetensors")

        self._write(folder, write, facts=dict(facts), step=step)
        for older in folder.parent.glob(f"{name}-*"):
            if older != folder:
                shutil.rmtree(older)

    def load_checkpoint(
        self, stage: str, name: str
    ) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """(step, tensors, facts) of the last checkpoint of ``name``, or None."""
        folders = (self.path / f"{stage}.checkpoints").glob(f"{name}-*")
        found = sorted(folders, key=lambda p: int(p.name.rsplit("-", 1)[1]))
        if not found:
            return None
        done = self._verified(found[-1])
        self.metrics.position = done["metrics_bytes"]
        self.plugins.load_state(done["plugins"])
        with safe_open(found[-1] / "tensors.safetensors", framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return done["step"], tensors, done["facts"]

    def drop_checkpoints(self, stage: str) -> None:
        """A finished stage needs none."""
        shutil.rmtree(self.path / f"{stage}.checkpoints", ignore_errors=True)


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``a.b.c`` keys."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix: settings}
    return {
        k: v
        for key, value in settings.items()
        for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def stack_versions() -> dict[str, str]:
    """Versions of what the run stands on."""
    found = {}
    for name in STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> str | None:
    """Commit of the folder that the run was started in, with ``+`` if it had changes."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")
