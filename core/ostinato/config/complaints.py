"""What is wrong with settings, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ostinato.config.errors import UserError, closest


def _fields_at(schema: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the fields of the section that ``path`` leads to."""
    for part in path:
        field = schema.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        choices = [inner, *getattr(inner, "__args__", ())]
        schema = next(
            (c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), schema
        )
    return list(schema.model_fields)


# pydantic's words for these name Python classes
EXPECTED = {
    "model_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "list_type": "expected a list",
    "finite_number": "expected a finite number",
}


def complaint(
    error: ValidationError, schema: type[BaseModel], where: str, below: str = ""
) -> UserError:
    """A line an error: where, which key, what was expected, the closest valid name.

    ``below``: the key that the schema's own keys stand under.
    """
    lines = []
    for one in error.errors():
        path = [str(p) for p in one["loc"] if not str(p).startswith(("function-", "dict["))]
        key = ".".join([below, *path] if below else path) or "settings"
        if one["type"] == "extra_forbidden":
            said = f"unknown key{closest(path[-1], _fields_at(schema, path[:-1]))}"
        elif one["type"] == "missing":
            said = "is missing"
        else:
            message = one["msg"].removeprefix("Value error, ").partition(", unable to")[0]
            said = EXPECTED.get(one["type"], message[:1].lower() + message[1:])
            said += "" if one["type"] == "value_error" else f", got {one['input']!r}"[:120]
        lines.append(f"{where}: {key}: {said}")
    return UserError("\n".join(lines))
