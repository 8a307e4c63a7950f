"""What a named function says of responses, asked once of each, for reward models that learn it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ostinato import Context, plain_function


class Verdicts:
    """The answers of ``module:function`` or ``file.py:function`` to prompts and completions.

    It is called as TRL's ``reward_funcs`` are; ``key`` is the setting that names it. It should be
    pure: what it has said of a response stands.
    """

    def __init__(self, key: str, name: str) -> None:
        self.function = plain_function(name, key)
        self.known: dict[tuple[str, str], Any] = {}

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], ctx: Context) -> list[Any]:
        """What it says of each response."""
        pairs = list(zip(prompts, responses, strict=True))
        if asked := [pair for pair in dict.fromkeys(pairs) if pair not in self.known]:
            of, texts = map(list, zip(*asked, strict=True))
            given = {**ctx.columns(of), "prompts": of, "completions": texts}
            self.known |= zip(asked, self.function.answers(given), strict=True)
        return [self.known[pair] for pair in pairs]
