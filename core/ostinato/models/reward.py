"""What a policy is optimised on: the base class of every reward, and rewards made of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ostinato.config.errors import NonFiniteError, UserError, blamed
from ostinato.models.samples import Samples, Scores, scores_fault


@dataclass(frozen=True)
class Calibration:
    """How raw outputs become scores, which have an arbitrary offset and scale otherwise."""

    zeros: tuple[float, ...] = (0.0,)  # each head's mean on the ruler, taken off before reading
    mean: float = 0.0  # of the score that is read there, taken off that
    unit: float = 1.0  # divided out last


class Reward(ABC):
    """A reward that a policy can be optimised on. A subclass has to write :meth:`scores` alone.

    The core sets ``zero``, which is taken off every score, and ``owner``, the plugin whose it is.
    """

    zero: float = 0.0
    owner: str = ""

    @abstractmethod
    def scores(self, samples: Samples) -> Scores:
        """What B samples are worth; a pure function of them."""

    @property
    def members(self) -> list[Any]:
        """The reward models (:class:`RewardModel`) that score below this, each once."""
        return []

    def to(self, device: torch.device) -> Self:
        """Move every member."""
        for member in self.members:
            member.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Into an existing empty folder, one checkpoint a member: ``member-0``, ``member-1``."""
        for i, member in enumerate(self.members):
            (folder / f"member-{i}").mkdir()
            member.save(folder / f"member-{i}")

    @torch.no_grad()
    def score_samples(self, samples: Samples) -> Scores:
        """What every caller asks: the scores, checked, less ``zero``, on the samples' device.

        Rewards of padding are none. Raises UserError, and NonFiniteError, that name the owner.
        """
        with blamed(self.owner, "its reward") if self.owner else nullcontext():
            answer = self.scores(samples)
        whose = self._whose()
        if fault := scores_fault(answer, *samples.mask.shape):
            raise UserError(f"{whose} answered {fault}")
        made = {key: x.to(samples.mask.device) for key, x in vars(answer).items() if x is not None}
        if "token_score" in made:
            made["token_score"] = made["token_score"].masked_fill(~samples.mask, 0.0)
        for key, x in made.items():
            if not bool(x.isfinite().all()):
                raise NonFiniteError(f"{whose} answered a {key} that is not finite")
        return Scores(**made | {"score": made["score"] - self.zero})

    def _whose(self) -> str:
        """How a sentence about its answer begins."""
        return f"plugin '{self.owner}': its reward" if self.owner else "a reward"


class CombinedReward(Reward):
    """A lazy combination: every one of ``rewards`` scores, ``reduce`` takes (B, n) to (B,).

    n counts them, or with ``heads`` every head of each, all with mean 0 on the ruler. Those that a
    combination among them is made of stand in its place.
    """

    def __init__(
        self, rewards: Sequence[Reward], reduce: Callable[[Tensor], Tensor], heads: bool = False
    ) -> None:
        self._rewards: list[Reward] = []
        for reward in rewards:
            self._rewards += reward._rewards if isinstance(reward, CombinedReward) else [reward]
        self._reduce = reduce
        self._heads = heads

    @property
    def members(self) -> list[Any]:
        return [member for reward in self._rewards for member in reward.members]

    def to(self, device: torch.device) -> Self:
        for reward in self._rewards:
            reward.to(device)
        return self

    def scores(self, samples: Samples) -> Scores:
        found = [reward.score_samples(samples) for reward in self._rewards]
        columns = [f.parts.flatten(1) if self._heads else f.total[:, None] for f in found]
        # of models with different numbers of heads, each head counts as a member
        alike = len({f.parts.shape[-1] for f in found}) == 1
        parts = [f.parts if alike else f.parts.flatten(1)[..., None] for f in found]
        stds = [f.part_std for f in found if f.part_std is not None]
        hidden = [f.hidden for f in found if f.hidden is not None]
        one_size = len({h.shape[-1] for h in hidden}) == 1
        return Scores(
            self._reduce(torch.cat(columns, dim=1)),
            torch.cat(parts, dim=1),
            torch.cat(stds, dim=1) if alike and len(stds) == len(found) else None,
            torch.cat(hidden, dim=1) if one_size and len(hidden) == len(found) else None,
        )


class WrappedReward(Reward):
    """What a function makes of the scores of another reward."""

    def __init__(self, reward: Reward, function: Callable[[Samples, Scores], Scores]) -> None:
        self._reward = reward
        self._function = function

    @property
    def members(self) -> list[Any]:
        return self._reward.members

    def to(self, device: torch.device) -> Self:
        self._reward.to(device)
        return self

    def save(self, folder: Path) -> None:
        self._reward.save(folder)

    def scores(self, samples: Samples) -> Scores:
        return self._function(samples, self._reward.score_samples(samples))


combine = CombinedReward  # the names that plugins call
wrapped = WrappedReward


def mean_over_members(scores: Tensor) -> Tensor:
    return scores.mean(1)
