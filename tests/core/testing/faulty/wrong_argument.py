"""Asks for an argument that its hook does not have."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' has no argument 'reward'; did you mean 'rewards'?",
]


class Faulty:
    """Halve the rewards."""

    @hookimpl
    def reward_transform(self, reward):
        return replace(reward, score=reward.score / 2)
