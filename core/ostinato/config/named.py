"""``module:name`` and ``path/file.py:name`` in a run file, imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import stat
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ostinato.config.errors import UserError, closest


@dataclass(frozen=True)
class InFile:
    """``file.py:name``: the file as it was read, not yet run."""

    file: Path
    name: str
    source: bytes

    @classmethod
    def read(cls, text: str, where: str) -> InFile:
        """Raises UserError where there is no such file, or it cannot be read."""
        path, _, name = text.rpartition(":")
        file = Path(anchored(path, os.getcwd()))
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                raise UserError(f"{where}: '{file}' is no regular file, expected Python source")
            return cls(file, name, file.read_bytes())
        except FileNotFoundError:
            near = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
            raise UserError(f"{where}: no file '{file}'{closest(file.name, near)}") from None
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise UserError(f"{where}: '{file}' cannot be read: {said}") from None

    @property
    def value(self) -> str:
        """As an entry point has it."""
        return f"{self.file}:{self.name}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    def load(self) -> Any:
        """What the file has under the name; AttributeError where it has nothing."""
        module = self._module()
        if not hasattr(module, self.name):
            own = [k for k, v in vars(module).items() if _is_own(v, module)]
            raise AttributeError(f"the file has no '{self.name}'{closest(self.name, own)}")
        return getattr(module, self.name)

    def _module(self) -> ModuleType:
        """Run once for each content. Under a name that nobody else who imports can find.

        From the source, not through Python's cache of bytecode: that goes by the file's time, which
        does not tell two saves in one second apart.
        """
        name = f"{self.file}#{self.sha256}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, self.file)
        assert spec is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made  # dataclasses ask for it there
        try:
            exec(compile(self.source, self.file, "exec", dont_inherit=True), vars(made))
        except BaseException:
            del sys.modules[name]
            raise
        return made

    def line(self, error: BaseException) -> str:
        """Where in the file an error arose; a SyntaxError says so itself."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(self.file)]
        return f" (line {lines[-1]})" if lines else ""


def _is_own(value: Any, module: ModuleType) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and (
        value.__module__ == module.__name__
    )


def load_named(path: str, where: str) -> Any:
    """``module:name`` of an installed module, or ``file.py:name``.

    Raises UserError in one sentence when that fails.
    """
    module, separator, attribute = path.rpartition(":")
    if not separator:
        raise UserError(f"{where}: '{path}' should be module:name or file.py:name")
    found = InFile.read(path, where) if module.endswith(".py") else None
    try:
        if found is not None:
            return found.load()
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        first = next(iter(str(error).splitlines()), "")
        fault = f"{type(error).__name__}: {first}{found.line(error) if found else ''}"
        raise UserError(f"{where}: '{path}' cannot be imported: {fault}") from error


def anchored(path: str, folder: str | Path) -> str:
    """A path relative to ``folder``, made absolute."""
    joined = os.path.join(folder, os.path.expanduser(path))  # unlike Path's, it never raises
    return os.path.realpath(joined) if "\0" not in joined else joined


def in_a_file(text: str) -> bool:
    """Whether it is ``file.py:name``."""
    return text.rpartition(":")[0].endswith(".py")


def beside(text: str, folder: str | Path) -> str:
    """``file.py:name`` with an absolute path, the file being relative to ``folder``."""
    file, _, name = text.rpartition(":")
    return f"{anchored(file, folder)}:{name}" if in_a_file(text) else text
