"""Answers rewards of another shape."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' made score of shape (8, 1), expected (8,)",
]


class Faulty:
    """Halve the rewards."""

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score[:, None] / 2)
