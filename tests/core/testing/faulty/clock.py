"""Looks at the clock."""

import time
from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "two runs with the same seed differ:",
]


class Faulty:
    """Reward haste."""

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score - time.perf_counter() % 1)
