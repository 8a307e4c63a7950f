"""The ruler: SFT responses, drawn once a run, on which every reward has its zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ostinato.measures import mean_and_std
from ostinato.models.reward import Calibration, Reward
from ostinato.models.reward_model import RewardModel
from ostinato.models.samples import Samples

PARTS = ("evaluation", "rl")


@dataclass(frozen=True)
class Ruler:
    """One SFT response to each evaluation prompt, and one to as many RL prompts, if there are."""

    evaluation: Samples
    rl: Samples
    gold: Tensor | None = None  # (B,) raw, in fp32, whatever the run computes in
    rl_gold: Tensor | None = None

    def over(self, score: Callable[[Samples], Tensor]) -> Tensor:
        """What ``score`` answers for every response, joined: (N, ...)."""
        return torch.cat([score(self.evaluation).cpu(), score(self.rl).cpu()])

    def save(self, folder: Path) -> None:
        """Write into an existing empty folder."""
        found: dict[str, Any] = {"gold": self.gold, "rl_gold": self.rl_gold}
        for name in PARTS:
            found |= {f"{name}.{key}": value for key, value in vars(getattr(self, name)).items()}
        tensors = {k: v.contiguous() for k, v in found.items() if isinstance(v, Tensor)}
        save_file(tensors, folder / "ruler.safetensors")

    @classmethod
    def load(
        cls, folder: Path, tokenizer: Any, device: torch.device, texts: Mapping[str, Sequence[str]]
    ) -> Ruler:
        """What :meth:`save` wrote; ``texts`` are the prompts of each part."""
        found = load_file(folder / "ruler.safetensors")
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in PARTS}
        for key, value in found.items():
            name, _, tensor = key.partition(".")
            if name in parts:
                parts[name][tensor] = value.to(device)
        made = {n: Samples(tokenizer, texts=texts[n], **parts[n]) for n in PARTS}
        return cls(**made, gold=found.get("gold"), rl_gold=found.get("rl_gold"))


@torch.no_grad()
def calibrated(model: RewardModel, ruler: Ruler) -> RewardModel:
    """The model with each head, and its score, at mean 0 on the ruler; its unit is the std there.

    A score without spread keeps its own unit.
    """
    logits = ruler.over(model.logits).to(model.model.device)  # (N, outputs)
    zeros = tuple(model.read(logits).parts.cpu().double().mean(0).flatten().tolist())
    mean, std = mean_and_std(model.read(logits, zeros).score)
    model.calibration = Calibration(zeros, mean, std or 1.0)
    return model


@torch.no_grad()
def centred(reward: Reward, ruler: Ruler) -> Reward:
    """The reward with mean 0 on the ruler; its unit stays."""
    reward.zero += mean_and_std(ruler.over(lambda samples: reward.score_samples(samples).total))[0]
    return reward
