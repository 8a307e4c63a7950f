"""The run directory: atomic artefacts with checksums, metrics, checkpoints.

Everything is written beside its place and renamed into it, so what has its name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ostinato.config.errors import UserError
from ostinato.config.records import FORMAT
from ostinato.config.sections import RunConfig
from ostinato.config.yaml_files import YAMLError, dumped, parsed
from ostinato.contract.plugins import Plugins
from ostinato.runs.disk import disk_errors, sync
from ostinato.runs.lock import LOCK, Lock
from ostinato.runs.metrics import Metrics
from ostinato.runs.record import differences, record
from ostinato.runs.seal import SEAL, seal, unsealed

T = TypeVar("T")
Make = Callable[[], T]
Save = Callable[[T, Path], None]
Load = Callable[[Path], T]
STATE = "plugins.safetensors"  # tensors that plugins remember, beside the seal


class RunDirectory:
    """One run's folder, held by one process."""

    def __init__(self, path: Path, config: RunConfig, plugins: Plugins) -> None:
        self.path = path
        self.plugins = plugins
        with disk_errors(path):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise UserError(f"{path}: is a file, expected a folder for the run") from None
            strangers = {p.name for p in path.iterdir()} - {LOCK, beside("run.yaml")}
            if strangers and not (path / "run.yaml").exists():
                raise UserError(f"{path}: is not empty and holds no run; choose another folder")
            self._lock = Lock(path)
        try:
            self.resumed = self._claim(config)
        except BaseException:
            self.close()
            raise
        self.metrics = Metrics(path / "metrics.jsonl", self._lock.check)
        self._visited: set[Path] = set()

    def close(self) -> None:
        self._lock.release()

    def _claim(self, config: RunConfig) -> bool:
        """Write run.yaml, or compare with the one that is there; answers whether there was one."""
        path = self.path / "run.yaml"
        mine, other = record(config, self.plugins), f"{self.path}: holds a run of another"
        resumed = path.exists()
        if resumed:
            try:
                with disk_errors(path, "read"):
                    theirs = parsed(path.read_text(encoding="utf-8"))
                if theirs.get("format") != FORMAT:
                    raise UserError(f"{other} edition of Ostinato; choose another folder")
                changed = differences(theirs, mine)
            except (YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
                raise UserError(
                    f"{path}: is damaged; restore it, or start again in another folder"
                ) from None
            if changed and any(self._finished()):  # else there is nothing to lose
                raise UserError(f"{other} config: {'; '.join(changed)}; choose another folder")
        with disk_errors(path):
            new = path.with_name(beside(path.name))
            new.write_text(dumped(mine), encoding="utf-8")
            sync(new)
            new.replace(path)
        for folder in list(self._folders()):  # a list: the walk must not see one go
            if folder.name.startswith(beside("")):
                shutil.rmtree(folder, ignore_errors=True)
        return resumed

    def _folders(self) -> Iterator[Path]:
        """Every folder of this run; other runs may lie inside it."""

        def refuse(error: OSError) -> None:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error

        for place, inner, _ in os.walk(self.path, onerror=refuse):
            here, marks = Path(place), (LOCK, "run.yaml")
            inner[:] = [n for n in inner if not any(os.path.exists(here / n / m) for m in marks)]
            yield here

    def _finished(self) -> Iterator[Path]:
        return (folder for folder in self._folders() if (folder / SEAL).exists())

    def artefact(self, name: str, make: Make[T], save: Save[T], load: Load[T]) -> T:
        """What ``make`` answers, made once; a finished artefact loads if its checksums agree."""
        self._lock.check()
        folder = self.path / name
        self._visited.add(folder)
        if not folder.exists():
            self._refuse_gap(folder)
            made = make()
            self._write(folder, lambda new: save(made, new))
            return made
        done = unsealed(folder)
        self.metrics.go_back(done["metrics"])
        made = load(folder)
        self._load_state(folder, done)  # after `load`, which may call hooks again
        return made

    def _refuse_gap(self, folder: Path) -> None:
        """UserError, while metrics.jsonl is still whole, where later artefacts are there."""
        later = sorted(
            str(f.relative_to(self.path))
            for f in set(self._finished()) - self._visited
            if f.parent.suffix != ".checkpoints" and not f.name.startswith("cache-")
        )
        if later:
            raise UserError(
                f"{folder}: is missing, but what was made after it is there; restore it, or delete "
                f"{', '.join(later)} too, to compute all of it again"
            )

    def cached(self, name: str, make: Make[T], save: Save[T], load: Load[T]) -> T:
        """A result inside a stage; the metrics rows that it logged come back with it."""
        folder = self.path / name
        if not folder.exists():
            with self.metrics.captured() as rows:
                made = make()

            def write(new: Path) -> None:
                save(made, new)
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (new / "rows.jsonl").write_text(lines, encoding="utf-8")

            self._write(folder, write)
        self._load_state(folder, unsealed(folder))
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            self.metrics.write(json.loads(line))
        return load(folder)

    def _write(self, folder: Path, save: Callable[[Path], None], **extra: Any) -> None:
        """Fill a folder beside its place, mark it with checksums, and rename it into its place."""
        new = folder.with_name(beside(folder.name))
        self._lock.check()
        with disk_errors(folder):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            try:
                save(new)
                state, tensors = self.plugins.state()
                if tensors:
                    save_file(tensors, new / STATE)
                seal(new, {"metrics": self.metrics.mark(), "plugins": state, **extra})
                for path in [*new.rglob("*"), new]:
                    sync(path)
                if self.metrics.path.exists():
                    sync(self.metrics.path)  # the mark must not outlive the rows before it
                new.rename(folder)
                sync(folder.parent)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise

    def _load_state(self, folder: Path, done: Mapping[str, Any]) -> None:
        """The plugins as they were when the folder was sealed."""
        self.plugins.load_state(done["plugins"], read_tensors(folder / STATE))

    def save_checkpoint(
        self,
        stage: str,
        name: str,
        step: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        """Replace the checkpoint of ``name`` inside an unfinished stage."""
        folder = self.path / f"{stage}.checkpoints" / f"{as_file(name)}-{step}"
        whole = {key: value.detach().contiguous() for key, value in tensors.items()}
        self._write(
            folder,
            lambda new: save_file(whole, new / "tensors.safetensors"),
            facts=dict(facts),
            step=step,
        )
        for older in set(self._checkpoints(stage, name).values()) - {folder}:
            shutil.rmtree(older)

    def load_checkpoint(
        self, stage: str, name: str
    ) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """(step, tensors, facts) of the last checkpoint of ``name``, or None."""
        found = self._checkpoints(stage, name)
        if not found:
            return None
        last = found[max(found)]
        done = unsealed(last)
        self.metrics.go_back(done["metrics"])
        self._load_state(last, done)
        return done["step"], read_tensors(last / "tensors.safetensors"), done["facts"]

    def checkpoint_facts(self, stage: str) -> list[dict[str, Any]]:
        """The facts of every checkpoint inside an unfinished stage."""
        folder = self.path / f"{stage}.checkpoints"
        return [unsealed(p)["facts"] for p in folder.iterdir()] if folder.exists() else []

    def _checkpoints(self, stage: str, name: str) -> dict[int, Path]:
        """The checkpoints of ``name`` by their step."""
        folder = self.path / f"{stage}.checkpoints"
        there = [(p, *p.name.rpartition("-")) for p in folder.iterdir()] if folder.exists() else []
        return {int(n): p for p, own, _, n in there if own == as_file(name) and n.isdecimal()}

    def drop_checkpoints(self, stage: str) -> None:
        """A finished stage needs none."""
        shutil.rmtree(self.path / f"{stage}.checkpoints", ignore_errors=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Those of a file, on the CPU; none where there is no file."""
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        # cloned, so that they lie in memory as those do that were never saved
        return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118


def beside(name: str) -> str:
    """The name under which something is made before it is whole."""
    return f".making-{name}"


def as_file(name: str) -> str:
    """A name that anybody chose, as part of a file's name."""
    return quote(name, safe="")
