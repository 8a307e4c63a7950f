"""Steps of responses, and whether they are right: what `orm` and `prm` are trained on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ostinato import PreferenceBatch, RMOutputs, Samples


@lru_cache(maxsize=1 << 16)
def step_ends(tokenizer: Any, ids: tuple[int, ...], separator: str) -> list[int]:
    """Places in a response's ``ids`` of the tokens that end a step.

    They are the token with which each separator is complete, and the last token of all.
    """

    def separators(end: int) -> int:
        text: str = tokenizer.decode(list(ids[: end + 1]), skip_special_tokens=True)
        return text.count(separator)

    places, last = range(len(ids)), len(ids) - 1
    wanted = range(1, separators(last) + 1)
    found = [bisect_left(places, number, key=separators) for number in wanted]
    return list(dict.fromkeys([*found, last]))


def cut(samples: Samples, rows: Sequence[int], ends: Sequence[int]) -> Samples:
    """The responses at ``rows``, each broken off behind the token at its place in ``ends``."""
    made = samples.rows(torch.tensor(rows, device=samples.mask.device))
    places = torch.arange(made.mask.shape[1], device=made.mask.device)
    made.mask = places <= torch.tensor(ends, device=made.mask.device)[:, None]
    pad = samples.tokenizer.pad_token_id
    made.response_ids = made.response_ids.masked_fill(~made.mask, pad)
    made.finished = torch.zeros_like(made.finished)
    return made.rows(torch.arange(len(made), device=made.mask.device))


def cross_entropy(
    batch: PreferenceBatch, outputs: RMOutputs, right: Tensor, where: Tensor
) -> Tensor:
    """The loss of each comparison (V, C): the mean of its two responses' cross-entropies, in nats.

    A response's is the mean over its tokens ``where`` (N, T) and over the outputs, of which each is
    the log-odds that ``right`` (N, T) is 1 there.
    """
    assert outputs.states is not None
    logits = (outputs.states.to(outputs.head.dtype) @ outputs.head.T).float()  # (V, N, T, outputs)
    wanted = right[None, :, :, None].expand_as(logits)
    each = binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
    of_response = (each * where).sum(-1) / where.sum(-1).clamp_min(1)  # (V, N)
    return of_response[:, batch.pairs].mean(-1)
