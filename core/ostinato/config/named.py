"""``module:name`` in a run file, imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ostinato.config.errors import UserError


def load_named(path: str, where: str, beside: Path | None = None) -> Any:
    """``module:attribute``: of an installed module, else of the file so named in ``beside``.

    Raises UserError in one sentence when that fails.
    """
    module, separator, attribute = path.partition(":")
    if not separator:
        raise UserError(f"{where}: '{path}' should be module:name")
    try:
        file = beside and beside / f"{module}.py"
        if file and file.is_file() and importlib.util.find_spec(module) is None:
            return getattr(_from_file(file), attribute)
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        first = next(iter(str(error).splitlines()), "")
        fault = f"{type(error).__name__}: {first}"
        raise UserError(f"{where}: '{path}' cannot be imported: {fault}") from error


def _from_file(file: Path) -> Any:
    """Under its path as a name, so that nobody else who imports finds it or its neighbours."""
    spec = importlib.util.spec_from_file_location(str(file), file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[str(file)] = made  # dataclasses ask for it there
    spec.loader.exec_module(made)
    return made
