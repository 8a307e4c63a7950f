"""How the terminal is printed to: shown, not obeyed; indented blocks; colours of the measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer import Exit

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

CONTROLS = {  # each shown in one column: C0 by its symbol; C1 and half surrogate pairs as unknown
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD),
}


def visible(text: str) -> str:
    """The text as a terminal cannot obey it: control characters become visible ones."""
    return text.translate(CONTROLS)


class Screen(Console):
    """A console on which no text, from wherever it comes, is markup or a control code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more (``| head``): rich's exit would look like a plugin's."""
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise Exit(1)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings)  # before it is laid out

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        if isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = visible(renderable.plain)
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
        text = above + head.replace(" ", "\n")
        table.add_column(text, justify="right", style=style, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
