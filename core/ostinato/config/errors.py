"""Errors that a person can cause, whom they are laid to, and the pause that a labeller asks for."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pluggy

# Code that stands between a run and a plugin's own: the core, and what calls hooks.
BETWEEN = (str(Path(__file__).parents[1]), str(Path(pluggy.__file__).parent), "<")


class UserError(Exception):
    """Something a person can mend: one plain sentence, exit status 2, no traceback."""


class NonFiniteError(UserError):
    """A reward, loss or gradient was NaN or infinite; the run stopped at once."""


class Pause(Exception):
    """Raised by a hook that waits for people: the run is kept, exit status 3, and goes on later."""


@contextmanager
def blamed(plugin: str, what: str) -> Iterator[None]:
    """Note on an error in whose code it arose: the command says it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        error.add_note(f"in plugin '{plugin}', {what}{_line(error)}")
        raise


def _line(error: BaseException) -> str:
    """Where in the first file outside the core an error arose; nothing where it saw none."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(BETWEEN)]
    lines = [frame.lineno for frame in theirs if frame.filename == theirs[0].filename]
    return f" ({Path(theirs[0].filename).name}, line {lines[-1]})" if theirs else ""


def closest(name: str, valid: Iterable[str]) -> str:
    """What follows an unknown name: ``; did you mean 'x'?``, or the list where it is short."""
    names = sorted(valid)
    within = [n for n in names if n.endswith(f"_{name}")]
    near = within or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; valid names are {', '.join(names)}" if 0 < len(names) <= 12 else ""
