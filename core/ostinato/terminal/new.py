"""``ostinato new``: a distribution with one plugin, its tests and all that publishing takes."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer

import ostinato
from ostinato.config.errors import UserError, closest
from ostinato.contract.discovery import discover
from ostinato.contract.hookspecs import KINDS

TEMPLATES = Path(__file__).parent / "scaffold"
WIDTH = 100
# Where the names come from that a hook's code may use, those of `ostinato` aside.
SOURCES = {
    "collections.abc": ["Callable", "Iterator", "Mapping", "Sequence"],
    "dataclasses": ["replace"],
    "types": ["SimpleNamespace"],
    "typing": ["Any"],
    "datasets": ["Dataset", "concatenate_datasets"],
    "pydantic": ["BaseModel", "ConfigDict", "Field"],
    "torch": ["Tensor"],
}
MODULES = ("math", "ostinato", "pytest", "torch")  # those that are named whole
STANDARD = {"collections.abc", "dataclasses", "math", "types", "typing"}


def new(
    name: Annotated[
        str, typer.Argument(help="The plugin's name in run files, such as length_cap.")
    ],
    hooks: Annotated[
        list[str], typer.Option("--hook", help="A hook that it answers. May be given often.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; ./ostinato-NAME otherwise.")
    ] = None,
) -> None:
    """Write a distribution with a plugin that works, its tests, and what publishing takes."""
    made = write(name, hooks, out)
    typer.echo(f"{made}: a plugin that works, with its tests. Next:")
    typer.echo(f"  cd {made} && pip install -e '.[test]' && pytest")


def write(name: str, hooks: Sequence[str], out: Path | None = None) -> Path:
    """Write the distribution, and answer its folder. Raises UserError before anything is written.

    The hooks stand in the class in the order of the contract.
    """
    plugin = name.removeprefix("ostinato-").replace("-", "_")
    _check(plugin, hooks)
    distribution = f"ostinato-{plugin.replace('_', '-')}"
    folder = Path(distribution) if out is None else out
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name another folder with --out")
    for path, text in files(plugin, distribution, [h for h in KINDS if h in hooks]).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def _check(plugin: str, hooks: Sequence[str]) -> None:
    """UserError for a name that no package can have or that is taken, and for an unknown hook."""
    package = f"ostinato_{plugin}"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", plugin, re.ASCII) or keyword.iskeyword(plugin):
        wanted = "at most 40 lower-case letters, digits and underscores, such as length_cap"
        raise UserError(f"NAME: '{plugin}' is no name for a package; expected {wanted}")
    if claims := discover().get(plugin):
        raise UserError(f"NAME: '{plugin}' is a plugin of {claims[0].distribution} already")
    if importlib.util.find_spec(package) is not None:
        raise UserError(f"NAME: a package '{package}' is installed already")
    for hook in hooks:
        if hook not in KINDS:
            known = closest(hook, KINDS) or f"; hooks are {', '.join(KINDS)}"
            raise UserError(f"--hook: '{hook}' is not a hook of Ostinato{known}")


def files(plugin: str, distribution: str, hooks: Sequence[str]) -> dict[str, str]:
    """The text of each file by its path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    package = f"ostinato_{plugin}"
    cls = "".join(part.capitalize() for part in plugin.split("_"))
    major, minor = (int(part) for part in version("ostinato").split(".")[:2])
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    facts: dict[str, Any] = {"name": plugin, "cls": cls, "package": package, "hooks": hooks}
    facts |= {"distribution": distribution, "year": date.today().year}
    facts |= {"version": f"{major}.{minor}", "next_version": f"{major}.{minor + 1}"}
    parts: dict[str, list[str]] = {}
    for hook in hooks:
        macros = environment.get_template(f"hooks/{hook}.j2").make_module(facts)
        for part in ("settings", "method", "after", "tested", "test"):
            text = getattr(macros, part)().strip() if hasattr(macros, part) else ""
            parts.setdefault(part, []).extend([text] if text else [])
    shared = parts | {"imported": [cls, *parts["tested"]]}
    texts = {
        f"src/{package}/__init__.py": _plugin(cls, distribution, hooks, parts),
        f"src/{package}/py.typed": "",
        f"tests/test_{plugin}.py": _tests(cls, package, shared),
    }
    named = {"ci.yml": ".github/workflows/test.yml", "gitignore": ".gitignore"}
    facts["settings"] = list(_settings(parts["settings"]))
    for kept in sorted(TEMPLATES.glob("*.j2")):
        text = environment.get_template(kept.name).render(facts)
        texts[named.get(kept.stem, kept.stem)] = text
    return texts


