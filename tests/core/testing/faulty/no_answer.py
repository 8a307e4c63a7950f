"""Forgets to answer."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' answered None",
]


class Faulty:
    """Halve the rewards."""

    @hookimpl
    def reward_transform(self, rewards):
        replace(rewards, score=rewards.score / 2)
