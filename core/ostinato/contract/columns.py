"""What a plugin may log: finite numbers, under no name that is a column of the core."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ostinato.config.errors import NonFiniteError, UserError

NAMES = """
kind iteration stage name step total plugin seconds actions terms samples
accuracy accuracy_labels attempts calibration finished gap gap_latest gap_latest_se gap_se
gap_training_std gold_sft_std gold_training_std gold_wins gold_wins_se grad_norm kept kl
kl_coefficient kl_init kl_scale latest_sft_std latest_wins latest_wins_se length loss lr member
mmd mmd_batch peak_gold proxy_sft_std proxy_training_std proxy_wins proxy_wins_se purpose
reward score score_std spearman updates
"""
COLUMNS = frozenset(NAMES.split())  # of all kinds of rows


def is_number(value: Any) -> bool:
    """Whether it is one, or a tensor that holds one."""
    from torch import Tensor  # here: plugins are listed without torch

    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def checked(name: str, value: Any) -> float:
    """A number as metrics.jsonl holds it. Raises UserError, naming it, where it may not."""
    if name in COLUMNS:
        hint = f"give it a name of its own, such as 'my_plugin/{name}'"
        raise UserError(f"ctx.log: '{name}' is a column of the core; {hint}")
    if not is_number(value) or isinstance(value, bool):
        raise UserError(f"ctx.log: '{name}' is a {type(value).__name__}, expected a number")
    number = value if isinstance(value, int) else float(value)
    if not math.isfinite(number):
        raise NonFiniteError(f"ctx.log: '{name}' is {number}, which is not finite")
    return number
