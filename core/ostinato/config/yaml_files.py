"""YAML files of settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ostinato.config.errors import UserError, closest


class Loader(yaml.SafeLoader):
    """YAML in which ``1e-5`` is a number, ``on`` a key, and a key that stands twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key.value}' stands twice", key.start_mark
                )
            seen.add(str(key.value))
            if key.tag == "tag:yaml.org,2002:bool":  # a setting is called `on`, none `true`
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), "-+.0123456789"
)


def parsed(text: str) -> Any:
    """YAML text; raises yaml.YAMLError."""
    return yaml.load(text, Loader)  # a SafeLoader


def read_file(path: Path, others: Iterable[str] = ()) -> dict[str, Any]:
    """The file's mapping; UserError if it is missing, not YAML, or no mapping.

    ``others``: names beside those of the files there that a person may have meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such run file{closest(path.name, [*near, *others])}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a run file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text in UTF-8, expected a YAML run file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        made = parsed(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise UserError(
            f"{path}: not valid YAML{line}: {getattr(error, 'problem', None) or error}"
        ) from None
    if not isinstance(made, dict):
        kind = {type(None): "nothing", list: "a list", str: "text"}.get(type(made), repr(made))
        raise UserError(f"{path}: expected a mapping of settings, got {kind}")
    return made
