"""The run directory: atomic artefacts with checksums, metrics, checkpoints, one process at a time.

Everything is written beside its place and renamed into it, so what has its name is whole.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ostinato.config.errors import UserError
from ostinato.config.reading import flat
from ostinato.config.sections import RunConfig
from ostinato.config.yaml_files import YAMLError, dumped, parsed
from ostinato.contract.plugins import Plugins
from ostinato.runs.disk import checksum, disk_errors, sync
from ostinato.runs.metrics import Metrics

T = TypeVar("T")
MAY_CHANGE = ("iterations", "backend")
STACK = ("ostinato", "torch", "transformers", "accelerate", "datasets", "trl", "numpy")


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
            strangers = {p.name for p in path.iterdir()} - {"lock", beside("run.yaml")}
            if strangers and not (path / "run.yaml").exists():
                raise UserError(f"{path}: is not empty and holds no run; choose another folder")
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
        self._visited: set[Path] = set()

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def _claim(self, config: RunConfig) -> bool:
        """Write run.yaml, or compare with the one that is there; answers whether there was one."""
        path = self.path / "run.yaml"
        mine = self._record(config)
        resumed = path.exists()
        if resumed:
            try:
                theirs = parsed(path.read_text(encoding="utf-8"))
                changed = differences(theirs, mine)
            except (YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
                raise UserError(
                    f"{path}: is damaged; restore it, or start again in another folder"
                ) from None
            started = any(self.path.rglob("done.json"))  # else there is nothing to lose
            if changed and started:
                raise UserError(
                    f"{self.path}: holds a run of another config: {'; '.join(changed)}; "
                    "choose another folder"
                )
        with disk_errors(path):
            new = path.with_name(beside(path.name))
            new.write_text(dumped(mine), encoding="utf-8")
            sync(new)
            new.replace(path)
        for left in list(self.path.rglob(beside("*"))):  # a list: the walk must not see it go
            shutil.rmtree(left, ignore_errors=True)
        return resumed

    def _record(self, config: RunConfig) -> dict[str, Any]:
        return {
            "config": config.model_dump(mode="json"),
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

    def artefact(
        self,
        name: str,
        make: Callable[[], T],
        save: Callable[[T, Path], None],
        load: Callable[[Path], T],
    ) -> T:
        """What ``make`` answers, made once; a finished artefact loads if its checksums agree."""
        folder = self.path / name
        self._visited.add(folder)
        if not folder.exists():
            self._refuse_gap(folder)
            made = make()
            self._write(folder, lambda new: save(made, new))
            return made
        done = self._verified(folder)
        self.metrics.go_back(done["metrics"])
        made = load(folder)
        self.plugins.load_state(done["plugins"])  # after `load`, which may call hooks again
        return made

    def _refuse_gap(self, folder: Path) -> None:
        """UserError, while metrics.jsonl is still whole, where later artefacts are there."""
        finished = {p.parent for p in self.path.rglob("done.json")} - self._visited
        later = sorted(
            str(f.relative_to(self.path))
            for f in finished
            if f.parent.suffix != ".checkpoints" and not f.name.startswith("cache-")
        )
        if later:
            raise UserError(
                f"{folder}: is missing, but what was made after it is there; restore it, or delete "
                f"{', '.join(later)} too, to compute all of it again"
            )

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

            def write(new: Path) -> None:
                save(made, new)
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (new / "rows.jsonl").write_text(lines, encoding="utf-8")

            self._write(folder, write)
        done = self._verified(folder)
        self.plugins.load_state(done["plugins"])
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            self.metrics.write(json.loads(line))
        return load(folder)

    def _write(self, folder: Path, save: Callable[[Path], None], **extra: Any) -> None:
        """Fill a folder beside its place, mark it with checksums, and rename it into its place."""
        new = folder.with_name(beside(folder.name))
        with disk_errors(folder):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            try:
                save(new)
                files = sorted(p for p in new.rglob("*") if p.is_file())
                done = {
                    "files": {str(p.relative_to(new)): checksum(p) for p in files},
                    "metrics": self.metrics.mark(),
                    "plugins": self.plugins.state(),
                    **extra,
                }
                (new / "done.json").write_text(json.dumps(done, indent=1), encoding="utf-8")
                for path in [*new.rglob("*"), new]:
                    sync(path)
                if self.metrics.path.exists():
                    sync(self.metrics.path)  # the mark must not outlive the rows before it
                new.rename(folder)
                sync(folder.parent)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise

    def _verified(self, folder: Path) -> dict[str, Any]:
        """What done.json says, if every file is as it was written."""
        try:
            done: dict[str, Any] = json.loads((folder / "done.json").read_text(encoding="utf-8"))
            wrong = [
                name
                for name, value in done["files"].items()
                if not (folder / name).is_file() or checksum(folder / name) != value
            ]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            wrong = ["done.json"]
        if wrong:
            raise UserError(
                f"{folder / wrong[0]}: is missing, truncated or changed since the run wrote it; "
                f"restore it, or delete {folder} and what was made after it to compute it again"
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

        def write(new: Path) -> None:
            save_file(contiguous, new / "tensors.safetensors")

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
        self.metrics.go_back(done["metrics"])
        self.plugins.load_state(done["plugins"])
        with safe_open(found[-1] / "tensors.safetensors", framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return done["step"], tensors, done["facts"]

    def drop_checkpoints(self, stage: str) -> None:
        """A finished stage needs none."""
        shutil.rmtree(self.path / f"{stage}.checkpoints", ignore_errors=True)


def beside(name: str) -> str:
    """The name under which something is made before it is whole."""
    return f".making-{name}"


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """What keeps a run from going on under another config, one difference each."""
    old, new = decisive(theirs), decisive(mine)
    changed = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    before, now = theirs["config"]["iterations"], mine["config"]["iterations"]
    if now < before:
        changed.append(f"iterations was {before}, is {now}, and may only grow")
    return changed


def decisive(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of run.yaml that must stay: not iterations, backend, nor plugins that only watch."""
    plugins = [p for p in record["plugins"] if p["hooks"] != ["observe"]]
    config = {k: v for k, v in record["config"].items() if k not in (*MAY_CHANGE, "plugins")}
    return flat(
        {
            **config,
            "plugins": {p["name"]: p["settings"] for p in plugins},
            "order of plugins": [p["name"] for p in plugins],
        }
    )


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
