"""Answers NaN."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' answers a number that is not finite (score)",
    "its run ends with: score is not finite",
]


class Faulty:
    """Standardise rewards by a spread that is 0."""

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=(rewards.score - rewards.score) / 0.0)
