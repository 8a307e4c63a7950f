"""The public classes and functions, for docs/reference.md: fields, shapes and methods as written.

A field's shape and unit are the comment that stands behind it, or above it, in the source.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import ostinato
from ostinato import measures, testing

VALUES = {
    "CONTRACT": "The edition of the [contract](contract.md).",
    "KEEP": "Answer of [`after_rollout`](hooks/after_rollout.md): keep the weights as they are.",
    "STOP": "Answer of [`after_rollout`](hooks/after_rollout.md): end the optimisation here.",
}
HOOKIMPL = "Marks a method of a plugin class as the implementation of the hook it names."


def reference() -> str:
    """Every public name: classes with their fields and methods, then functions, then errors."""
    found = {name: getattr(ostinato, name) for name in sorted(ostinato.__all__, key=str.lower)}
    classes = {n: m for n, m in found.items() if inspect.isclass(m)}
    errors = {n: m for n, m in classes.items() if issubclass(m, Exception)}
    parts = ["## Classes"]
    parts += [class_section(n, m) for n, m in classes.items() if n not in errors]
    parts += ["## Functions", functions({n: m for n, m in found.items() if inspect.isfunction(m)})]
    parts += [f"`hookimpl`: {HOOKIMPL}"]
    values = {n: m for n, m in found.items() if isinstance(m, str)}
    rows = [[f"`{name}`", f'`"{value}"`', VALUES[name]] for name, value in values.items()]
    parts += ["## Values", table(["name", "value", "what it is for"], rows)]
    rows = [[f"`{name}`", summary(made)] for name, made in errors.items()]
    return "\n\n".join([*parts, "## Errors", table(["name", "what it says"], rows)])


def testing_names() -> str:
    """What `ostinato.testing` has."""
    found = {name: getattr(testing, name) for name in testing.__all__}
    classes = {n: m for n, m in found.items() if inspect.isclass(m)}
    made = functions({n: m for n, m in found.items() if n not in classes})
    rows = [[f"`{name}`", summary(kind)] for name, kind in classes.items()]
    return "\n\n".join([made, table(["class", "what it is"], rows)])


def measures_names() -> str:
    """The functions of `ostinato.measures`, in the order of the source."""
    found = {n: m for n, m in vars(measures).items() if inspect.isfunction(m)}
    own = {n: m for n, m in found.items() if m.__module__ == measures.__name__ and n[0] != "_"}
    return functions(own)


def class_section(name: str, made: type[Any]) -> str:
    """A class with its docstring, fields and methods."""
    parts = [f"### {name}", prose(made)]
    if name == "RunConfig":  # a page of its own lists all its sections
        return "\n\n".join(
            [*parts, "Its sections and keys are those of a [run file](run-files.md)."]
        )
    if rows := list(fields(made)):
        parts.append(table(["field", "type", "what it holds"], rows))
    if rows := list(methods(made)):
        parts.append(table(["method", "what it does"], rows))
    bases = [base.__name__ for base in made.__mro__[1:] if base.__name__ in ostinato.__all__]
    if bases:
        parts.append(
            "It has the methods of " + " and ".join(f"[{b}](#{b.lower()})" for b in bases) + " too."
        )
    return "\n\n".join(parts)


def fields(made: type[Any]) -> Iterator[list[str]]:
    """(name, type, comment) of each public attribute, of the class and of its instances."""
    lines = inspect.getsource(made).splitlines()
    tree = ast.parse(textwrap.dedent("\n".join(lines)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    inside = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    given = {a.arg: a.annotation for f in inside for a in f.args.args}
    for node in [*body, *(statement for f in inside for statement in f.body)]:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        kind = node.annotation if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            target = node.targets[0]
            kind = given.get(node.value.id) if isinstance(node.value, ast.Name) else None
        name = getattr(target, "id", getattr(target, "attr", "_"))
        if not name.startswith("_"):
            text = "" if kind is None else f"`{ast.unparse(kind)}`"
            yield [f"`{name}`", text, comment(lines, node.lineno - 1)]


def comment(lines: list[str], place: int) -> str:
    """What is said behind a line, or above it where nothing is."""
    if found := re.search(r"\s# (?!type:)(.*)$", lines[place]):
        return found[1].replace("``", "`")
    above = []
    while place and lines[place - 1].strip().startswith("# "):
        place -= 1
        above.insert(0, lines[place].strip()[2:])
    return " ".join(above)


def methods(made: type[Any]) -> Iterator[list[str]]:
    """(signature, first sentence) of each public method and property that the class has itself."""
    held = {row[0].strip("`") for row in fields(made)}
    for name, member in vars(made).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        function = inspect.unwrap(getattr(function, "func", function))  # of a cached property
        if name.startswith("_") or name in held or not inspect.isfunction(function):
            continue
        given = signature(function) if callable(getattr(made, name)) else ""
        abstract = " (to be written)" if getattr(function, "__isabstractmethod__", False) else ""
        yield [f"`{name}{given}`{abstract}", summary(getattr(made, name))]


def functions(found: dict[str, Any]) -> str:
    """A table of functions."""
    rows = [[f"`{name}{signature(made)}`", summary(made)] for name, made in found.items()]
    return table(["function", "what it does"], rows)


def signature(function: Any) -> str:
    """The arguments with their types and defaults, and the answer's type, as written."""
    (written,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(written, ast.FunctionDef)
    if written.args.args and written.args.args[0].arg in {"self", "cls"}:
        del written.args.args[0]
    answer = f" -> {ast.unparse(written.returns)}" if written.returns else ""
    return f"({ast.unparse(written.args)}){answer}"


def prose(made: Any) -> str:
    """The whole docstring, as Markdown."""
    return re.sub(r":\w+:`(\w+)`", r"`\1`", inspect.getdoc(made) or "").replace("``", "`")


def summary(made: Any) -> str:
    """The first paragraph of the docstring, in one line."""
    return " ".join(prose(made).split("\n\n")[0].split())


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in r) + " |" for r in lines)


MAKERS = {"reference": reference, "measures": measures_names, "testing": testing_names}
