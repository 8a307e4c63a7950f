"""Writes its state and never reads it."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "it has only one of state_dict and load_state_dict; a resumed run needs both",
]


class Faulty:
    """Scale the rewards."""

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score / 2)

    def state_dict(self):
        return {}
