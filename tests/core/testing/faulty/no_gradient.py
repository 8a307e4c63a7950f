"""Answers losses that train nothing."""

from ostinato import hookimpl

SAID = [
    "hook 'preference_loss' answered losses without a gradient",
]


class Faulty:
    """The Bradley-Terry loss, detached."""

    @hookimpl
    def preference_loss(self, batch, outputs):
        chosen, rejected = outputs.score.detach()[:, batch.pairs].unbind(-1)
        return -(chosen - rejected).sigmoid().log()
