"""What a hook may answer: the wrong kind of answer is one sentence that names its plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

from ostinato.config.errors import UserError
from ostinato.contract.columns import is_number
from ostinato.contract.hookspecs import KEEP, STOP


def wrong(plugin: str, hook: str, fault: str) -> UserError:
    """The error of a plugin whose hook did or answered what it may not."""
    return UserError(f"plugin '{plugin}': hook '{hook}' {fault}")


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
    if not is_number(answer):
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
    if not sized or not all(map(is_number, answer)):
        return f"{_kind(answer)}, expected a number in [0, 1] for each comparison"
    return None


def algorithm_fault(answer: Any, **_: Any) -> str | None:
    """What is wrong with a policy algorithm before it is asked anything, or None."""
    from ostinato.contract.policy_algorithm import PolicyAlgorithm  # here: it imports torch

    if not isinstance(answer, PolicyAlgorithm):
        return f"{_kind(answer)}, expected an ostinato.PolicyAlgorithm"
    for fact, right, wanted in (
        ("responses_per_prompt", whole, "a whole number above 0"),
        ("value_heads", lambda n: whole(n) or (n is not False and n == 0), "a whole number"),
        ("kl_in_reward", _is_truth, "True or False"),
        ("mean_over", ("tokens", "responses").__contains__, "'tokens' or 'responses'"),
        ("whole_groups", _is_truth, "True or False"),
    ):
        if not right(found := getattr(answer, fact)):
            return f"{_kind(answer)} whose '{fact}' is {found!r}, expected {wanted}"
    return None


def _prompts(answer: Any, prompts: Any, count: int, **_: Any) -> str | None:
    size, wanted = len(prompts), f"expected {count} row numbers of prompts"
    rows = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        return f"{_kind(answer)}, {wanted}"
    if len(rows) != count:
        return f"{len(rows)} row numbers, {wanted}"
    odd = next((row for row in rows if not _is_row(row, size)), None)
    return None if odd is None else f"{odd!r}, {wanted} from 0 to {size - 1}"


def _rows(answer: Any, rollout: Any, **_: Any) -> str | None:
    import torch  # here: plugins are listed without torch

    size = len(rollout.mask)
    if not _is_tensor(answer) or answer.ndim != 1 or answer.dtype != torch.int64:
        given = f"a {answer.dtype} {tuple(answer.shape)}" if _is_tensor(answer) else _kind(answer)
        return f"{given}, expected an int64 tensor of row numbers (rows,)"
    wanted = f"expected row numbers from 0 to {size - 1}, none twice"
    if outside := [row for row in answer.tolist() if not 0 <= row < size]:
        return f"row {outside[0]}, {wanted}"
    return f"a row twice, {wanted}" if len(answer.unique()) < len(answer) else None


def _verdict(answer: Any, **_: Any) -> str | None:
    if isinstance(answer, str) and answer in {STOP, KEEP}:
        return None
    return f"{answer!r}, expected ostinato.STOP, ostinato.KEEP or None"


def _is_row(value: Any, size: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < size


def whole(value: Any) -> bool:
    """Whether it is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_tensor(value: Any) -> bool:
    from torch import Tensor  # here: plugins are listed without torch

    return isinstance(value, Tensor)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


CHECKS: Mapping[str, Callable[..., str | None]] = {
    "rm_loss": terms_fault,
    "policy_loss": terms_fault,
    "meta_update": _displacements,
    "evaluate": partial(_mapping_fault, right=is_number, wanted="a number"),
    "kl_coefficient": _coefficient,
    "preference_loss": _losses,
    "label": _labels,
    "policy_algorithm": algorithm_fault,
    "policy_meta_update": _displacements,
    "choose_prompts": _prompts,
    "filter_rollout": _rows,
    "after_rollout": _verdict,
}
