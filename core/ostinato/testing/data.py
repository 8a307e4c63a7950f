"""Batches of reward models: comparisons, preference batches, outputs. C comparisons, N rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from ostinato.config.draws import Draws
from ostinato.contract.batches import PreferenceBatch
from ostinato.data.preferences import comparisons_of, label, own_responses
from ostinato.engine.comparisons import Comparisons
from ostinato.engine.reward_training import set_dropout
from ostinato.models.loading import prompt_tokens, response_tokens
from ostinato.models.reward_model import RewardModel
from ostinato.models.samples import RMOutputs
from ostinato.testing.models import (
    context,
    prompts,
    tiny_policy,
    tiny_reward_model,
    tokenizer,
    worth,
)


def comparisons(
    groups: int | None = None,
    *,
    responses: int = 2,
    labelled: bool = True,
    seed: int = 0,
    **columns: Sequence[Any],
) -> Dataset:
    """Comparisons with every column of a run: all pairs of ``responses`` to each of the prompts.

    The better by gold is chosen; not ``labelled``, they are as the hook ``label`` is given them.
    ``columns`` take the place of columns or add to them; texts bring their tokens and golds along:
    ``comparisons(chosen=["good soup"], rejected=["cold tea"], label=[0.9])``.
    """
    each = responses * (responses - 1) // 2
    if groups is None:
        rows = {len(values) for values in columns.values()}
        groups = -(-max(rows) // each) if rows else 4
    table = _drawn(groups, responses, labelled, seed).to_dict()
    wanted = next((len(values) for values in columns.values()), groups * each)
    table = {name: values[:wanted] for name, values in table.items()}
    table |= {name: list(values) for name, values in columns.items()}
    for side in ("chosen", "rejected", "first", "second"):
        if side in columns:
            done = list(columns.get(f"{side}_finished", [True] * len(columns[side])))
            found: dict[str, Any] = {f"{side}_finished": done}
            found[f"{side}_ids"] = response_tokens(tokenizer(), columns[side], done)
            found[f"{side}_gold"] = [worth(text) for text in columns[side]]
            names = zip(table["prompt_id"], columns[side], strict=True)
            found[f"{side}_id"] = [f"1:{prompt_id}:{text}" for prompt_id, text in names]
            table |= {name: value for name, value in found.items() if name not in columns}
    if "prompt" in columns and "prompt_ids" not in columns:
        table["prompt_ids"] = prompt_tokens(tokenizer(), columns["prompt"])
    return Dataset.from_dict(table)


@lru_cache(maxsize=32)
def _drawn(groups: int, responses: int, labelled: bool, seed: int) -> Dataset:
    """The engine's own rows, of a tiny policy's responses."""
    ctx = context({"seed": seed, "preferences": {"responses": responses}})
    asked = prompts(groups)
    pairs = comparisons_of(own_responses(tiny_policy(seed), asked, ctx, "pairs"), asked, ctx)
    if not labelled:
        return pairs
    better = [float(row["first_gold"] > row["second_gold"]) for row in pairs]
    owner: Any = SimpleNamespace(one=lambda *_, **__: better, owners={"label": "gold"})
    return label(pairs, owner, ctx)


def preferences(
    data: Dataset | None = None, *, responses: int = 2, seed: int = 0, **fields: Any
) -> PreferenceBatch:
    """A batch of comparisons for a reward model, as ``rm_loss`` and ``preference_loss`` see it.

    Columns that plugins added to ``data`` are in ``extra``.
    """
    rows = comparisons(responses=responses, seed=seed) if data is None else data
    made = Comparisons(rows, _reader(), tokenizer())
    batch = made.batch(range(len(made.groups)))
    given = {n: _tensor(v, getattr(batch, n)) for n, v in fields.items()}
    return replace(batch, **given)


@lru_cache(maxsize=1)
def _reader() -> RewardModel:
    return tiny_reward_model()


def rm_outputs(
    batch: PreferenceBatch | None = None,
    *,
    model: RewardModel | None = None,
    views: int = 1,
    dropout: float = 0.0,
    seed: int = 0,
    **fields: Any,
) -> RMOutputs:
    """A tiny reward model's answers for the batch, with their gradient; V dropout views of each.

    A given ``score`` (V, N) or (N,), and each other field, takes the place of the model's.
    """
    batch = preferences() if batch is None else batch
    made = model or tiny_reward_model(seed)
    with Draws(seed).forked("dropout"), _dropping(made, dropout):
        found: RMOutputs = made(batch.input_ids, batch.mask, views)
    given = {n: _tensor(v, getattr(found, n)) for n, v in fields.items()}
    for name in ("score", "hidden", "logits"):  # one view, where the field was given without
        if name in given and given[name].ndim == getattr(found, name).ndim - 1:
            given[name] = given[name][None]
    return replace(found, **given)


class _dropping:
    """Inside, the model drops with this probability."""

    def __init__(self, model: nn.Module, p: float) -> None:
        self.model, self.p = model, p

    def __enter__(self) -> None:
        if self.p:
            set_dropout(self.model, self.p)
            self.model.train()

    def __exit__(self, *_: object) -> None:
        if self.p:
            set_dropout(self.model, 0.0)
            self.model.eval()


def _tensor(value: Any, like: Any) -> Any:
    """Lists in the place of tensors as tensors."""
    if isinstance(like, torch.Tensor) and isinstance(value, list | tuple):
        return torch.as_tensor(value, dtype=like.dtype)
    return value
