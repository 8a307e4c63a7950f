"""Remembers what a resumed run does not know."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "what it remembers between calls belongs into its state_dict",
]


class Faulty:
    """Scale the rewards by how many batches there were."""

    def __init__(self):
        self.seen = 0

    @hookimpl
    def reward_transform(self, rewards):
        self.seen += 1
        return replace(rewards, score=rewards.score / self.seen)
