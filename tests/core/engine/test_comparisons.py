"""Preference data in batches of whole groups: rows, ranks, columns of plugins."""

from __future__ import annotations

import torch
from datasets import Dataset, concatenate_datasets

from ostinato.engine.comparisons import Comparisons, ranks


def test_groups_share_rows_and_are_ranked(kit, comparisons):
    """Three responses a prompt are three rows and three comparisons; rank 0 has the best gold."""
    one = kit.make()
    model = one.initial()
    data = comparisons(5, responses=3)
    batch = one.batch(data, model, [0, 3])
    assert len(batch.prompt) == len(batch.response) == len(batch.input_ids) == 6
    assert batch.pairs.shape == (6, 2)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    gold = torch.tensor([r.count("a") - r.count("b") for r in batch.response])
    for group in (0, 1):
        mine = batch.group == group
        order = gold[mine].argsort(descending=True)
        assert batch.rank[mine][order].tolist() == [0, 1, 2]
    assert bool((gold[batch.pairs[:, 0]] > gold[batch.pairs[:, 1]]).all())
    kept = one.batch(data, model).extra
    assert list(kept) == ["wrong"]
    assert len(kept["wrong"]) == len(data)
    assert batch.tokenizer is model.tokenizer
    text = batch.tokenizer.decode(batch.input_ids[0][batch.response_mask[0]].tolist())
    assert text.removesuffix(model.tokenizer.eos_token) == batch.response[0]


def test_soft_labels_rank_by_expected_wins():
    """A comparison that is certain counts more than one that is nearly a tie."""
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0]])  # a cycle: one win each
    group = torch.zeros(3, dtype=torch.long)
    assert ranks(pairs, torch.tensor([1.0, 1.0, 1.0]), group).tolist() == [0, 1, 2]
    assert ranks(pairs, torch.tensor([0.6, 1.0, 0.6]), group).tolist() == [1, 0, 2]


def test_a_group_is_one_iterations_whatever_its_number(kit, comparisons):
    """Each iteration counts its prompts from 0: equal numbers are no reason to stand together."""
    one = kit.make()
    model = one.initial()
    rounds = [comparisons(4, seed=k, responses=3, iteration=k) for k in (1, 2, 3)]
    data = concatenate_datasets(rounds)
    batch = one.batch(data, model)
    assert batch.group.bincount().tolist() == [3] * 12
    chosen, rejected = batch.pairs.T.tolist()
    for side, rows in (("chosen", chosen), ("rejected", rejected)):
        assert [batch.response[i] for i in rows] == data[side][:]
        assert [batch.prompt[i] for i in rows] == data["prompt"][:]
        assert batch.iteration[rows].tolist() == data["iteration"][:]
    for group in range(12):
        assert sorted(batch.rank[batch.group == group].tolist()) == [0, 1, 2]


def test_another_vocabulary_gives_the_same_tokens_through_text(kit, comparisons, words):
    """A response that never came to its stop token has none here either."""
    one = kit.make()
    model, tokenizer = one.initial(), one.trainer().policy_tokenizer
    table = comparisons(6, responses=3).to_dict()
    for side, stopped in (("chosen", [True, False, True]), ("rejected", [False, True, True])):
        finished = stopped * 6
        table[f"{side}_finished"] = finished
        pairs = zip(table[f"{side}_ids"], finished, strict=True)
        table[f"{side}_ids"] = [ids if done else ids[:-1] for ids, done in pairs]
    data = Dataset.from_dict(table)
    for index in range(len(data)):  # each by itself: a response is one row of its group's batch
        part = data.select([index])
        same, other = (Comparisons(part, model, t).batch([0]) for t in (tokenizer, words()))
        for field in ("input_ids", "mask", "response_mask"):
            assert torch.equal(getattr(same, field), getattr(other, field))
        last = [int(ids[mask][-1]) for ids, mask in zip(other.input_ids, other.mask, strict=True)]
        finished = [data[f"{side}_finished"][index] for side in ("chosen", "rejected")]
        assert [token == model.tokenizer.eos_token_id for token in last] == finished
