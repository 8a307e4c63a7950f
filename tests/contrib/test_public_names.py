"""The distributions of contrib/ stand on public names alone, as a third party's must."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CONTRIB = Path(__file__).parents[2] / "contrib"
PUBLIC = {"ostinato", "ostinato.measures", "ostinato.testing"}
FILES = sorted(CONTRIB.glob("*/src/**/*.py"))


def private_names(source):
    """What a file imports of Ostinato, or reaches through an attribute, that is not public."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            found = [m for m in modules if m.partition(".")[0] == "ostinato" and m not in PUBLIC]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ostinato."):
            found = [] if node.module in PUBLIC else [node.module]
        elif isinstance(node, ast.ImportFrom) and node.module == "ostinato":
            found = [a.name for a in node.names if a.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.value.id == "ostinato" and node.attr.startswith("_")
            found = [f"ostinato.{node.attr}"] if private else []
        else:
            found = []
        yield from found


@pytest.mark.parametrize("file", FILES, ids=[f.relative_to(CONTRIB).as_posix() for f in FILES])
def test_a_distribution_imports_public_names_alone(file):
    assert list(private_names(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "from ostinato.engine.stages import gather",
        "import ostinato.models.policy",
        "from ostinato import _HOME",
        "import ostinato\nostinato._MODULES",
    ],
)
def test_a_private_name_would_be_seen(line):
    assert list(private_names(line))
