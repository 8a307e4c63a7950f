"""Prompts as the policy reads them: text, tokens, and what else their rows say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one split: ``ids`` (position in the data), text, token ids, further columns."""

    ids: list[int]
    texts: list[str]
    tokens: list[list[int]]
    columns: dict[str, list[Any]] = field(default_factory=dict)  # of the data, one entry a prompt

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> PromptSet:
        """At most so many prompts, from the start."""
        return self.take(range(min(count, len(self))))

    def repeated(self, times: int) -> PromptSet:
        """Each prompt so many times, one after the other."""
        return self.take(i for i in range(len(self)) for _ in range(times))

    def take(self, index: Iterable[int]) -> PromptSet:
        """The prompts at these rows, in this order."""
        chosen = list(index)
        return PromptSet(
            [self.ids[i] for i in chosen],
            [self.texts[i] for i in chosen],
            [self.tokens[i] for i in chosen],
            {name: [values[i] for i in chosen] for name, values in self.columns.items()},
        )
