"""docs/architecture.md and its picture say of the core what the core is."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "ostinato"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WAYS = ("The way of a preference pair", "The way of a reward")
PLACE = re.compile(r"`([\w/]+\.py)(?:: ([\w.]+))?`")


@pytest.fixture(scope="module")
def architecture():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def definitions(file):
    """Names of a file's functions and classes; methods as Class.method."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{part.name}" for part in inner}
    return found


def named(file):
    """Every name that a file's code uses."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {node.id for node in nodes if isinstance(node, ast.Name)}
    return plain | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def way(title):
    """The steps of a way: (file, name) of each place that it passes."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [PLACE.findall(step) for step in re.split(r"^\d+\. ", section, flags=re.M)[1:]]


def test_the_picture_is_current(architecture):
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.picture(), (
        "run: python docs/generate.py"
    )


def test_every_file_of_the_core_is_on_the_map(architecture):
    listed = {
        file for layer in architecture.layers() for w in layer for file in architecture.files(w)
    }
    there = {f for f in CORE.rglob("*.py") if not f.name.startswith("__")}
    assert listed == there
    tables = PAGE.partition("\n## Every file\n")[2]
    for file in there:
        assert re.search(rf"^(\| `|### ){file.name}\b", tables, re.M), file


def test_the_map_has_the_layers_of_the_lint_contract(architecture):
    heads = re.findall(r"^### (\w+)", PAGE.partition("\n## Every file\n")[2], re.M)
    assert heads == [wing for layer in architecture.layers() for wing in layer]


def test_every_place_that_a_way_names_is_there():
    for place, name in (place for title in WAYS for step in way(title) for place in step):
        assert name in definitions(CORE / place), (place, name)


@pytest.mark.parametrize("title", WAYS)
def test_each_step_of_a_way_is_reached_from_an_earlier_one(title):
    """The code of a file that the way has passed, or of the loop or a stage, names the place."""
    steps = way(title)
    assert 8 <= len(steps) <= 12
    passed = {"loop.py", "engine/stages.py", "engine/session.py"}
    for place, name in (place for step in steps for place in step):
        assert any(name.split(".")[-1] in named(CORE / file) for file in passed), (place, name)
        passed.add(place)
