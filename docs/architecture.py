"""The map of the core, for docs/architecture.md: a picture and tables of layers and docstrings."""

from __future__ import annotations

import ast
import html
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core" / "ostinato"
PICTURE = ROOT / "docs" / "architecture.svg"

WIDTH, EDGE, GAP = 960, 30, 14  # of the picture, in its own units
STYLE = """
      .box { fill: #ffffff; stroke: #5e35b1; stroke-width: 1.5; }
      .name { font-size: 17px; font-weight: 600; fill: #21143f; }
      .note { font-size: 12.5px; fill: #5b5570; }
      .file { font: 12px ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace;
              fill: #5e35b1; }
"""


def layers() -> list[list[str]]:
    """The wings from the top down, those of one layer side by side, as the lint contract has it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    contract = next(c for c in contracts if c["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def files(wing: str) -> list[Path]:
    """A wing's files by name, or the one file that stands beside the wings."""
    folder = CORE / wing
    found = sorted(f for f in folder.glob("*.py") if f.name != "__init__.py")
    return found or [folder.with_suffix(".py")]


def summary(file: Path) -> str:
    """The first line of a file's docstring; a wing's is that of its ``__init__``."""
    source = file / "__init__.py" if file.is_dir() else file
    doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return doc.splitlines()[0].replace("``", "`").replace("`dict[str, Tensor]` ", "")


def wings() -> str:
    """Each wing with its sentence and its files, from the top down."""
    parts = []
    for wing in (wing for layer in layers() for wing in layer):
        if not (CORE / wing).is_dir():
            parts.append(f"### {wing}.py\n\n{summary((CORE / wing).with_suffix('.py'))}")
            continue
        rows = [f"| `{file.name}` | {summary(file)} |" for file in files(wing)]
        table = "\n".join(["| file | what it holds |", "| --- | --- |", *rows])
        parts.append(f"### {wing}\n\n{summary(CORE / wing)}\n\n{table}")
    return "\n\n".join(parts)


def picture() -> str:
    """The layers as an SVG: a box a wing with its sentence and its files."""
    y, body = EDGE, []
    for layer in layers():
        weights = [5 + len(files(wing)) for wing in layer]
        room = WIDTH - 2 * EDGE - GAP * (len(layer) - 1)
        widths = [room * weight / sum(weights) for weight in weights]
        texts = [_lines(wing, width) for wing, width in zip(layer, widths, strict=True)]
        height = 30 + 17 * max(map(len, texts))
        x = float(EDGE)
        for lines, width in zip(texts, widths, strict=True):
            body += _box(lines, x, y, width, height)
            x += width + GAP
        y += height + GAP
    height = y - GAP + EDGE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"',
            '     aria-labelledby="title" font-family="system-ui, \'Segoe UI\', Roboto, '
            "'DejaVu Sans', sans-serif\">",
            '  <title id="title">The wings of the core, each above all that it imports</title>',
            f"  <style>{STYLE}  </style>",
            f'  <rect width="{WIDTH}" height="{height}" rx="18" fill="#f6f3fd"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _lines(wing: str, width: float) -> list[tuple[str, str]]:
    """(class, text) of every line in a box."""
    place = CORE / wing
    if not place.is_dir():
        place = place.with_suffix(".py")
    names = "\u00a0 ".join(file.stem for file in files(wing)) if place.is_dir() else ""
    return [
        ("name", place.name),
        *(("note", line) for line in textwrap.wrap(summary(place), int((width - 28) / 6.6))),
        *(("file", line) for line in textwrap.wrap(names, int((width - 28) / 7.4))),
    ]


def _box(
    lines: list[tuple[str, str]], x: float, y: float, width: float, height: float
) -> Iterator[str]:
    yield f'  <rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="10"/>'
    for place, (kind, text) in enumerate(lines):
        at = y + 26 + 17 * place + (2 if place else 0)
        escaped = html.escape(text, quote=False)
        yield f'  <text class="{kind}" x="{x + 14:g}" y="{at:g}">{escaped}</text>'


def draw() -> None:
    """Write the picture."""
    PICTURE.write_text(picture(), encoding="utf-8")


MAKERS = {"wings": wings}
