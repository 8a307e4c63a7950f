"""Has a hook that nobody will call."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "its method 'reward_transform' lacks @ostinato.hookimpl",
]


class Faulty:
    """Halve the rewards."""

    @hookimpl
    def observe(self, event):
        """Told of everything."""

    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score / 2)
