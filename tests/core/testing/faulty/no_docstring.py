"""Says nothing of itself."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "its class has no docstring; the first line is what `ostinato plugins` shows",
]


class Faulty:
    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score / 2)
