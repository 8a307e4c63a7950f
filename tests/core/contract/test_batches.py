"""Rollouts cut to some of their rows: every number goes with its response."""

from __future__ import annotations

from dataclasses import fields

import torch

from ostinato.contract.batches import Rollout
from ostinato.models.samples import Samples

LENGTHS = torch.tensor([2, 5, 1, 3])


def rollout() -> Rollout:
    """Four responses; each number names its field, its row and its place."""
    mask = torch.arange(5) < LENGTHS[:, None]
    row = torch.arange(4.0)
    per_response = {"score": 1000 + row, "kl_coefficient": 2000 + row}
    names = ("rewards", "logprobs", "ref_logprobs", "values", "advantages", "returns")
    place = 10 * row[:, None] + torch.arange(5.0)
    per_token = {name: 100 * (i + 1) + place for i, name in enumerate(names)}
    finished = torch.tensor([True, False, False, True])
    prompts = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    seen = torch.tensor([[False, True], [True, True], [False, True], [True, True]])
    samples = Samples(None, prompts, seen, place.long(), mask, finished)
    group = torch.tensor([0, 0, 1, 1])
    return Rollout(
        samples, mask, group=group, finished=finished.clone(), **per_response, **per_token
    )


def test_rows_take_every_field_of_their_responses_and_no_more_columns_than_these_need():
    whole, index = rollout(), torch.tensor([3, 0])
    made = whole.rows(index)
    for one, part in ((whole, made), (whole.samples, made.samples)):
        for field in fields(one):
            before, after = getattr(one, field.name), getattr(part, field.name)
            if not isinstance(before, torch.Tensor):
                continue
            wanted = before[index]
            if before.shape == whole.mask.shape:  # per token: the longest left has three
                wanted = wanted[:, :3]
            assert torch.equal(after, wanted), field.name
    assert made.mask.sum(1).tolist() == [3, 2]
