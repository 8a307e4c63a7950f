"""Embedded worlds: packages that supply a run with models and prompts."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ostinato.config.errors import UserError, closest


def worlds() -> dict[str, list[EntryPoint]]:
    """Installed worlds by name; each entry point is a package with a ``world.yaml``."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group="ostinato.worlds"):
        found.setdefault(entry.name, []).append(entry)
    return found


def world_folder(name: str, where: str) -> Path:
    """Where an installed world lies. Raises UserError where there is no such world, or two."""
    installed = worlds()
    if name not in installed:
        raise UserError(f"{where}: world: no world '{name}' is installed{closest(name, installed)}")
    claims = installed[name]
    if len(claims) > 1:
        packages = " and ".join(c.dist.name for c in claims if c.dist)
        raise UserError(f"{where}: world '{name}' is claimed by {packages}; uninstall one")
    try:
        spec = importlib.util.find_spec(claims[0].value)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"{where}: world: '{claims[0].value}' of '{name}' cannot be found")
    return Path(spec.origin).parent


def placed(value: Any, folder: Path) -> Any:
    """Settings with ``{world}`` in their strings made into the folder that the world lies in."""
    return _mapped(value, lambda text: text.replace("{world}", str(folder)))


def portable(value: Any, folder: Path) -> Any:
    """A record in which paths into the world begin with ``{world}``, wherever that is installed."""
    inside = f"{folder}{os.sep}"
    return _mapped(value, lambda s: s.replace(inside, "{world}/", 1) if s.startswith(inside) else s)


def unported(value: Any, folder: Path) -> Any:
    """Such a record with the paths of this installation."""
    return _mapped(value, lambda s: placed(s, folder) if s.startswith("{world}/") else s)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {_mapped(k, change): _mapped(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_mapped(v, change) for v in value]
    return change(value) if isinstance(value, str) else value
