"""Logs under a name of the core's."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "'kl' is a column of the core; give it a name of its own, such as 'my_plugin/kl'",
]


class Faulty:
    """Halve the rewards, and say that the policy did not move."""

    @hookimpl
    def reward_transform(self, rewards, ctx):
        ctx.log(kl=0.0)
        return replace(rewards, score=rewards.score / 2)
