"""Discover plugins by entry point, activate those that the run names, and call their hooks.

Installed is not active: only the names in the run file's ``plugins`` list are imported, plus the
documented default of each one-owner hook that nobody owns.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from ostinato import hookspecs
from ostinato.config import describe_errors
from ostinato.errors import UserError, closest
from ostinato.hookspecs import KINDS

GROUP = "ostinato"
NEEDS = {"views", "dropout", "meta_responses", "lm_head", "members"}


@dataclass(frozen=True)
class Found:
    """An installed plugin, not yet imported."""

    name: str
    entry_point: EntryPoint
    distribution: str
    version: str

    def load(self) -> type[Any]:
        """Import the plugin's class; every way to be broken ends in one sentence."""
        where = f"plugin '{self.name}' of {self.distribution} {self.version}"
        try:
            made = self.entry_point.load()
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            raise UserError(
                f"{where} cannot be imported from {self.entry_point.value}: "
                f"{type(error).__name__}: {text}"
            ) from error
        if not inspect.isclass(made):
            raise UserError(
                f"{where}: {self.entry_point.value} is a {type(made).__name__}, expected a class "
                "with hook methods"
            )
        config = getattr(made, "Config", None)
        if config is not None and not (inspect.isclass(config) and issubclass(config, BaseModel)):
            raise UserError(f"{where}: its Config is not a pydantic BaseModel")
        return made


def discover() -> dict[str, list[Found]]:
    """Every installed plugin by name; nothing is imported. Two entries are two packages' claims."""
    found: dict[str, list[Found]] = defaultdict(list)
    for entry in entry_points(group=GROUP):
        assert entry.dist is not None
        found[entry.name].append(Found(entry.name, entry, entry.dist.name, entry.dist.version))
    return dict(sorted(found.items()))


def default_owners() -> dict[str, str]:
    """The built-in plugin that owns each one-owner hook when nobody else does, by hook."""
    names = {entry.value: entry.name for entry in entry_points(group=GROUP)}
    defaults = entry_points(group=f"{GROUP}.defaults")
    return {entry.name: names[entry.value] for entry in defaults}


def find(name: str, where: str) -> Found:
    """The one plugin of that name, or a sentence that says why there is none."""
    installed = discover()
    if name not in installed:
        raise UserError(f"{where}: no plugin '{name}' is installed{closest(name, installed)}")
    claims = installed[name]
    if len(claims) > 1:
        packages = " and ".join(f"{c.distribution} {c.version}" for c in claims)
        raise UserError(f"{where}: plugin name '{name}' is claimed by {packages}; remove one")
    return claims[0]


def hooks_of(plugin: type) -> list[str]:
    """The hook methods of a plugin class: those marked with ``@ostinato.hookimpl``."""
    return [
        name
        for name, member in inspect.getmembers(plugin, callable)
        if getattr(member, "ostinato_impl", None)
    ]


def summary_of(plugin: type) -> str:
    """The first line of the class docstring."""
    return (inspect.getdoc(plugin) or "").split("\n")[0]


@dataclass
class Active:
    """One plugin of a run: its instance and where it comes from."""

    found: Found
    instance: Any
    settings: dict[str, Any]
    hooks: list[str]

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def needs(self) -> Mapping[str, Any]:
        return getattr(self.instance, "needs", {})


def activate_one(name: str, settings: Mapping[str, Any], where: str) -> Active:
    """Import, check and configure one plugin."""
    found = find(name, where)
    made = found.load()
    hooks = hooks_of(made)
    own = f"plugin '{name}' of {found.distribution} {found.version}"
    for hook in hooks:
        if hook not in KINDS:
            raise UserError(f"{own}: '{hook}' is not a hook of Ostinato{closest(hook, KINDS)}")
    if not hooks:
        forgotten = [hook for hook in KINDS if callable(getattr(made, hook, None))]
        hint = f"; '{forgotten[0]}' lacks @ostinato.hookimpl" if forgotten else ""
        raise UserError(f"{own} has no hook method{hint}")
    schema: type[BaseModel] | None = getattr(made, "Config", None)
    if schema is None and settings:
        raise UserError(
            f"{where}: plugin '{name}' has no settings, but {sorted(settings)} is given"
        )
    try:
        config = schema(**settings) if schema is not None else None
        instance: Any = object.__new__(made)
        instance.config = config  # before __init__, which may read it
        instance.__init__()
    except ValidationError as error:
        assert schema is not None
        raise UserError("\n".join(describe_errors(error, schema, f"{where}.{name}"))) from None
    except Exception as error:
        raise UserError(f"{own} cannot be made: {type(error).__name__}: {error}") from error
    unknown = sorted(set(getattr(instance, "needs", {})) - NEEDS)
    if unknown:
        raise UserError(f"{own} needs '{unknown[0]}', which is unknown{closest(unknown[0], NEEDS)}")
    resolved = config.model_dump(mode="json") if config is not None else {}
    return Active(found, instance, resolved, hooks)


