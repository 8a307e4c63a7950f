"""What a row of comparisons names: one id is one response, one group is one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

SIDES = ("chosen", "rejected")
DRAWN = ("first", "second")  # before there is a label


def response_id(iteration: int, prompt_id: int, number: int) -> str:
    """The name of a response in the run; ``number`` counts those to the prompt, from 0."""
    return f"{iteration}:{prompt_id}:{number}"


def contradiction(data: Dataset, before: Iterable[Dataset] = ()) -> str | None:
    """The first row whose names mean something else than in a row before it, and how; or None.

    ``before``: data whose names are known already.
    """
    known: dict[Any, Any] = {}
    for earlier in before:
        for _, name, meaning, _ in _names(earlier.to_dict()):
            known.setdefault(name, meaning)
    for row, name, meaning, said in _names(data.to_dict()):
        if known.setdefault(name, meaning) != meaning:
            return f"row {row}: {said}"
    return None


def _names(table: Mapping[str, Sequence[Any]]) -> Iterator[tuple[int, Any, Any, str]]:
    """(row, name, what it means there, the sentence if it means something else elsewhere)."""
    for row, group in enumerate(zip(table["iteration"], table["group"], strict=True)):
        prompt = table["prompt"][row], table["prompt_ids"][row]
        said = f"group {group[1]} of iteration {group[0]} is another prompt's"
        yield row, group, prompt, f"{said}; a group is the responses to one prompt"
        for side in SIDES:
            name = table[f"{side}_id"][row]
            response = [table[f"{side}{part}"][row] for part in ("", "_ids", "_finished")]
            said = f"{side}_id '{name}' is another response's"
            yield row, name, response, f"{said}; a new response needs an id of its own"
