"""A run file, a world or a mapping becomes a checked config; overrides lie over it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ostinato.config.complaints import complaint
from ostinato.config.errors import UserError, closest
from ostinato.config.named import anchored, beside
from ostinato.config.records import check_record
from ostinato.config.sections import RunConfig, plugin_name
from ostinato.config.worlds import placed, unported, world_folder, worlds
from ostinato.config.yaml_files import YAMLError, parsed, read_file

PATHS = ("model", "models", "tokenizer", "data", "against")  # settings that name files or folders
SECTIONS = ("policy", "reward_model", "gold", "prompts", "sft")  # that have some of those
FUNCTIONS = ("function", "functions")  # settings of the form module:name or file.py:name

Settings = dict[str, Any]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, mapping by mapping; lists are replaced whole."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        out[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return out


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``a.b.c`` keys."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _override(text: str) -> tuple[list[str], Any]:
    """``a.b=value`` as its path and its value."""
    key, separator, value = text.partition("=")
    if not separator or not all(key.split(".")):
        raise UserError(f"--set {text}: expected key=value, such as rl.rollouts=10")
    try:
        return key.split("."), parsed(value)
    except YAMLError:
        raise UserError(f"--set {text}: the value is not valid YAML") from None


def _nested(path: Sequence[str], value: Any) -> Any:
    for part in reversed(path):
        value = {part: value}
    return value


def _set_plugin(listed: Any, path: Sequence[str], value: Any) -> Any:
    """The list of plugins with one setting, ``path`` = name and key, changed."""
    if not isinstance(listed, list) or not all(isinstance(e, str | dict) for e in listed):
        return listed  # validation says what is wrong with it
    key = f"--set plugins.{'.'.join(path)}"
    name, *rest = path
    entries = [{e: {}} if isinstance(e, str) else e for e in listed]
    if name not in (names := {plugin_name(one) for entry in entries for one in entry}):
        raise UserError(f"{key}: the run lists no plugin '{name}'{closest(name, names)}")
    changed = _nested(rest, value)
    return [
        {one: merged(e[one] or {}, changed) if plugin_name(one) == name else e[one] for one in e}
        for e in entries
    ]


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a run: a file, a world's name, or a mapping, with ``key=value`` overrides.

    Raises UserError with every complaint, one a line.
    """
    where, settings, record = _read(source)
    changes = [_override(text) for text in overrides]
    of_plugins = [(p[1:], v) for p, v in changes if p[0] == "plugins" and len(p) > 2]
    for path, value in changes:
        if path[1:] not in [p for p, _ in of_plugins]:
            settings = merged(settings, _nested(path, value))
    world = settings.get("world")
    folder = world_folder(world, where) if isinstance(world, str) else None
    if folder:
        settings = merged(placed(read_file(folder / "world.yaml"), folder), settings)
    for path, value in of_plugins:
        settings["plugins"] = _set_plugin(settings.get("plugins"), path, value)
    if folder and "plugins" in settings:
        settings["plugins"] = placed(settings["plugins"], folder)
    try:
        config = RunConfig.model_validate(_anchored_all(settings, Path.cwd()))
    except ValidationError as error:
        raise complaint(error, RunConfig, where) from None
    config._replayed, config._folder = record, folder
    return config


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, Settings, Settings | None]:
    """The source's name in a sentence, its settings, and where it is a run.yaml all of that."""
    if isinstance(source, Mapping):
        return "run", dict(source), None
    if str(source) in worlds() and (Path(source).is_dir() or not Path(source).exists()):
        return str(source), {"world": str(source)}, None
    where, settings = str(source), read_file(Path(source), worlds())
    if "config" not in settings:
        return where, _anchored_all(settings, Path(source).absolute().parent), None
    check_record(settings, where)
    if isinstance(world := settings["config"].get("world"), str):
        settings = unported(settings, world_folder(world, where))
    return where, settings["config"], settings


def _anchored_all(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with what names a file in ``folder`` made absolute."""
    made = {
        key: _anchored(value, folder) if key in SECTIONS else value
        for key, value in settings.items()
    }
    if isinstance(listed := made.get("plugins"), list):
        made["plugins"] = [_anchored_plugin(entry, folder) for entry in listed]
    return made


def _anchored_plugin(entry: Any, folder: Path) -> Any:
    if isinstance(entry, dict):
        return {_anchored_plugin(k, folder): _anchored(v, folder) for k, v in entry.items()}
    return beside(entry, folder) if isinstance(entry, str) else entry


def _anchored(value: Any, folder: Path, key: str = "") -> Any:
    """Only settings of certain names are paths; a hub name is one only where a file is so named."""
    if isinstance(value, dict):
        return {name: _anchored(one, folder, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_anchored(one, folder, key) for one in value]
    if not isinstance(value, str) or os.path.isabs(value):
        return value
    if key in FUNCTIONS:
        return beside(value, folder)
    path = anchored(value, folder)
    there = key in PATHS and (value[:1] in {".", "~"} or os.path.exists(path))
    return path if there else value