@dataclass
class Plugins:
    """The active plugins of a run, and the three ways to call a hook.

    Each call records a magnitude of what the plugin did in ``actions``: proof that it acted.
    """

    active: list[Active]
    manager: pluggy.PluginManager
    owners: dict[str, str]
    actions: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def implementing(self, hook: str) -> list[str]:
        """Names of the active plugins with this hook, in the run file's order."""
        return [a.name for a in self.active if hook in a.hooks]

    def __getitem__(self, name: str) -> Active:
        return next(a for a in self.active if a.name == name)

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call one plugin's hook; an error carries the plugin's name as a note."""
        others = [a.instance for a in self.active if a.name != name]
        caller = self.manager.subset_hook_caller(hook, remove_plugins=others)
        try:
            answers = caller(**arguments)
        except Exception as error:
            error.add_note(f"in plugin '{name}', hook '{hook}'")
            raise
        if not answers and KINDS[hook] != "all":
            raise UserError(f"plugin '{name}': hook '{hook}' answered None")
        return answers[0] if answers else None

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
        """The largest value that an active plugin needs of ``key``, or None."""
        values = [a.needs[key] for a in self.active if a.needs.get(key)]
        return max(values) if values else None

    def state(self) -> dict[str, Any]:
        """``state_dict()`` of every plugin that has one."""
        return {
            a.name: a.instance.state_dict()
            for a in self.active
            if hasattr(a.instance, "state_dict")
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Give back what :meth:`state` answered."""
        for name, value in state.items():
            self[name].instance.load_state_dict(value)


def activate(wanted: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> Plugins:
    """Activate the plugins of a run file and the defaults of hooks that nobody owns.

    Raises UserError, every complaint a line, before anything is computed.
    """
    active: list[Active] = []
    complaints: list[str] = []
    for name, settings in wanted:
        if name in {a.name for a in active}:
            complaints.append(f"{where}: plugin '{name}' is listed twice")
            continue
        try:
            active.append(activate_one(name, settings, where))
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(complaints))
    claims: dict[str, list[str]] = {hook: [] for hook, kind in KINDS.items() if kind == "one"}
    for one in active:
        for hook in one.hooks:
            if hook in claims:
                claims[hook].append(one.name)
    defaults = default_owners()
    for hook, names in claims.items():
        if len(names) > 1:
            both = " and ".join(f"'{name}'" for name in names)
            complaints.append(f"{where}: hook '{hook}' has one owner, but {both} both claim it")
        if not names and hook in defaults:
            one = next(
                (a for a in active if a.name == defaults[hook]),
                None,
            ) or activate_one(defaults[hook], {}, where)
            if one not in active:
                active.append(one)
            names.append(one.name)
    if complaints:
        raise UserError("\n".join(complaints))
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    for one in active:
        try:
            manager.register(one.instance, one.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            text = " ".join(str(error).split())
            raise UserError(f"plugin '{one.name}' of {one.found.distribution}: {text}") from None
    owners = {hook: names[0] for hook, names in claims.items() if names}
    _check_columns(active, where)
    return Plugins(active, manager, owners)


# Columns that the core itself reads; `margin` belongs to the loss that uses it.
CORE_COLUMNS = {"weight", "label"}


def _check_columns(active: Sequence[Active], where: str) -> None:
    """A column that is consumed must be provided by an earlier plugin, and the other way round."""
    provided: set[str] = {"margin", *CORE_COLUMNS}
    consumed = set(CORE_COLUMNS)
    complaints = []
    for one in active:
        for column in getattr(one.instance, "consumes", ()):
            consumed.add(column)
            if column not in provided:
                complaints.append(
                    f"{where}: plugin '{one.name}' consumes column '{column}', which no plugin "
                    "listed before it provides"
                )
        provided |= set(getattr(one.instance, "provides", ()))
    for one in active:
        columns = set(getattr(one.instance, "provides", ()))
        if columns and not columns & consumed:
            complaints.append(
                f"{where}: plugin '{one.name}' provides {sorted(columns)}, which nothing consumes"
            )
    if complaints:
        raise UserError("\n".join(complaints))
