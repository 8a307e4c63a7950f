"""How the terminal is printed to: indented blocks, and the colours of the measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding

Row = Mapping[str, Any]

STYLES = {
    "gold": "yellow",
    "peak": "yellow",
    "proxy": "cyan",
    "gap": "magenta",
    "latest": "magenta",
}


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
