"""``module:name`` in a run file, imported."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ostinato.config.errors import UserError


def load_named(path: str, where: str) -> Any:
    """``module:attribute``, imported; UserError in one sentence when that fails."""
    module, separator, attribute = path.partition(":")
    if not separator:
        raise UserError(f"{where}: '{path}' should be module:name")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does when it is imported
        first = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{where}: '{path}' cannot be imported: {type(error).__name__}: {first}"
        ) from error
