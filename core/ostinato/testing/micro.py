"""Whole runs of plugins, installed or not, in the micro world: two iterations in a second or two.

Its policy and reward model are tiny and random, its gold counts good words less bad ones.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ostinato import loop
from ostinato.config.reading import merged
from ostinato.contract.activation import activate_one
from ostinato.contract.discovery import discover, offered
from ostinato.engine.session import Watcher
from ostinato.testing.models import WORLD

Plugin = str | type[Any]
Listed = Plugin | Mapping[Any, Mapping[str, Any] | None]


def run(
    plugins: Sequence[Listed] = (),
    out: str | Path | None = None,
    *,
    watch: Sequence[Watcher] = (),
    **settings: Any,
) -> loop.Run:
    """Run, or resume, plugins in the micro world, in the folder ``out``, else one of its own.

    ``plugins``: classes, names, or {class or name: settings}, in the order of a run file.
    ``settings`` are sections of a run file: ``rl={"rollouts": 4}``. Raises what a run raises.
    """
    with listed(plugins) as entries:
        source = merged(WORLD, {**settings, "plugins": entries})
        return loop.run(source, scratch() if out is None else out, watch=watch)


def configured(plugin: type[Any], **settings: Any) -> Any:
    """An instance of a plugin class with these settings, as a run makes it."""
    with listed([plugin]):
        return activate_one(name_of(plugin), settings, "testing").instance


@contextmanager
def listed(plugins: Sequence[Listed]) -> Iterator[list[dict[str, Any]]]:
    """Inside, the classes are found; answers what a run file lists."""
    entries: list[dict[str, Any]] = []
    classes: dict[str, type[Any]] = {}
    for entry in plugins:
        given: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else {entry: None}
        for plugin, settings in given.items():
            if not isinstance(plugin, str) and _installed(plugin) is None:
                classes[plugin.__name__] = plugin
            entries.append({name_of(plugin): dict(settings or {})})
    with offered(classes):
        yield entries


def name_of(plugin: Plugin) -> str:
    """The name under which it is installed; a class that is not has its own."""
    return plugin if isinstance(plugin, str) else _installed(plugin) or plugin.__name__


def _installed(plugin: type[Any]) -> str | None:
    root = plugin.__module__.partition(".")[0]
    for name, claims in discover().items():
        for found in claims:
            module, _, attribute = found.entry_point.value.partition(":")
            ours = module.partition(".")[0] == root and attribute == plugin.__qualname__
            if ours and found.entry_point.load() is plugin:
                return name
    return None


def scratch() -> Path:
    """A folder that is gone when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="ostinato-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made / "run"
