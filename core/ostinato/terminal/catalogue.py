"""The installed plugins as a person reads them: a list, or one with its hooks and settings."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich import box
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from ostinato.config.errors import UserError
from ostinato.contract.discovery import Found, discover, find, hooks_of, summary_of
from ostinato.contract.hookspecs import KINDS
from ostinato.terminal.printing import Screen

# What a method is for: the meaning, and the hooks that say so.
GROUPS: dict[str, tuple[str, ...]] = {
    "Labels": ("who says which response is better", "label"),
    "Comparisons": ("which responses are compared", "draw_responses", "select_comparisons"),
    "Training pairs": ("what the reward model learns from", "combine_data", "refine_data"),
    "Reward model": (
        "how it is trained",
        *("preference_loss", "rm_loss", "meta_update", "train_rm"),
    ),
    "Reward": (
        "what the policy is optimised on",
        *("combine_rm", "wrap_reward", "reward_transform"),
    ),
    "Start": ("where each iteration's policy starts", "init_policy"),
    "Policy": (
        "how it is optimised",
        *("policy_algorithm", "policy_loss", "policy_meta_update", "train_policy"),
    ),
    "Rollouts": (
        "which prompts and responses the policy learns from, and for how long",
        *("choose_prompts", "sampling_logits", "filter_rollout", "after_rollout"),
    ),
    "KL": ("how far the policy may go", "kl_coefficient"),
    "Measures": ("what is measured beside", "evaluate"),
    "Watchers": ("who is told of what happens", "observe"),
}
UNUSABLE = "Cannot be used"


@dataclass(frozen=True)
class Entry:
    """One installed plugin; ``error`` is why it cannot be used, ``plugin`` its class."""

    found: Found
    plugin: type[Any] | None = None
    error: str = ""

    @property
    def group(self) -> str:
        """What it is for: the first group that one of its hooks belongs to."""
        kept = (name for name, (_, *hooks) in GROUPS.items() if {*hooks} & {*self.hooks})
        return next(kept, "")

    @property
    def brief(self) -> str:
        """Its summary without the paper."""
        return re.sub(r" \([^()]*\)\.$", ".", self.summary)

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
            "group": self.group,
            "hooks": self.hooks,
            **self.found.record,
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


def grouped(found: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """The plugins by what they are for, in the order of the loop; groups without any left out."""
    for group in [*GROUPS, ""]:
        members = [entry for entry in found if entry.group == group]
        if members:
            yield group, sorted(members, key=lambda entry: entry.found.name)


def show_all(found: Sequence[Entry]) -> None:
    """The plugins by what they are for; those of other packages are numbered by package."""
    console = Screen()
    own = [entry.found.origin for entry in found if entry.found.built_in][:1]
    others = sorted({entry.found.origin for entry in found} - {*own})
    marks = {origin: str(i) for i, origin in enumerate(others, start=1)}
    named = max(len(entry.found.name) for entry in found) + 2
    marked = max(map(len, marks.values()), default=-1) + 1
    for group, members in grouped(found):
        meaning = GROUPS[group][0] if group else "why is said beside each"
        console.print(Text.assemble((group or UNUSABLE, "bold"), (f": {meaning}", "dim")))
        for entry in members:
            mark = marks.get(entry.found.origin, "").ljust(marked)
            head = f"  {entry.found.name:{named}}{mark}"
            if entry.error:
                console.print(Padding(Text(f"{head.strip()}: {entry.error}"), (0, 0, 0, 2)))
            else:
                room = max(console.width, len(head) + 20)
                console.print(
                    Text(fill(head + entry.brief, room, subsequent_indent=" " * len(head)))
                )
        console.print()
    for origin in [*own, *others]:
        count = sum(entry.found.origin == origin for entry in found)
        mark = f"{marks[origin]}: " if origin in marks else ""
        console.print(Text(f"{mark}{count} of {origin}", style="dim"))
    console.print("ostinato plugins NAME shows a plugin's hooks and settings.", style="dim")


def show_one(entry: Entry) -> None:
    """A plugin's docstring, hooks and settings."""
    console = Screen()
    console.print(Text.assemble((entry.found.name, "bold"), (f"  {entry.found.origin}", "dim")))
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
