"""Keeps what it remembers in its class."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "changes its class attribute 'seen' during a run",
    "two runs with the same seed differ:",
]


class Faulty:
    """Scale the rewards by how many batches there were."""

    seen: list[int] = []

    @hookimpl
    def reward_transform(self, rewards):
        self.seen.append(len(self.seen))
        return replace(rewards, score=rewards.score / len(self.seen))
