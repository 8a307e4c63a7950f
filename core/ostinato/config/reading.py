"""A run file, a world or a mapping becomes a checked config; overrides lie over it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ostinato.config.complaints import complaint
from ostinato.config.errors import UserError, closest
from ostinato.config.sections import RunConfig
from ostinato.config.worlds import placed, world_folder, worlds
from ostinato.config.yaml_files import YAMLError, parsed, read_file

PATHS = ("model", "models", "tokenizer", "data", "against")  # settings that name files or folders


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
    if name not in (names := {one for entry in entries for one in entry}):
        raise UserError(f"{key}: the run lists no plugin '{name}'{closest(name, names)}")
    changed = _nested(rest, value)
    return [{name: merged(e[name] or {}, changed)} if name in e else e for e in entries]


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a run: a file, a world's name, or a mapping, with ``key=value`` overrides.

    Raises UserError with every complaint, one a line.
    """
    if isinstance(source, Mapping):
        where, settings = "run", dict(source)
    elif str(source) in worlds() and not Path(source).exists():
        where, settings = str(source), {"world": str(source)}
    else:
        where, settings = str(source), read_file(Path(source), worlds())
        _anchor_paths(settings, Path(source).absolute().parent)
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
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise complaint(error, RunConfig, where) from None
    if config.gold is not None and isinstance(source, str | Path) and Path(source).is_file():
        config.gold._beside = Path(source).absolute().parent
    return config


def _anchor_paths(settings: dict[str, Any], folder: Path) -> None:
    """Paths in a run file are relative to it; a hub name is a path only where one is there."""
    parts = [settings.get(name) for name in ("policy", "reward_model", "gold", "prompts", "sft")]
    listed = settings.get("plugins")
    for entry in listed if isinstance(listed, list) else ():
        parts += entry.values() if isinstance(entry, dict) else ()

    def anchored(value: Any, named: bool) -> Any:
        if isinstance(value, dict):
            return {key: anchored(one, key in PATHS) for key, one in value.items()}
        if isinstance(value, list):
            return [anchored(one, named) for one in value]
        if not named or not isinstance(value, str):
            return value
        path = os.path.join(folder, os.path.expanduser(value))  # unlike Path's, it never raises
        return os.path.realpath(path) if value[:1] in {".", "~"} or os.path.exists(path) else value

    for part in parts:
        if isinstance(part, dict):
            part.update(anchored(part, named=False))
