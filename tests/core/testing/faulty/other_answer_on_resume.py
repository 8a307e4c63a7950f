"""Combines other reward models when a run goes on."""

import ostinato
from ostinato import hookimpl

SAID = [
    "and went on differs: ",
]


class Faulty:
    """The newest reward model, and the first one when it is asked again."""

    @hookimpl
    def combine_rm(self, reward_models, ctx):
        asked = (ctx.directory / f"iteration-{ctx.iteration}" / "combined").exists()
        which = slice(0, 1) if asked else slice(-1, None)
        return ostinato.combine(reward_models[which], lambda scores: scores.mean(1) / 2)
