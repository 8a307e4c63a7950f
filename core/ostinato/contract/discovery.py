"""Plugins, installed or in a file: found, imported when a run names them, held to the contract."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from typing import Any

from pydantic import BaseModel

from ostinato.config.errors import UserError, closest
from ostinato.config.named import InFile, in_a_file
from ostinato.config.sections import plugin_name
from ostinato.contract import hookspecs
from ostinato.contract.hookspecs import CONTRACT, KINDS

GROUP = "ostinato"
NEEDS = {"views", "dropout", "meta_responses", "lm_head", "members"}
NEEDS |= {"reference_logits", "reward_models"}
CHECKED = ("config", "plugins")  # what check_run may ask for


@dataclass(frozen=True)
class Given:
    """A class in the place of an entry point, which would import it."""

    made: Any

    @property
    def value(self) -> str:
        return f"{self.made.__module__}:{self.made.__qualname__}"

    def load(self) -> Any:
        return self.made


@dataclass(frozen=True)
class Found:
    """A plugin, not yet imported."""

    name: str
    entry_point: EntryPoint | InFile | Given
    distribution: str = ""  # of an installed one, and so the version
    version: str = ""

    @property
    def built_in(self) -> bool:
        return self.distribution == GROUP

    @property
    def record(self) -> dict[str, str]:
        """Where it comes from, as run.yaml has it: a distribution, or a file and its checksum."""
        if isinstance(self.entry_point, InFile):
            return {"file": str(self.entry_point.file), "sha256": self.entry_point.sha256}
        return {"distribution": self.distribution, "version": self.version}

    @property
    def origin(self) -> str:
        """The same in short."""
        record = self.record
        return record.get("file") or " ".join(record.values())

    def __str__(self) -> str:
        return f"plugin '{self.name}' of {self.origin}"

    def load(self) -> type[Any]:
        """Import the plugin's class; UserError for each thing that breaks the contract."""
        entry = self.entry_point
        try:
            made = entry.load()
        except (Exception, SystemExit) as error:
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            at, line = f" from {entry.value}", ""
            if isinstance(entry, InFile):
                at, line = "", entry.line(error)
            raise UserError(f"{self} cannot be imported{at}: {reason}{line}") from error
        if not inspect.isclass(made):
            found = f"{entry.value} is a {type(made).__name__}"
            raise UserError(f"{self}: {found}, expected a class with hook methods")
        if faults := list(_faults(made)):
            raise UserError("\n".join(f"{self}: {fault}" for fault in faults))
        return made


_known: ContextVar[dict[str, list[Found]] | None] = ContextVar("_known", default=None)


@contextmanager
def offered(classes: Mapping[str, Any]) -> Iterator[None]:
    """Inside, plugins are these classes by name, and those that are installed at its start."""
    mine = {n: [Found(n, Given(made), made.__module__, "0")] for n, made in classes.items()}
    token = _known.set(discover() | mine)
    try:
        yield
    finally:
        _known.reset(token)


def discover() -> dict[str, list[Found]]:
    """Every installed plugin by name; nothing is imported. Two entries are two packages' claims."""
    if (known := _known.get()) is not None:
        return known
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
    if in_a_file(name) and plugin_name(name).isidentifier():
        called = plugin_name(name)
        return Found(called, InFile.read(name, f"{where}: plugin '{called}'"))
    if {":", "/", "\\"} & {*name} or name.endswith(".py"):
        wanted = "a file and a class in it, such as ./my_methods.py:MyMethod"
        raise UserError(f"{where}: plugin '{name}' should be {wanted}")
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
    edition = getattr(made, "contract", CONTRACT)
    if str(edition) != CONTRACT:  # nothing else that is said of it would be to the point
        yield (
            f"it is written for edition {edition} of the contract, and this Ostinato has edition "
            f"{CONTRACT}; install versions of the two that go together"
        )
        return
    config = getattr(made, "Config", None)
    if config is not None and not (inspect.isclass(config) and issubclass(config, BaseModel)):
        yield "its Config is not a pydantic BaseModel"
    elif config is not None and config.model_config.get("extra") != "forbid":
        yield "its Config lets unknown keys pass; give it ConfigDict(extra='forbid')"
    named = getattr(made, "check_run", None)
    asked = set(inspect.signature(named).parameters) if callable(named) else set()
    for name in sorted(asked - {"self", *CHECKED}):
        yield f"check_run has no argument '{name}'{closest(name, CHECKED)}"
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
