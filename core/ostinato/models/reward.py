"""What a policy is optimised on: one reward model, or several combined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ostinato.config.errors import NonFiniteError, UserError
from ostinato.models.samples import Samples, Scores, Texts


@dataclass(frozen=True)
class Calibration:
    """How raw outputs become scores, which have an arbitrary offset and scale otherwise."""

    zeros: tuple[float, ...] = (0.0,)  # each head's mean on the ruler, taken off before reading
    mean: float = 0.0  # of the score that is read there, taken off that
    unit: float = 1.0  # divided out last


class Reward(ABC):
    """A reward that a policy can be optimised on; ``zero`` is taken off its scores."""

    zero: float = 0.0

    @property
    @abstractmethod
    def members(self) -> list[Any]:
        """The reward models (:class:`RewardModel`) that score below this, each once."""

    @abstractmethod
    def score_samples(self, samples: Samples) -> Scores:
        """Calibrated scores of B samples; tokens are used as they are where tokenizers agree."""

    @abstractmethod
    def score_text(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Scores:
        """The same, from text."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into an existing empty folder."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Move every member."""

    def score(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Tensor:
        """Calibrated scores (B,) of text."""
        return self.score_text(prompts, responses, finished).score


class CombinedReward(Reward):
    """A lazy combination: every member of ``models`` scores, ``reduce`` takes (B, n) to (B,).

    n counts the members, or with ``heads`` every head of each, all with mean 0 on the ruler.
    """

    def __init__(
        self, models: Sequence[Reward], reduce: Callable[[Tensor], Tensor], heads: bool = False
    ) -> None:
        self._members = [member for model in models for member in model.members]
        self._reduce = reduce
        self._heads = heads

    @property
    def members(self) -> list[Any]:
        return self._members

    def to(self, device: torch.device) -> Self:
        for member in self._members:
            member.to(device)
        return self

    def _combine(self, found: list[Scores]) -> Scores:
        columns = [f.parts.flatten(1) if self._heads else f.score[:, None] for f in found]
        each = torch.cat(columns, dim=1)  # (B, n)
        score = self._reduce(each)
        said = "combine_rm: its reduce answered"
        if score.shape != (len(each),):
            shapes = f"shape {tuple(score.shape)} for scores of shape {tuple(each.shape)}"
            raise UserError(f"{said} {shapes}, expected ({len(each)},)")
        if not bool(score.isfinite().all()):
            raise NonFiniteError(f"{said} a score that is not finite")
        alike = len({f.parts.shape[-1] for f in found}) == 1
        # of models with different numbers of heads, each head counts as a member
        parts = [f.parts if alike else f.parts.flatten(1)[..., None] for f in found]
        stds = [f.part_std for f in found if f.part_std is not None]
        whole = alike and len(stds) == len(found)
        std = torch.cat(stds, dim=1) if whole else None
        return Scores(score - self.zero, torch.cat(parts, dim=1), std)

    def score_samples(self, samples: Samples) -> Scores:
        return self._combine([m.score_samples(samples) for m in self._members])

    def score_text(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Scores:
        return self._combine([m.score_text(prompts, responses, finished) for m in self._members])

    def save(self, folder: Path) -> None:
        """One checkpoint a member: ``member-0``, ``member-1``, ..."""
        for i, member in enumerate(self._members):
            (folder / f"member-{i}").mkdir()
            member.save(folder / f"member-{i}")


combine = CombinedReward  # the name that plugins call


def mean_over_members(scores: Tensor) -> Tensor:
    return scores.mean(1)
