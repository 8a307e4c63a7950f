"""Needs what nobody has."""

from ostinato import hookimpl

SAID = [
    "needs 'view', which is unknown; did you mean 'views'?",
]


class Faulty:
    """Keep two dropout views together."""

    needs = {"view": 2}

    @hookimpl
    def rm_loss(self, outputs):
        return {"apart": outputs.hidden.var(0, correction=0).mean()}
