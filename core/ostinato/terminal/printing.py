"""How the terminal is printed to: nothing commands it, indented blocks, colours of measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ostinato.report.tables import printable

Row = Mapping[str, Any]

STYLES = {
    "gold": "yellow",
    "peak": "yellow",
    "gold wins": "yellow",
    "proxy": "cyan",
    "proxy wins": "cyan",
    "gap": "magenta",
    "latest": "magenta",
}


class Screen(Console):
    """Prints text as it stands: no markup in it is obeyed, no control character gets through."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        if isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = printable(renderable.plain)
        return super().render(renderable, options)


def show(console: Console, *parts: RenderableType) -> None:
    """Print indented; without a terminal, without the blanks that fill a line."""
    block = Padding(Group(*parts), (0, 0, 0, 2))
    if console.is_terminal:
        console.print(block)
        return
    with console.capture() as captured:
        console.print(block)
    for line in captured.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def numbers(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of numbers, each measure in its colour; headings of two words take two lines."""
    padding = (0, 0, 0, int(len(heads) < 10))  # ten columns have 80 characters
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    lines = max(head.count(" ") for head in heads)
    for head in heads:
        above = "\n" * (lines - head.count(" "))
        style = STYLES.get(head, "")
        table.add_column(
            above + head.replace(" ", "\n"), justify="right", style=style, no_wrap=True
        )
    for row in rows:
        table.add_row(*row)
    return table
