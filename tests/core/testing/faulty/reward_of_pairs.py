"""Cannot score one response."""

from dataclasses import replace

from ostinato import hookimpl, wrapped

SAID = [
    "the reward of hook 'wrap_reward' cannot score one response alone: "
    "its reward (reward_of_pairs.py, line 15) raises ValueError: one response has no spread",
]


def spread(scores):
    if len(scores) < 2:
        raise ValueError("one response has no spread")
    return scores.std()


class Faulty:
    """Reward a response in standard deviations of its batch."""

    @hookimpl
    def wrap_reward(self, reward):
        return wrapped(reward, lambda _, s: replace(s, score=s.score / spread(s.score)))
