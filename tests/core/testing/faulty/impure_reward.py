"""Compares a response with those that happen to be scored with it."""

from dataclasses import replace

from ostinato import hookimpl, wrapped

SAID = [
    "the reward of hook 'wrap_reward' gives a response another score in another batch",
]


class Faulty:
    """Reward a response by how far it lies above its batch."""

    @hookimpl
    def wrap_reward(self, reward):
        return wrapped(reward, lambda _, s: replace(s, score=s.score - s.score.mean()))
