"""D_k, what a reward model is trained on: combined from the pairs so far, then refined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from ostinato.contract.answers import wrong
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.data.identity import contradiction

GOLDS = {"chosen_gold", "rejected_gold"}  # the columns that may be null


def combine_data(datasets: Sequence[Dataset], plugins: Plugins, ctx: Context) -> Dataset:
    """D_k, checked to be a non-empty set of comparisons."""
    hook, owner = "combine_data", plugins.owners["combine_data"]
    data = plugins.one(hook, datasets=list(datasets), ctx=ctx, measure=len)
    _check_rows(owner, hook, data, datasets)
    return data


def refine_data(data: Dataset, plugins: Plugins, ctx: Context) -> Dataset:
    """D_k after every active refinement, in the run file's order.

    The magnitude is the number of rows that a plugin changed, added or left out; all of them where
    it added a column.
    """

    def check(name: str, before: Dataset, after: Dataset) -> float:
        hook, columns = "refine_data", set(before.column_names)
        _check_rows(name, hook, after, [before])
        declared = getattr(plugins[name].instance, "provides", ())
        if added := sorted(set(after.column_names) - columns - set(declared)):
            fault = f"added column '{added[0]}', which the plugin does not declare in `provides`"
            raise wrong(name, hook, fault)
        for column in ("label", "margin", "weight"):
            if not bool(torch.tensor(after[column][:]).isfinite().all()):
                raise wrong(name, hook, f"made {column} not finite")
        if not any(after["weight"]):
            raise wrong(name, hook, "made every weight 0")
        return float(len(after) if set(after.column_names) != columns else _moved(before, after))

    return plugins.chain("refine_data", "data", data, check, ctx=ctx)


def _check_rows(name: str, hook: str, data: Any, given: Sequence[Dataset]) -> None:
    """UserError unless ``data`` has rows, each whole, that name what they named when ``given``."""
    if not isinstance(data, Dataset) or not len(data):
        raise wrong(name, hook, "answered no rows")
    if lost := sorted(set(given[-1].column_names) - set(data.column_names)):
        raise wrong(name, hook, f"lost the column {', '.join(lost)}")
    if empty := sorted(_with_nulls(data) - GOLDS - set().union(*map(_with_nulls, given))):
        raise wrong(name, hook, f"left {empty[0]} out of a row")
    if fault := contradiction(data, given):
        raise wrong(name, hook, f"answered a {fault}")


def _with_nulls(data: Dataset) -> set[str]:
    table = data.with_format("arrow")[:]
    return {column for column in table.column_names if table[column].null_count}


def _moved(before: Dataset, after: Dataset) -> int:
    """Rows that are not the same, whatever their order."""
    watched = ("chosen_id", "rejected_id", "group", "label", "margin", "weight")
    old, new = (Counter(zip(*(d[c][:] for c in watched), strict=True)) for d in (before, after))
    return max((new - old).total(), (old - new).total())
