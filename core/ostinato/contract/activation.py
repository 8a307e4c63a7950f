"""One active plugin: imported, configured, its declarations checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from ostinato.config.complaints import complaint
from ostinato.config.errors import UserError, closest
from ostinato.contract import hookspecs
from ostinato.contract.discovery import GROUP, NEEDS, Found, find, hooks_of


@dataclass
class Active:
    """One plugin of a run: its instance, its own hook callers, and where it comes from."""

    found: Found
    instance: Any
    settings: dict[str, Any]
    hooks: list[str]
    needs: Mapping[str, Any]
    callers: pluggy.HookRelay

    @property
    def name(self) -> str:
        return self.found.name


def activate_one(
    name: str, settings: Mapping[str, Any], where: str, built_in: bool = False
) -> Active:
    """Import, check and configure one plugin."""
    found = find(name, where, built_in)
    made = found.load()
    schema: type[BaseModel] | None = getattr(made, "Config", None)
    name = found.name
    if schema is None:
        if settings:
            given = ", ".join(map(str, settings))
            raise UserError(f"{where}: plugins.{name} has no settings, but got {given}")
        return _made(found, made, None)
    try:
        config = schema.model_validate(dict(settings))
    except UserError as error:  # of a validator that reads what a setting names
        raise UserError(f"{where}: {error}") from None
    except ValidationError as error:
        raise complaint(error, schema, where, f"plugins.{name}") from None
    if faults := [f"{where}: plugins.{name}.{fault}" for fault in _misread(settings, config)]:
        raise UserError("\n".join(faults))
    return _made(found, made, config)


def _misread(given: Mapping[str, Any], config: BaseModel) -> Iterator[str]:
    """What pydantic takes for a number unless a schema says otherwise: true, and infinity."""
    for key, value in config:
        if isinstance(given.get(key), bool) and not isinstance(value, bool):
            yield f"{key}: expected a number, got {str(given[key]).lower()}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: expected a finite number, got {value}"


def declared(name: str) -> Active:
    """A plugin without a run file, for what it declares: required settings are left out."""
    found = find(name, "plugins")
    made = found.load()
    schema: type[BaseModel] | None = getattr(made, "Config", None)
    return _made(found, made, schema.model_construct() if schema is not None else None)


def _made(found: Found, made: type[Any], config: BaseModel | None) -> Active:
    """An instance with its settings, its declarations checked."""
    try:
        instance: Any = object.__new__(made)
        instance.config = config  # before __init__, which may read it
        instance.__init__()
        needs = dict(getattr(instance, "needs", {}))
    except Exception as error:
        raise UserError(f"{found} cannot be made: {type(error).__name__}: {error}") from error
    for key in sorted(set(needs) - NEEDS):
        raise UserError(f"{found} needs '{key}', which is unknown{closest(key, NEEDS)}")
    # A manager each: pluggy calls all plugins of a manager at once, and we call one at a time.
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(instance, found.name)
    resolved = config.model_dump(mode="json") if config is not None else {}
    return Active(found, instance, resolved, hooks_of(made), needs, manager.hook)
