"""Changes the ranks of a batch for those who come later."""

from ostinato import hookimpl

SAID = [
    "hook 'rm_loss' changed batch.rank in place, which it is given to read",
]


class Faulty:
    """Keep scores small, and rank all alike."""

    @hookimpl
    def rm_loss(self, batch, outputs):
        batch.rank.zero_()
        return {"size": outputs.score.square().mean()}
