"""Draws from torch's global generator."""

from dataclasses import replace

import torch

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' draws from torch's global generator; draw from ctx.generator(purpose)",
]


class Faulty:
    """Add noise to the rewards."""

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score + torch.randn_like(rewards.score))
