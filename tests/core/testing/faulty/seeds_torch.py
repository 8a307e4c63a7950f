"""Seeds torch's global generator for itself and everybody else."""

from dataclasses import replace

import torch

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' seeds torch's global generator; draw from ctx.generator(purpose)",
]


class Faulty:
    """Add the same noise to every batch of rewards."""

    @hookimpl
    def reward_transform(self, rewards):
        torch.manual_seed(0)
        return replace(rewards, score=rewards.score + torch.randn_like(rewards.score))
