"""What several reward models say of the same responses: the members and heads of one reward.

Letters in shapes: E votes (members times heads), C comparisons, B responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ostinato import Context, Policy, Reward, RunConfig, Samples, UserError


def votes(reward: Reward, samples: Samples) -> Tensor:
    """The score of each member and head (B, E), in fp64 on the CPU."""
    return reward.score_samples(samples).parts.flatten(1).double().cpu()


def several(found: Tensor, whose: str) -> Tensor:
    """The votes, of which there have to be two; UserError where there is one."""
    if found.shape[1] < 2:
        raise UserError(
            f"plugin '{whose}': the reward has one member, expected 2 or more; set "
            "reward_model.members: 2, or list a plugin with heads"
        )
    return found


def one_vote(whose: str, config: RunConfig, plugins: Mapping[str, Any]) -> Iterator[str]:
    """Why R~_k has one vote: a run that trains one member with one head, whatever R_k is."""
    trainer = next((p for p in plugins.values() if hasattr(p, "train_rm")), None)
    if config.reward_model.members * getattr(trainer, "heads", 1) < 2:
        yield (
            f"plugin '{whose}' needs at least 2 votes of each reward model; set "
            "reward_model.members: 2, or list a plugin that trains several heads"
        )


def spread(found: Tensor) -> float:
    """Mean over responses of the standard deviation (ddof 1) of their votes (B, E)."""
    return float(found.std(1).mean())


def of_pairs(reward: Reward, comparisons: Dataset, ctx: Context) -> tuple[Tensor, Tensor]:
    """The votes on the first and on the second response of each comparison, both (C, E)."""
    sides = (ctx.responses(comparisons, side) for side in ("first", "second"))
    first, second = (votes(reward, side) for side in sides)
    return first, second


def probe(policy: Policy, prompts: int, ctx: Context, purpose: str) -> tuple[Tensor, Tensor]:
    """The votes of ``ctx.reward`` on a policy's fresh responses and on the SFT policy's, (B, E).

    Both answer the first RL prompts of the ruler, so nothing that a run is measured on is used.
    """
    assert ctx.ruler is not None
    known = ctx.ruler.rl if len(ctx.ruler.rl) else ctx.ruler.evaluation
    known = known.rows(torch.arange(min(prompts, len(known)), device=known.mask.device))
    return votes(ctx.reward, ctx.sample(policy, known, purpose)), votes(ctx.reward, known)
