"""Calibrate a reward model (its zero on the ruler, its unit), and measure its accuracy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset

from ostinato.data.identity import SIDES
from ostinato.engine.session import Session
from ostinato.measures import mean_and_std, pairwise_accuracy, temperature
from ostinato.models.reward import Reward
from ostinato.models.reward_model import RewardModel
from ostinato.models.ruler import calibrated
from ostinato.models.samples import Samples

TRAINING_RESPONSES = 2048  # at most so many of them make a scale
SOFTEST = 100.0  # a unit of nats is at most so many standard deviations on the ruler


def calibrate(
    s: Session, model: RewardModel, data: Dataset | None, held_out: Dataset | None
) -> None:
    """Give the model its calibration; ``data`` is what it was trained on.

    In a run without training data the unit is the std on the ruler.
    """
    made = calibrated(model, s.ruler).calibration
    unit = "sft_std" if data is None else s.config.reward_model.unit
    factor: float | None = 1.0
    if unit == "training_std":
        assert data is not None
        factor = mean_and_std(over_training(model, data, s.tokenizer, model.model.device))[1]
    elif unit == "nats":
        assert held_out is not None  # `check` has seen to it
        device = model.model.device
        chosen, rejected = (score(model, held_out, side, s.tokenizer, device) for side in SIDES)
        factor = min(SOFTEST, temperature(chosen - rejected, held_out["label"][:]))
    model.calibration = replace(made, unit=made.unit * (factor or 1.0))


def scores_of(reward: Reward, samples: Samples) -> torch.Tensor:
    """What whole responses are worth (B,), in fp32 as on the ruler, whatever the policy is in."""
    return reward.score_samples(samples).total.float().cpu()


def score(
    reward: Reward, data: Dataset, side: str, tokenizer: Any, device: torch.device
) -> torch.Tensor:
    """Scores (rows,) of the chosen or the rejected responses."""
    return scores_of(reward, Samples.of(tokenizer, data, side).to(device))


def held_out_accuracy(model: RewardModel, data: Dataset, tokenizer: Any) -> dict[str, float | None]:
    """Shares of held-out comparisons that the model orders rightly; its own ties count half.

    ``accuracy`` is by gold, or by the labels without a gold model; ``accuracy_labels`` by the
    labels, whose errors a model learns too (Secrets II, 2.5). Comparisons that gold (or a label of
    .5) ties are left out; None if no other is left.
    """
    scores = [score(model, data, side, tokenizer, model.model.device) for side in SIDES]
    labels = data["label"][:], [1 - p for p in data["label"]]
    golds = data["chosen_gold"][:], data["rejected_gold"][:]
    truths = {"accuracy": labels if None in golds[0] else golds, "accuracy_labels": labels}
    shares = {key: pairwise_accuracy(*scores, *truth) for key, truth in truths.items()}
    return {key: None if math.isnan(share) else share for key, share in shares.items()}


def spread_part(data: Dataset) -> Dataset:
    """An even spread of the rows, the newest included, of as many responses as make a scale."""
    count = min(len(data), TRAINING_RESPONSES // 2)
    return data.select([i * len(data) // count for i in range(count)])


def over_training(
    reward: Reward, data: Dataset, tokenizer: Any, device: torch.device
) -> torch.Tensor:
    """Scores (2 rows,) of both sides of an even spread of the training data."""
    part = spread_part(data)
    return torch.cat([score(reward, part, side, tokenizer, device) for side in SIDES])
