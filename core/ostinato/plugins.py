"""Discover plugins by entry point, activate those that the run names, and call their hooks.

Installed is not active: only the names in the run file's ``plugins`` list are imported, plus the
documented default of each one-owner hook that nobody owns.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from ostinato import hookspecs
from ostinato.answers import check_answer
from ostinato.config import describe_errors
from ostinato.errors import UserError, closest
from ostinato.hookspecs import KINDS

GROUP = "ostinato"
NEEDS = {"views", "dropout", "meta_responses", "lm_head", "members"}
# Columns that the core itself reads. `margin` is there too, but only some losses read it.
CORE_COLUMNS = {"weight", "label"}


@dataclass(frozen=True)
class Found:
    """An installed plugin, not yet imported."""

    name: str
    entry_point: EntryPoint
    distribution: str
    version: str

    @property
    def built_in(self) -> bool:
        return self.distribution == GROUP

    def __str__(self) -> str:
        return f"plugin '{self.name}' of {self.distribution} {self.version}"

    def load(self) -> type[Any]:
        """Import the plugin's class; UserError for each thing that breaks the contract."""
        origin = self.entry_point.value
        try:
            made = self.entry_point.load()
        except (Exception, SystemExit) as error:
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            raise UserError(f"{self} cannot be imported from {origin}: {reason}") from error
        if not inspect.isclass(made):
            kind = type(made).__name__
            raise UserError(f"{self}: {origin} is a {kind}, expected a class with hook methods")
        if faults := list(_faults(made)):
            raise UserError("\n".join(f"{self}: {fault}" for fault in faults))
        return made


def discover() -> dict[str, list[Found]]:
    """Every installed plugin by name; nothing is imported. Two entries are two packages' claims."""
    found: dict[str, list[Found]] = defaultdict(list)
    facts: dict[int, tuple[str, str]] = {}  # each question to a distribution reads its METADATA
    for entry in entry_points(group=GROUP):
        assert entry.dist is not None
        if id(entry.dist) not in facts:
            facts[id(entry.dist)] = (entry.dist.name, entry.dist.version)
        found[entry.name].append(Found(entry.name, entry, *facts[id(entry.dist)]))
    return dict(sorted(found.items()))


def default_owners() -> dict[str, str]:
    """Ostinato's own plugin for each one-owner hook that nobody else owns, by hook."""
    own = {f.entry_point.value: f.name for f in chain(*discover().values()) if f.built_in}
    defaults = entry_points(group=f"{GROUP}.defaults")
    return {e.name: own[e.value] for e in defaults if e.dist and e.dist.name == GROUP}


def find(name: str, where: str, built_in: bool = False) -> Found:
    """The one plugin of that name, or a sentence that says why there is none."""
    installed = discover()
    if name not in installed:
        hint = closest(name, installed) or "; see `ostinato plugins`"
        raise UserError(f"{where}: no plugin '{name}' is installed{hint}")
    claims = [claim for claim in installed[name] if claim.built_in or not built_in]
    if len(claims) > 1:
        packages = " and ".join(f"{c.distribution} {c.version}" for c in claims)
        raise UserError(f"{where}: plugin name '{name}' is claimed by {packages}; uninstall one")
    return claims[0]


def hooks_of(plugin: type) -> list[str]:
    """The hook methods of a plugin class: those marked with ``@ostinato.hookimpl``."""
    members = inspect.getmembers(plugin, callable)
    return [name for name, member in members if hasattr(member, "ostinato_impl")]


def summary_of(plugin: type) -> str:
    """The first line of the class docstring."""
    return (inspect.getdoc(plugin) or "").split("\n")[0]


def _faults(made: type) -> Iterator[str]:
    """What breaks the contract in a plugin class."""
    config = getattr(made, "Config", None)
    if config is not None and not (inspect.isclass(config) and issubclass(config, BaseModel)):
        yield "its Config is not a pydantic BaseModel"
    elif config is not None and config.model_config.get("extra") != "forbid":
        yield "its Config lets unknown keys pass; give it ConfigDict(extra='forbid')"
    hooks = hooks_of(made)
    unmarked = [n for n in KINDS if callable(getattr(made, n, None)) and n not in hooks]
    if not hooks and not unmarked:
        yield "it has no hook method"
    for name in unmarked:
        yield f"its method '{name}' lacks @ostinato.hookimpl"
    for name in hooks:
        if name not in KINDS:
            yield f"'{name}' is not a hook of Ostinato{closest(name, KINDS)}"
        else:
            yield from _argument_faults(name, inspect.getattr_static(made, name))


