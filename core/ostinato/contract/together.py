"""Whether the plugins of a run may stand together: owners, columns, dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ostinato.contract.activation import Active
from ostinato.contract.hookspecs import KINDS

# Columns that the core itself reads. `margin` is there too, but only some losses read it.
CORE_COLUMNS = {"weight", "label"}


def with_defaults(
    active: Sequence[Active], owners: Mapping[str, str], make: Callable[[str], Active]
) -> list[Active]:
    """The plugins, and the default of each hook in ``owners`` that none of them has."""
    whole = list(active)
    for hook in KINDS:
        if hook in owners and not any(hook in a.hooks for a in whole):
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
    asked = [(a.name, a.needs["dropout"]) for a in active if a.needs.get("dropout")]
    for name, p in asked[1:]:  # more dropout is not better, so the largest need would not do
        first, other = asked[0]
        if p != other:
            both = f"plugin '{first}' needs dropout {other:g} and plugin '{name}' {p:g}"
            yield f"{both}, but a reward model has one; set them alike"


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
