"""What a hook may answer: the wrong kind of answer is one sentence that names its plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any

from ostinato.config.errors import UserError


def wrong(plugin: str, hook: str, fault: str) -> UserError:
    """The error of a plugin whose hook did or answered what it may not."""
    return UserError(f"plugin '{plugin}': hook '{hook}' {fault}")


@contextmanager
def blamed(plugin: str, what: str) -> Iterator[None]:
    """Note on an error in whose code it arose: the command says it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        error.add_note(f"in plugin '{plugin}', {what}")
        raise


def check_answer(plugin: str, hook: str, answer: Any, arguments: Mapping[str, Any]) -> None:
    """Raise UserError where ``answer`` is nothing that ``hook`` can mean.

    What takes more than the hook's own arguments to judge is checked where it is used.
    """
    if hook in CHECKS and (fault := CHECKS[hook](answer, **arguments)):
        raise wrong(plugin, hook, f"answered {fault}")


def _mapping_fault(answer: Any, right: Callable[[Any], bool], wanted: str, **_: Any) -> str | None:
    if not isinstance(answer, Mapping):
        return f"{_kind(answer)}, expected a mapping"
    odd = next((key for key, value in answer.items() if not right(value)), None)
    return None if odd is None else f"{_kind(answer[odd])} as '{odd}', expected {wanted}"


def terms_fault(answer: Any, **_: Any) -> str | None:
    """What is wrong with the named scalars of a loss, or None."""
    if fault := _mapping_fault(answer, _is_tensor, "a tensor"):
        return fault
    found = ((term, tuple(value.shape)) for term, value in answer.items() if value.ndim)
    return next((f"'{term}' of shape {shape}, expected a scalar" for term, shape in found), None)


def _displacements(answer: Any, parameters: Mapping[str, Any], **_: Any) -> str | None:
    if fault := _mapping_fault(answer, _is_tensor, "a tensor"):
        return fault
    for name in (n for n in answer if n in parameters):
        found, wanted = tuple(answer[name].shape), tuple(parameters[name].shape)
        if found != wanted:
            return f"'{name}' of shape {found}, expected the parameter's {wanted}"
    return None


def _coefficient(answer: Any, **_: Any) -> str | None:
    if not _is_number(answer):
        return f"{_kind(answer)}, expected a number"
    return f"{float(answer):g}, expected 0 or more" if float(answer) < 0 else None


def _losses(answer: Any, outputs: Any, **_: Any) -> str | None:
    if not _is_tensor(answer):
        return f"{_kind(answer)}, expected a tensor with a loss a comparison"
    if outputs.score.requires_grad and not answer.requires_grad:
        return "losses without a gradient, expected ones that are computed from `outputs`"
    return None


def _labels(answer: Any, **_: Any) -> str | None:
    sized = hasattr(answer, "__len__") and not isinstance(answer, str | Mapping)
    if not sized or not all(map(_is_number, answer)):
        return f"{_kind(answer)}, expected a number in [0, 1] for each comparison"
    return None


def _algorithm(answer: Any, **_: Any) -> str | None:
    for part, right, wanted in (
        ("advantages", callable, "a method"),
        ("loss", callable, "a method"),
        ("responses_per_prompt", whole, "a whole number above 0"),
        ("uses_values", _is_truth, "True or False"),
        ("kl_in_reward", _is_truth, "True or False"),
        ("mean_over", ("tokens", "responses").__contains__, "'tokens' or 'responses'"),
        ("keep", callable, "a method"),
    ):
        if not hasattr(answer, part):
            if part != "keep":
                return f"{_kind(answer)} that has no '{part}'"
        elif not right(found := getattr(answer, part)):
            return f"{_kind(answer)} whose '{part}' is {found!r}, expected {wanted}"
    return None


def whole(value: Any) -> bool:
    """Whether it is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_tensor(value: Any) -> bool:
    from torch import Tensor  # here: plugins are listed without torch

    return isinstance(value, Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (_is_tensor(value) and value.numel() == 1)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


CHECKS: Mapping[str, Callable[..., str | None]] = {
    "rm_loss": terms_fault,
    "policy_loss": terms_fault,
    "meta_update": _displacements,
    "evaluate": partial(_mapping_fault, right=_is_number, wanted="a number"),
    "kl_coefficient": _coefficient,
    "preference_loss": _losses,
    "label": _labels,
    "policy_algorithm": _algorithm,
}