def _argument_faults(hook: str, member: Any) -> Iterator[str]:
    """pluggy passes over arguments with defaults, and reorders calls by its options."""
    function = getattr(member, "__func__", member)
    if any(function.ostinato_impl.values()):
        yield f"hook '{hook}': @ostinato.hookimpl takes no options; the run file gives the order"
    known = inspect.signature(getattr(hookspecs, hook)).parameters
    given = list(inspect.signature(function).parameters.values())
    for one in given if isinstance(member, staticmethod) else given[1:]:
        if one.kind is not one.POSITIONAL_OR_KEYWORD or one.default is not one.empty:
            yield f"hook '{hook}': argument '{one}' should be a plain name without a default"
        elif one.name not in known:
            yield f"hook '{hook}' has no argument '{one.name}'{closest(one.name, known)}"


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
    if schema is None and settings:
        given = ", ".join(map(str, settings))
        raise UserError(f"{where}: plugins.{name} has no settings, but got {given}")
    try:
        config = schema.model_validate(dict(settings)) if schema is not None else None
    except UserError as error:  # of a validator that reads what a setting names
        raise UserError(f"{where}: {error}") from None
    except ValidationError as error:
        assert schema is not None
        lines = describe_errors(error, schema, where, f"plugins.{name}")
        raise UserError("\n".join(lines)) from None
    if config is not None and (found_out := list(_misread(settings, config))):
        raise UserError("\n".join(f"{where}: plugins.{name}.{fault}" for fault in found_out))
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


