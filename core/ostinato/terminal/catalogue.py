"""The installed plugins as a person reads them: a table, or one with its hooks and settings."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich import box
from rich.table import Table
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
    def hooks(self) -> list[str]:
        """In the order of the contract."""
        marked = hooks_of(self.plugin) if self.plugin is not None else []
        return sorted(marked, key=lambda hook: (*KINDS, hook).index(hook))

    @property
    def summary(self) -> str:
        return self.error or (summary_of(self.plugin) if self.plugin is not None else "")

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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("plugin", style="bold", no_wrap=True)
    table.add_column("hooks", style="cyan", no_wrap=True)
    table.add_column("what it does, and the paper", ratio=1)
    origins = [f"{entry.found.distribution} {entry.found.version}" for entry in found]
    for origin in sorted(set(origins)):
        table.add_row(Text(origin, style="not bold dim"), "", "")
        for entry, own in zip(found, origins, strict=True):
            if own == origin:
                table.add_row(entry.found.name, "\n".join(entry.hooks), _what(entry))
        table.add_section()
    console = Screen()
    console.print(table)
    console.print("ostinato plugins NAME shows a plugin's settings.", style="dim")


def _what(entry: Entry) -> Text:
    text = Text(entry.summary, style="red" if entry.error else "")
    paper = getattr(entry.plugin, "paper", "")
    return text.append(f"\n{paper}", style="dim italic") if paper else text


def show_one(entry: Entry) -> None:
    """A plugin's docstring, hooks and settings."""
    console = Screen()
    origin = f"{entry.found.distribution} {entry.found.version}"
    console.print(Text.assemble((entry.found.name, "bold"), (f"  {origin}", "dim")))
    console.print(Text(inspect.getdoc(entry.plugin) or ""))
    paper = getattr(entry.plugin, "paper", "")
    if paper:
        console.print(Text(f"Paper: {paper}", style="italic"))
    console.print()
    console.print(_hooks(entry))
    schema: type[BaseModel] | None = getattr(entry.plugin, "Config", None)
    if schema is None or not schema.model_fields:
        console.print(Text("It has no settings."))
    else:
        console.print(_settings(schema))


def _hooks(entry: Entry) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("hook", style="cyan", no_wrap=True)
    table.add_column("kind")
    table.add_column("what it does there")
    for hook in entry.hooks:
        first = (inspect.getdoc(getattr(entry.plugin, hook)) or "").split("\n\n")[0]
        table.add_row(hook, KINDS.get(hook, "unknown"), Text(" ".join(first.split())))
    return table


def _settings(schema: type[BaseModel]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting", style="bold", no_wrap=True)
    table.add_column("type")
    table.add_column("default")
    table.add_column("meaning")
    for name, field in schema.model_fields.items():
        table.add_row(name, Text(type_of(field)), Text(default_of(field)), field.description or "")
    return table


def type_of(field: FieldInfo) -> str:
    """A setting's type as it is written, with the bounds of its value."""
    annotation = field.annotation
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    text = text.replace("typing.", "").replace("NoneType", "None")
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in signs.items()
        if getattr(limit, key, None) is not None
    ]
    return ", ".join([text, *bounds])


def default_of(field: FieldInfo) -> str:
    """A setting's default, as a run file writes it."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
