"""Cut a run short wherever a stage ends, and in the middle of the policy's; go on, and compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.contract.events import Event
from ostinato.engine.session import Watcher

STAGES = ("preferences", "data", "reward_model", "combined", "policy_init")


class Cut(BaseException):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class Place:
    """A moment of a run: a stage's end, or a rollout in it."""

    iteration: int
    stage: str
    step: int = 0

    def __str__(self) -> str:
        middle = f"rollout {self.step} of " if self.step else ""
        return f"{middle}stage '{self.stage}' of iteration {self.iteration}"

    def __call__(self, event: Event) -> None:
        """A watcher that ends the run here; what this rollout wrote is not in a checkpoint yet."""
        kind = "stage_advanced" if self.step else "stage_finished"
        if (event.kind, event.iteration, event.step) == (kind, self.iteration, self.step) and (
            event.data["stage"] == self.stage
        ):
            raise Cut


# Every stage once, most of them in an iteration that has a history, and the policy's middle.
PLACES = (
    Place(1, "policy", 2),
    Place(1, "policy"),
    *(Place(2, stage) for stage in STAGES),
    Place(2, "policy", 2),
)


def cut_and_resumed(
    run: Callable[[Sequence[Watcher]], Any], folder: Path, whole: Sequence[dict[str, Any]]
) -> tuple[str, str] | None:
    """(where it last went on, the first difference from the rows of a ``whole`` run), or None.

    ``run`` runs, or resumes, in ``folder``. One run is cut at every place, one after the other.
    """
    last = ""
    for place in (*PLACES, None):
        with suppress(Cut):
            run([] if place is None else [place])
        if found := difference(rows_of(folder), whole, place is None):
            return last, found
        last = str(place)
    return None


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run so far."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def difference(
    rows: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]], finished: bool = True
) -> str | None:
    """The first number that is another one, seconds aside; rows of a cut run may end early."""
    for mine, theirs in zip(rows, whole, strict=False):
        for key in dict.fromkeys([*theirs, *mine]):
            if key != "seconds" and mine.get(key) != theirs.get(key):
                step = f", step {mine['step']}" if "step" in mine else ""
                at = f"of a '{mine['kind']}' row at iteration {mine['iteration']}{step}"
                return f"'{key}' {at} was {theirs.get(key)!r} and is {mine.get(key)!r}"[:300]
    if finished and len(rows) != len(whole):
        return f"it had {len(whole)} rows and has {len(rows)}"
    return None
