"""The installed plugins as a person reads them: a table, or one with its hooks and settings."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich import box
from rich.table import Column, Table
from rich.text import Text

from ostinato.config.errors import UserError
from ostinato.contract.discovery import Found, discover, find, hooks_of, summary_of
from ostinato.contract.hookspecs import KINDS
from ostinato.terminal.printing import Screen


@dataclass(frozen=True)
class Entry:
    """One installed plugin; ``error`` is why it cannot be used, ``plugin`` its class."""

    found: Found
    plugin: type[Any] | None = None
    error: str = ""

    @property
    def origin(self) -> str:
        return f"{self.found.distribution} {self.found.version}"

    @property
    def hooks(self) -> list[str]:
        """In the order of the contract."""
        marked = hooks_of(self.plugin) if self.plugin is not None else []
        return [hook for hook in KINDS if hook in marked]

    @property
    def summary(self) -> str:
        return self.error or (summary_of(self.plugin) if self.plugin is not None else "")

    @property
    def paper(self) -> str:
        return getattr(self.plugin, "paper", "")

    def public(self) -> dict[str, Any]:
        """What ``--json`` gives of it."""
        return {
            "name": self.found.name,
            "hooks": self.hooks,
            "distribution": self.found.distribution,
            "version": self.found.version,
            "summary": self.summary,
        }


def entries(name: str | None = None) -> list[Entry]:
    """All installed plugins, or the one called ``name``.

    A broken package is an entry with its error among all; asked for by name it raises UserError.
    """
    if name is not None:
        found = find(name, "plugins")
        return [Entry(found, found.load())]
    return [_entry(found, claims) for claims in discover().values() for found in claims]


def _entry(found: Found, claims: list[Found]) -> Entry:
    others = " and ".join(c.distribution for c in claims if c is not found)
    if others:
        return Entry(found, error=f"the name is also claimed by {others}; remove one")
    try:
        return Entry(found, found.load())
    except UserError as error:
        return Entry(found, error=str(error))


def show_all(found: list[Entry]) -> None:
    """A table of all plugins, by distribution."""
    table = _table(
        Column("plugin", style="bold", no_wrap=True),
        Column("hooks", style="cyan", no_wrap=True),
        Column("what it does, and the paper", ratio=1),
    )
    by_origin = attrgetter("origin")
    for origin, group in groupby(sorted(found, key=by_origin), key=by_origin):
        table.add_row(Text(origin, style="not bold dim"), "", "")
        for entry in group:
            what = Text(entry.summary, style="red" if entry.error else "")
            what.append(f"\n{entry.paper}" if entry.paper else "", style="dim italic")
            table.add_row(entry.found.name, "\n".join(entry.hooks), what)
        table.add_section()
    console = Screen()
    console.print(table)
    console.print("ostinato plugins NAME shows a plugin's settings.", style="dim")


def show_one(entry: Entry) -> None:
    """A plugin's docstring, hooks and settings."""
    console = Screen()
    console.print(Text.assemble((entry.found.name, "bold"), (f"  {entry.origin}", "dim")))
    console.print(Text(inspect.getdoc(entry.plugin) or ""))
    if entry.paper:
        console.print(Text(f"Paper: {entry.paper}", style="italic"))
    console.print()
    hooks = _table(Column("hook", style="cyan", no_wrap=True), "kind", "what it does there")
    for hook in entry.hooks:
        first = (inspect.getdoc(getattr(entry.plugin, hook)) or "").split("\n\n")[0]
        hooks.add_row(hook, KINDS[hook], Text(" ".join(first.split())))
    console.print(hooks)
    schema: type[BaseModel] | None = getattr(entry.plugin, "Config", None)
    if schema is None or not schema.model_fields:
        console.print(Text("It has no settings."))
        return
    name = Column("setting", style="bold", no_wrap=True)
    settings = _table(name, "type", "default", "meaning")
    for key, field in schema.model_fields.items():
        cells = Text(type_of(field)), Text(default_of(field)), field.description or ""
        settings.add_row(key, *cells)
    console.print(settings)


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def type_of(field: FieldInfo) -> str:
    """A setting's type as it is written, with the bounds of its value."""
    kind = inspect.formatannotation(field.annotation)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in signs.items()
        if getattr(limit, key, None) is not None
    ]
    return ", ".join([kind, *bounds])


def default_of(field: FieldInfo) -> str:
    """A setting's default, as a run file writes it."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True, validated_data={})
    return value if isinstance(value, str) else json.dumps(value, default=str)
