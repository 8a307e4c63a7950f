"""Has a first line that is no line."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "the first line of its docstring is no sentence of at most 100 characters",
]


class Faulty:
    """Halve the rewards, because a policy that is paid less"""

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score / 2)
