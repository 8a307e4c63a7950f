"""Keeps what it remembers in its module."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "changes its module variable 'SEEN' during a run",
    "two runs with the same seed differ:",
]

SEEN: list[int] = []


class Faulty:
    """Scale the rewards by how many batches there were."""

    @hookimpl
    def reward_transform(self, rewards):
        SEEN.append(len(SEEN))
        return replace(rewards, score=rewards.score / len(SEEN))
