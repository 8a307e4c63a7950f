"""Changes nothing."""

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' does nothing: its action is 0 in every row",
]


class Faulty:
    """Leave the rewards as they are."""

    @hookimpl
    def reward_transform(self, rewards):
        return rewards
