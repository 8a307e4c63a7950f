"""Preference data as one reward model reads it: token ids, in batches of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ostinato.config.errors import UserError
from ostinato.contract.batches import PreferenceBatch
from ostinato.data.identity import SIDES, contradiction
from ostinato.models.loading import vocabulary_key
from ostinato.models.reward_model import RewardModel

Rows = Sequence[Sequence[int]]


class Comparisons:
    """Preference data as token ids of one reward model, drawn by group (one group: one prompt).

    Raises UserError where a row names another response, or another prompt, than the rows before.
    """

    OWN = {"group", "prompt_id", "iteration", "prompt", "prompt_ids", "label", "margin", "weight"}

    def __init__(self, data: Dataset, model: RewardModel, policy_tokenizer: Any) -> None:
        if fault := contradiction(data):
            raise UserError(f"the data that a reward model is trained on: {fault}")
        self.columns = data.to_dict()
        self.model = model
        self.tokens = {}
        for side in SIDES:
            ids = self.columns["prompt_ids"], self.columns[f"{side}_ids"]
            texts = self.columns["prompt"], self.columns[side], self.columns[f"{side}_finished"]
            found = tokens_of(model, policy_tokenizer, ids, texts)
            self.tokens[side] = list(zip(*found, strict=True))
        by_key: dict[tuple[int, int], list[int]] = {}
        for i, key in enumerate(zip(self.columns["iteration"], self.columns["group"], strict=True)):
            by_key.setdefault(key, []).append(i)
        self.groups = list(by_key.values())
        self.extra = [c for c in self.columns if c not in self.OWN and not c.startswith(SIDES)]

    def __len__(self) -> int:
        return len(self.columns["label"])

    def batch(self, groups: Sequence[int]) -> PreferenceBatch:
        """The comparisons of these groups; a response that stands in several is one row."""
        places: dict[tuple[int, str], int] = {}
        responses: list[tuple[int, str]] = []
        pairs, comparisons, owners = [], [], []
        for place, group in enumerate(groups):
            for i in self.groups[group]:
                ends = []
                for side in SIDES:
                    key = (place, self.columns[f"{side}_id"][i])
                    if key not in places:
                        places[key] = len(responses)
                        responses.append((i, side))
                        owners.append(place)
                    ends.append(places[key])
                pairs.append(ends)
                comparisons.append(i)
        tokens = [self.tokens[side][i] for i, side in responses]
        ids, mask, response_mask = self.model.joined(*zip(*tokens, strict=True))
        device = ids.device
        index = torch.tensor(pairs, device=device)
        group_of = torch.tensor(owners, device=device)
        first = [i for i, _ in responses]

        def numbers(column: str, rows: Sequence[int], kind: torch.dtype) -> Tensor:
            return torch.tensor([self.columns[column][i] for i in rows], dtype=kind, device=device)

        label = numbers("label", comparisons, torch.float32)
        return PreferenceBatch(
            prompt=[self.columns["prompt"][i] for i in first],
            response=[self.columns[side][i] for i, side in responses],
            input_ids=ids,
            mask=mask,
            response_mask=response_mask,
            group=group_of,
            rank=ranks(index, label, group_of),
            prompt_id=numbers("prompt_id", first, torch.long),
            iteration=numbers("iteration", first, torch.long),
            pairs=index,
            label=label,
            margin=numbers("margin", comparisons, torch.float32),
            weight=numbers("weight", comparisons, torch.float32),
            extra={c: [self.columns[c][i] for i in comparisons] for c in self.extra},
            tokenizer=self.model.tokenizer,
        )


def tokens_of(
    model: RewardModel,
    policy_tokenizer: Any,
    ids: tuple[Rows, Rows],
    texts: tuple[Sequence[str], Sequence[str], Sequence[bool]],
) -> tuple[Rows, Rows]:
    """Prompts and responses in the model's vocabulary: the policy's ``ids`` where it is the same.

    ``texts``: the prompts, the responses, and whether each is finished.
    """
    return ids if vocabulary_key(policy_tokenizer) == model.key else model.encode(*texts)


def ranks(pairs: Tensor, label: Tensor, group: Tensor) -> Tensor:
    """Rank (N,) within the group by expected wins, 0 the best; ties keep the rows' order."""
    wins = torch.zeros(len(group), device=group.device)
    wins.index_add_(0, pairs[:, 0], label).index_add_(0, pairs[:, 1], 1 - label)
    same = group[:, None] == group[None, :]
    place = torch.arange(len(group), device=group.device)
    ahead = (wins[None, :] > wins[:, None]) | (
        (wins[None, :] == wins[:, None]) & (place[None, :] < place[:, None])
    )
    return (same & ahead).sum(1)
