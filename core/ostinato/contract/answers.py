"""What a hook may answer: the wrong kind of answer is one sentence that names its plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from ostinato.config.errors import UserError

ALGORITHM = (
    "advantages",
    "loss",
    "responses_per_prompt",
    "uses_values",
    "kl_in_reward",
    "mean_over",
)


def check_answer(plugin: str, hook: str, answer: Any, arguments: Mapping[str, Any]) -> None:
    """Raise UserError where ``answer`` is nothing that ``hook`` can mean.

    What takes more than the hook's own arguments to judge is checked where it is used.
    """
    if hook in CHECKS and (fault := CHECKS[hook](answer, arguments)):
        raise UserError(f"plugin '{plugin}': hook '{hook}' answered {fault}")


def terms_fault(answer: Any) -> str | None:
    """What is wrong with the named scalars of a loss, or None."""
    from torch import Tensor  # here, as in all of these: plugins are listed without torch

    if not isinstance(answer, Mapping):
        return f"{_kind(answer)}, expected a mapping"
    for term, value in answer.items():
        if not isinstance(value, Tensor):
            return f"{_kind(value)} as '{term}', expected a tensor"
        if value.ndim:
            return f"'{term}' of shape {tuple(value.shape)}, expected a scalar"
    return None


def _terms(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    return terms_fault(answer)


def _displacements(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    from torch import Tensor

    if not isinstance(answer, Mapping):
        return f"{_kind(answer)}, expected a mapping"
    known = arguments["parameters"]
    for name, value in answer.items():
        if not isinstance(value, Tensor):
            return f"{_kind(value)} as '{name}', expected a tensor"
        if name in known and value.shape != known[name].shape:
            wanted = tuple(known[name].shape)
            return f"'{name}' of shape {tuple(value.shape)}, expected the parameter's {wanted}"
    return None


def _numbers(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    if not isinstance(answer, Mapping):
        return f"{_kind(answer)}, expected a mapping"
    for key, value in answer.items():
        if not _is_number(value):
            return f"{_kind(value)} as '{key}', expected a number"
    return None


def _coefficient(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    if not _is_number(answer):
        return f"{_kind(answer)}, expected a number"
    return f"{float(answer):g}, expected 0 or more" if float(answer) < 0 else None


def _losses(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    from torch import Tensor

    if not isinstance(answer, Tensor):
        return f"{_kind(answer)}, expected a tensor with a loss a comparison"
    if arguments["outputs"].score.requires_grad and not answer.requires_grad:
        return "losses without a gradient, expected ones that are computed from `outputs`"
    return None


def _labels(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    sized = hasattr(answer, "__len__") and not isinstance(answer, str | Mapping)
    if not sized or not all(map(_is_number, answer)):
        return f"{_kind(answer)}, expected a number in [0, 1] for each comparison"
    return None


def _algorithm(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    lacking = next((part for part in ALGORITHM if not hasattr(answer, part)), None)
    if lacking:
        return f"{_kind(answer)} that has no '{lacking}'"
    for part, right, wanted in (
        ("responses_per_prompt", whole(answer.responses_per_prompt), "a whole number above 0"),
        ("uses_values", isinstance(answer.uses_values, bool), "True or False"),
        ("kl_in_reward", isinstance(answer.kl_in_reward, bool), "True or False"),
        ("mean_over", answer.mean_over in ("tokens", "responses"), "'tokens' or 'responses'"),
        ("advantages", callable(answer.advantages), "a method"),
        ("loss", callable(answer.loss), "a method"),
        ("keep", callable(getattr(answer, "keep", len)), "a method"),
    ):
        if not right:
            found = getattr(answer, part)
            return f"{_kind(answer)} whose '{part}' is {found!r}, expected {wanted}"
    return None


def whole(value: Any) -> bool:
    """Whether it is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


CHECKS: Mapping[str, Callable[[Any, Mapping[str, Any]], str | None]] = {
    "rm_loss": _terms,
    "policy_loss": _terms,
    "meta_update": _displacements,
    "evaluate": _numbers,
    "kl_coefficient": _coefficient,
    "preference_loss": _losses,
    "label": _labels,
    "policy_algorithm": _algorithm,
}


def _is_number(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
