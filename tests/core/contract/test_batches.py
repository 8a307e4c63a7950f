"""Rollouts cut to some of their rows: every number goes with its response."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import torch

from ostinato.contract.batches import RewardBatch, Rollout
from ostinato.models.samples import Samples

LENGTHS = torch.tensor([2, 5, 1, 3])
HEADS = (("parts", 3000.0), ("part_std", 4000.0))


def rollout() -> Rollout:
    """Four responses; each number names its field, its row and its place."""
    mask = torch.arange(5) < LENGTHS[:, None]
    row = torch.arange(4.0)
    per_response = {"score": 1000 + row, "kl_coefficient": 2000 + row}
    heads = {n: at + 10 * row[:, None, None] + torch.arange(6.0).view(2, 3) for n, at in HEADS}
    names = ("rewards", "logprobs", "ref_logprobs", "advantages", "behaviour_logprobs")
    place = 10 * row[:, None] + torch.arange(5.0)
    per_token = {name: 100 * (i + 1) + place for i, name in enumerate(names)}
    finished = torch.tensor([True, False, False, True])
    prompts = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    seen = torch.tensor([[False, True], [True, True], [False, True], [True, True]])
    samples = Samples(None, prompts, seen, place.long(), mask, finished)
    group = torch.tensor([0, 0, 1, 1])
    return Rollout(
        samples,
        mask,
        group=group,
        finished=finished.clone(),
        values=torch.stack([place + 5000, place + 6000], dim=2),  # of two heads
        returns=torch.stack([place + 7000, place + 8000], dim=2),
        **per_response,
        **per_token,
        **heads,
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
            if before.shape[:2] == whole.mask.shape:  # per token: the longest left has three
                wanted = wanted[:, :3]
            assert torch.equal(after, wanted), field.name
    assert made.mask.sum(1).tolist() == [3, 2]


def padded(x: torch.Tensor, width: int, left: bool = False, fill: float = 0) -> torch.Tensor:
    """By hand: a table of the fill, with the rows in it."""
    made = torch.full((len(x), width, *x.shape[2:]), fill, dtype=x.dtype)
    made[:, width - x.shape[1] :] = x if left else made[:, width - x.shape[1] :]
    if not left:
        made[:, : x.shape[1]] = x
    return made


def test_joined_rollouts_stand_one_below_the_other_padded_to_the_widest() -> None:
    whole = rollout()
    whole.samples.tokenizer = SimpleNamespace(pad_token_id=9)
    whole.samples.texts = ["a", "b", "c", "d"]
    parts = [whole.rows(torch.tensor([2, 0])), whole.rows(torch.tensor([1, 3]))]  # 2 and 5 tokens
    parts[1].samples.prompt_ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    parts[1].samples.prompt_mask = torch.ones(2, 3, dtype=torch.bool)
    made = Rollout.joined(parts)
    again = whole.rows(torch.tensor([2, 0, 1, 3]))
    for field in fields(whole):
        found, wanted = getattr(made, field.name), getattr(again, field.name)
        if field.name == "samples":
            continue
        if found.shape[:2] == (4, 5) and found.dtype != torch.bool:
            wanted = wanted.clone()
            wanted[:2, 2:] = 0  # cut with the first part, and padded
        assert torch.equal(found, wanted), field.name
    samples = made.samples
    ids = [padded(p.samples.prompt_ids, 3, left=True, fill=9) for p in parts]
    assert torch.equal(samples.prompt_ids, torch.cat(ids))
    seen = [padded(p.samples.prompt_mask, 3, left=True, fill=0) for p in parts]
    assert torch.equal(samples.prompt_mask, torch.cat(seen))
    answers = [padded(p.samples.response_ids, 5, fill=9) for p in parts]
    assert torch.equal(samples.response_ids, torch.cat(answers))
    assert samples.tokens[1] == [r for p in parts for r in p.samples.tokens[1]]
    assert samples.texts == ["c", "a", "b", "d"]


def test_what_is_left_out_of_a_rollout_is_as_if_there_were_one_model_and_no_shape() -> None:
    whole = replace(rollout(), behaviour_logprobs=None, parts=None, part_std=None)
    assert whole.behaviour_logprobs is whole.logprobs
    assert torch.equal(whole.parts, whole.score.view(4, 1, 1))
    assert whole.part_std is None
    assert whole.rows(torch.tensor([1])).part_std is None


def test_a_reward_batch_has_no_rewards_of_single_tokens_unless_given() -> None:
    one = rollout()
    shared = {n: getattr(one, n) for n in ("samples", "score", "parts", "part_std", "logprobs")}
    shared |= {n: getattr(one, n) for n in ("ref_logprobs", "mask", "finished", "group")}
    made = RewardBatch(**shared, kl_scale=torch.ones(4), iteration=1, step=0)
    assert torch.equal(made.token_score, torch.zeros(4, 5))
    assert made.hidden is None
    assert replace(made, token_score=one.rewards).token_score is one.rewards
