"""Plain functions of text as rewards, and as gold, in the convention of TRL's ``reward_funcs``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ostinato.config.errors import NonFiniteError, UserError, closest
from ostinato.config.named import load_named
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples, Scores, Texts

Columns = Mapping[str, Sequence[Any]]  # of the prompts file, one entry a response


@dataclass(frozen=True)
class PlainFunction:
    """``f(prompts, completions, completion_ids, **columns)``, which answers a number a response.

    It is given what it has parameters for, by name. ``whose`` begins the sentences of its faults.
    """

    function: Callable[..., Any]
    whose: str

    def __call__(self, given: Columns) -> Tensor:
        """Numbers (B,) in fp32. Raises UserError, or NonFiniteError, that names the function."""
        values = self.answers(given)
        return torch.tensor([self._number(i, v) for i, v in enumerate(values)], dtype=torch.float32)

    def answers(self, given: Columns) -> list[Any]:
        """What it answers, an entry a response. Raises UserError that names the function."""
        asked, count = self._asked(given), len(given["prompts"])
        try:
            answer = self.function(**asked)
        except UserError:  # it has its own sentence
            raise
        except (Exception, SystemExit) as error:
            first = next(iter(str(error).splitlines()), "")
            raise UserError(f"{self.whose} failed: {type(error).__name__}: {first}") from error
        values = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(values, list | tuple):
            kind = type(values).__name__
            raise UserError(f"{self.whose} answered a {kind}, expected a list of numbers")
        if len(values) != count:
            raise UserError(f"{self.whose} answered {len(values)} numbers for {count} responses")
        return list(values)

    def _asked(self, given: Columns) -> Columns:
        """What the function has parameters for. UserError where it needs something else."""
        parameters = inspect.signature(self.function).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return given
        needed = [p.name for p in parameters if p.default is p.empty]
        if lacking := [name for name in needed if name not in given]:
            hint = closest(lacking[0], given)
            raise UserError(f"{self.whose} asks for '{lacking[0]}', which it is not given{hint}")
        return {p.name: given[p.name] for p in parameters if p.name in given}

    def _number(self, place: int, value: Any) -> float:
        value = value.item() if getattr(value, "ndim", 1) == 0 else value
        said = f"{self.whose} answered {{}} for response {place}, expected a number"
        if not isinstance(value, Real):
            raise UserError(said.format("None" if value is None else f"a {type(value).__name__}"))
        if not math.isfinite(value):
            raise NonFiniteError(f"{said.format(float(value))} that is finite")
        return float(value)


class FunctionReward(Reward):
    """What a plain function says of prompts and responses as text; it has no member."""

    def __init__(
        self, function: PlainFunction, columns: Callable[[Samples], Columns] | None
    ) -> None:
        self._function = function
        self._columns = columns

    def scores(self, samples: Samples) -> Scores:
        columns = self._columns(samples) if self._columns is not None else {}
        texts = {"prompts": list(samples.prompts), "completions": list(samples.responses)}
        return Scores(self._function({**columns, **texts, "completion_ids": samples.tokens[1]}))


def reward(
    function: Callable[..., Any] | str, columns: Callable[[Samples], Columns] | None = None
) -> Reward:
    """A reward of a plain function, or of one that is named: ``file.py:name``, ``module:name``.

    It is called as TRL calls its ``reward_funcs``, with lists by name: ``prompts``,
    ``completions``, ``completion_ids``, and the further columns of the prompts file where
    ``columns`` is ``ctx.columns``; of these with what it has parameters for. It answers a number a
    response. Raises UserError where there is no such function.
    """
    if isinstance(function, str):
        name, found = function, load_named(function, "reward")
    else:
        name = getattr(function, "__qualname__", type(function).__name__)
        found = function
    return FunctionReward(plain(found, f"function '{name}'"), columns)


def plain(found: Any, whose: str) -> PlainFunction:
    """The function, if it is one whose parameters can be read; else UserError."""
    try:
        inspect.signature(found)
    except (TypeError, ValueError):
        wanted = "expected a function of prompts and completions"
        raise UserError(f"{whose} is a {type(found).__name__}, {wanted}") from None
    return PlainFunction(found, whose)


def plain_function(name: str, key: str) -> PlainFunction:
    """The function ``file.py:name`` or ``module:name`` that the setting ``key`` names.

    ``function.answers({"prompts": [...], "completions": [...], **columns})`` is what it says of
    each response, of any kind. Raises UserError, naming the key, where there is no such function.
    """
    return plain(load_named(name, key), f"{key}: {name}")


def try_function(name: str, key: str, prompts: Texts, columns: Columns) -> None:
    """Ask a named function once, of made-up responses; UserError, naming ``key``, if it is wrong.

    Without prompts it is only imported.
    """
    found = plain_function(name, key)
    if count := len(prompts):
        made: Columns = {"completions": ["a response"] * count, "completion_ids": [[0]] * count}
        found({**columns, "prompts": list(prompts), **made})


def is_plain(found: Any) -> bool:
    """Whether it is a function with a parameter ``completions``."""
    try:
        return "completions" in inspect.signature(found).parameters
    except (TypeError, ValueError):
        return False
