"""Changes the rewards that it is given."""

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' changed rewards.score in place, which it is given to read",
]


class Faulty:
    """Take a point off each reward."""

    @hookimpl
    def reward_transform(self, rewards):
        rewards.score.sub_(1.0)
        return rewards
