"""YAML 1.2, read safely and written."""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError as YAMLError
from ruamel.yaml.nodes import Node, ScalarNode

from ostinato.config.errors import UserError, closest

MOST = 10_000  # values in a file, every alias written out
DEEPEST = 50
TAG = "tag:yaml.org,2002:{}"
NO_JSON = ("binary", "omap", "pairs", "set")
AS_TEXT = ("timestamp", "value")
WIDEST = 2**31 - 1  # columns before a line is broken


class Constructor(SafeConstructor):
    """What JSON holds, with a sentence for whatever cannot be made into it; dates stay text."""

    yaml_constructors = {
        **SafeConstructor.yaml_constructors,
        **dict.fromkeys(map(TAG.format, NO_JSON), SafeConstructor.construct_undefined),
        **dict.fromkeys(map(TAG.format, AS_TEXT), SafeConstructor.construct_yaml_str),
    }

    def construct_document(self, node: Node) -> Any:
        """Refuses, before anything is made, what aliases would make huge or endless."""
        level = [node]
        for _ in range(DEEPEST):
            inside = (n for one in level if not isinstance(one, ScalarNode) for n in _inside(one))
            level = list(islice(inside, MOST + 1))
            if len(level) > MOST:
                raise ConstructorError(None, None, f"holds more than {MOST:,} values")
            if not level:
                return super().construct_document(node)
        raise ConstructorError(None, None, "an alias stands inside itself")

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        kind = str(node.tag).rpartition(":")[2]
        try:
            if kind == "int" and re.match(r"[-+]?0\d", node.value):
                kind = "number, for it begins with 0; write 0o for octal, or quotes for text"
                raise ValueError
            made = super().construct_object(node, deep)
            if isinstance(made, str):
                made.encode()  # half a surrogate pair is no text
            if isinstance(made, int) and abs(made) >= 2**63:
                kind = "number of 64 bits"
                raise ValueError
        except (ValueError, LookupError):
            problem = f"{node.value[:40]!r} is no {kind}"
            raise ConstructorError(None, None, problem, node.start_mark) from None
        return made

    def check_mapping_key(
        self, node: Node, key_node: Node, mapping: dict[Any, Any], key: Any, value: Any
    ) -> bool:
        if key in mapping or isinstance(key, tuple):
            problem = "a list is no key" if isinstance(key, tuple) else f"key '{key}' stands twice"
            raise ConstructorError(None, None, problem, key_node.start_mark)
        return True


def _inside(node: Node) -> Iterable[Node]:
    """The nodes that a list or a mapping holds."""
    return (n for one in node.value for n in (one if isinstance(one, tuple) else (one,)))


def _yaml() -> YAML:
    made = YAML(typ="safe", pure=True)  # not pure, it would read YAML 1.1
    made.Constructor = Constructor
    made.max_depth = DEEPEST
    made.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    made.brace_single_entry_mapping_in_flow_sequence = True
    made.allow_unicode = False  # U+0085 would come back as a line break
    made.width = WIDEST
    return made


def parsed(text: str) -> Any:
    """What YAML text says; raises YAMLError."""
    return _yaml().load(text)


def dumped(value: Any, flow: bool = False) -> str:
    """``value`` as YAML, mappings in their own order; in ``flow`` style on one line."""
    yaml, out = _yaml(), io.StringIO()
    yaml.default_flow_style = flow
    yaml.dump(value, out)
    return out.getvalue()


def read_file(path: Path, others: Iterable[str] = ()) -> dict[str, Any]:
    """The file's mapping; UserError if it is missing, not YAML, or no mapping.

    ``others``: names beside those of the files there that a person may have meant.
    """
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise UserError(f"{path}: is no regular file, expected a run file")
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
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        whole = str(getattr(error, "problem", None) or error)
        problem = re.split("\n|, if necessary", whole)[0]  # the rest is for programmers
        raise UserError(f"{path}: not valid YAML{line}: {problem}") from None
    if not isinstance(made, dict):
        kind = {type(None): "nothing", list: "a list", str: "text"}.get(type(made), repr(made))
        raise UserError(f"{path}: expected a mapping of settings, got {kind}")
    return made
