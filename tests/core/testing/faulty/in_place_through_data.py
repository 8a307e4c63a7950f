"""Changes rewards by a way around autograd."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "hook 'reward_transform' changes rewards.score, which it is given to read, in place",
]


class Faulty:
    """Take a point off each reward."""

    @hookimpl
    def reward_transform(self, rewards):
        before = rewards.score.clone()
        rewards.score.data.sub_(1.0)
        return replace(rewards, score=before / 2)
