"""No file and no function of the core grows beyond what one can see: each has one subject."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "core" / "ostinato"
FILES = sorted(CORE.rglob("*.py"))


def long_functions(source, most):
    """(name, lines) of every function above ``most`` lines, decorators aside."""
    found = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
    lines = ((n.name, n.end_lineno - n.lineno + 1) for n in found)
    return [(name, count) for name, count in lines if count > most]


@pytest.mark.parametrize("file", FILES, ids=[f.relative_to(CORE).as_posix() for f in FILES])
def test_no_file_has_more_than_400_lines_and_no_function_more_than_60(file):
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    assert long_functions(source, 60) == []


def test_a_long_function_would_be_seen():
    source = "class A:\n    def f(self):\n" + "        x = 1\n" * 60
    assert long_functions(source, 60) == [("f", 61)]