@dataclass
class Plugins:
    """The active plugins of a run, and the three ways to call a hook.

    Each call records a magnitude of what the plugin did in ``actions``: proof that it acted.
    ``logged`` holds what hooks logged for the next row of metrics.jsonl.
    """

    active: list[Active]
    owners: dict[str, str]
    actions: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    logged: dict[str, float] = field(default_factory=dict)

    def implementing(self, hook: str) -> list[str]:
        """Names of the active plugins with this hook, in the run file's order."""
        return [a.name for a in self.active if hook in a.hooks]

    def __getitem__(self, name: str) -> Active:
        return next(a for a in self.active if a.name == name)

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call one plugin's hook; an error carries the plugin's name as a note."""
        try:
            answers = getattr(self[name].callers, hook)(**arguments)
        except Exception as error:
            error.add_note(f"in plugin '{name}', hook '{hook}'")
            raise
        if not answers and KINDS[hook] != "all":
            raise UserError(f"plugin '{name}': hook '{hook}' answered None")
        if not answers:
            return None
        check_answer(name, hook, answers[0], arguments)
        return answers[0]

    def acted(self, name: str, hook: str, magnitude: float) -> None:
        """Record the magnitude of what a hook call did."""
        self.actions[f"{name}.{hook}"].append(float(magnitude))

    def one(
        self, hook: str, measure: Callable[[Any], float] | None = None, **arguments: Any
    ) -> Any:
        """The owner's answer."""
        name = self.owners[hook]
        answer = self.call(name, hook, **arguments)
        if measure is not None:
            self.acted(name, hook, measure(answer))
        return answer

    def chain(
        self,
        hook: str,
        argument: str,
        value: Any,
        check: Callable[[str, Any, Any], float],
        **arguments: Any,
    ) -> Any:
        """Pass ``value`` through all; ``check(plugin, before, after)`` answers a magnitude."""
        for name in self.implementing(hook):
            before, value = value, self.call(name, hook, **{argument: value}, **arguments)
            self.acted(name, hook, check(name, before, value))
        return value

    def each(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """(plugin, answer) of every plugin with the hook, in order."""
        for name in self.implementing(hook):
            yield name, self.call(name, hook, **arguments)

    def taken_actions(self) -> dict[str, float]:
        """Mean magnitude by ``plugin.hook`` since the last call of this, which forgets them."""
        means = {key: sum(seen) / len(seen) for key, seen in self.actions.items() if seen}
        self.actions.clear()
        return means

    def need(self, key: str) -> Any:
        """The largest value that an active plugin needs of ``key``, or None.

        A need is a least value, save ``dropout``: two plugins that need different ones are refused.
        """
        values = [a.needs[key] for a in self.active if a.needs.get(key)]
        return max(values) if values else None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, actions and logged numbers start empty; afterwards they are as before."""
        actions, logged = dict(self.actions), dict(self.logged)
        self._pending({}, {})
        try:
            yield
        finally:
            self._pending(actions, logged)

    def _pending(self, actions: Mapping[str, list[float]], logged: Mapping[str, float]) -> None:
        for mine, new in ((self.actions, actions), (self.logged, logged)):
            mine.clear()
            mine.update(new)  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """All that a resumed run must know: each ``state_dict()``, and what waits for a row."""
        states = {}
        for a in self.active:
            if hasattr(a.instance, "state_dict"):
                try:
                    states[a.name] = json.loads(json.dumps(a.instance.state_dict()))
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"{a.found}: its state_dict() should hold numbers, text, lists and "
                        f"mappings only: {error}"
                    ) from error
        return {"states": states, "actions": dict(self.actions), "logged": dict(self.logged)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Give back what :meth:`state` answered."""
        self._pending(state["actions"], state["logged"])
        for a in self.active:
            if a.name in state["states"]:
                a.instance.load_state_dict(state["states"][a.name])


def activate(wanted: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> Plugins:
    """Activate the plugins of a run file and the defaults of hooks that nobody owns.

    Raises UserError, every complaint a line, before anything is computed.
    """
    active: list[Active] = []
    complaints: list[str] = []
    names = [name for name, _ in wanted]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        complaints.append(f"{where}: plugin '{name}' is listed twice")
    for name, settings in dict(wanted).items():
        try:
            active.append(activate_one(name, settings, where))
        except UserError as error:
            complaints.append(str(error))
    if not complaints:
        active = with_defaults(
            active, default_owners(), lambda name: activate_one(name, {}, where, built_in=True)
        )
    complaints += [f"{where}: {fault}" for fault in faults(active, whole=not complaints)]
    if complaints:
        raise UserError("\n".join(complaints))
    owners = {hook: a.name for a in active for hook in a.hooks if KINDS[hook] == "one"}
    return Plugins(active, owners)


def with_defaults(
    active: Sequence[Active], owners: Mapping[str, str], make: Callable[[str], Active]
) -> list[Active]:
    """The plugins, and the default of each hook in ``owners`` that none of them has."""
    whole = list(active)
    for hook in (h for h in KINDS if h in owners):
        if not any(hook in a.hooks for a in whole):
            whole.append(make(owners[hook]))
    return whole


def faults(active: Sequence[Active], whole: bool = True) -> Iterator[str]:
    """Why these plugins, defaults among them, may not stand in one run, a sentence each.

    Where they are not the ``whole`` run, what a column lacks may be in the rest.
    """
    for hook in (h for h, kind in KINDS.items() if kind == "one"):
        claims = [f"'{a.name}'" for a in active if hook in a.hooks]
        if len(claims) > 1:
            yield f"hook '{hook}' has one owner, but {' and '.join(claims)} claim it"
    for name, column, late in missing_columns(active) if whole else ():
        order = " listed before it" if late else ""
        yield f"plugin '{name}' consumes column '{column}', which no plugin{order} provides"
    for name, columns in idle_columns(active) if whole else ():
        names = ", ".join(f"'{column}'" for column in columns)
        word = "column" if len(columns) == 1 else "columns"
        yield f"plugin '{name}' provides {word} {names}, which nothing consumes"
    yield from _dropout_faults(active)


def _dropout_faults(active: Sequence[Active]) -> Iterator[str]:
    """A body has one dropout: more of it is not better, so the largest need would not do."""
    asked = [(a.name, a.needs["dropout"]) for a in active if a.needs.get("dropout")]
    for name, p in asked[1:]:
        first, other = asked[0]
        if p != other:
            yield (
                f"plugin '{first}' needs dropout {other:g} and plugin '{name}' {p:g}, but a reward "
                "model has one; set them alike"
            )


def columns(of: Sequence[Active], which: str) -> set[str]:
    """Data columns that these plugins declare: ``which`` is provides or consumes."""
    return {column for a in of for column in getattr(a.instance, which, ())}


def missing_columns(active: Sequence[Active]) -> Iterator[tuple[str, str, bool]]:
    """(plugin, column that it consumes and nothing provides, whether it must be listed before)."""
    for place, one in enumerate(active):
        late = "refine_data" in one.hooks
        there = columns(active[:place] if late else active, "provides")
        for column in sorted(columns([one], "consumes") - there - CORE_COLUMNS - {"margin"}):
            yield one.name, column, late


def idle_columns(active: Sequence[Active]) -> Iterator[tuple[str, list[str]]]:
    """(plugin, its columns) where nothing consumes any column that the plugin provides."""
    consumed = columns(active, "consumes") | CORE_COLUMNS
    for one in active:
        provided = columns([one], "provides")
        if provided and not provided & consumed:
            yield one.name, sorted(provided)