def _plugin(cls: str, distribution: str, hooks: Sequence[str], parts: Mapping[str, Any]) -> str:
    """The module with the class."""
    settings = "\n".join(parts["settings"])
    config = f"class Config(BaseModel):\n    {QUOTES}Settings.{QUOTES}\n\n    {FORBID}\n"
    config += indent(settings, "    ") + "\n\nconfig: Config"
    body = [config.strip()] if settings else []
    body = [f"{QUOTES}Say in one line what {cls} does.{QUOTES}", *body, *parts["method"]]
    whole = f"class {cls}:\n" + indent("\n\n".join(body), "    ")
    code = "\n\n\n".join([whole, *parts["after"]])
    doc = f"{QUOTES}{distribution}: a plugin for Ostinato.{QUOTES}"
    future = "from __future__ import annotations"
    return f"{doc}\n\n{future}\n\n{imports(code)}\n\n\n{code}\n"


def _tests(cls: str, package: str, parts: Mapping[str, Sequence[str]]) -> str:
    """The tests: each hook by numbers worked out by hand, then what every plugin must keep."""
    conforms = f"def test_it_conforms():\n    testing.conformance({cls})"
    code = "\n\n\n".join([*parts["test"], conforms])
    own = f"from {package} import {', '.join(sorted(parts['imported'], key=isort_key))}"
    known = imports(code, parts["imported"])
    doc = f"{QUOTES}{cls} against numbers worked out by hand, and in a micro world.{QUOTES}"
    return f"{doc}\n\n{known}\n\n{own}\n\n\n{code}\n"


QUOTES = '"""'
FORBID = 'model_config = ConfigDict(extra="forbid")'


def imports(code: str, own: Collection[str] = ()) -> str:
    """The import lines of all names that the code uses, but its ``own``, in ruff's order."""
    tree = ast.parse(code)
    nodes = list(ast.walk(tree))
    given = {node.arg for node in nodes if isinstance(node, ast.arg)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - given - set(own)
    homes = {name: source for source, names in SOURCES.items() for name in names}
    homes |= dict.fromkeys([*ostinato.__all__, "testing"], "ostinato")
    found: dict[str, list[str]] = {}
    for name in sorted(used & homes.keys(), key=isort_key):
        found.setdefault(homes[name], []).append(name)
    groups: list[list[str]] = [[], []]
    for module in sorted(used.intersection(MODULES)):
        groups[module not in STANDARD].append(f"import {module}")
    for source in sorted(found):
        groups[source not in STANDARD].append(_import(source, found[source]))
    return "\n\n".join("\n".join(lines) for lines in groups if lines)


def _import(source: str, names: Sequence[str]) -> str:
    line = f"from {source} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"from {source} import (", *(f"    {name}," for name in names), ")"])


def isort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff sorts names of one module."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name.lower())


def _settings(lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(key, default, description) of each setting."""
    for node in ast.parse("\n".join(lines)).body:
        assert isinstance(node, ast.AnnAssign)
        assert isinstance(node.target, ast.Name)
        assert isinstance(node.value, ast.Call)
        described = next(k.value for k in node.value.keywords if k.arg == "description")
        text = str(ast.literal_eval(described))
        yield node.target.id, str(ast.literal_eval(node.value.args[0])), text
