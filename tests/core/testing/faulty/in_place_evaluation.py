"""Changes the policy that it measures."""

import torch

from ostinato import hookimpl

SAID = [
    "hook 'evaluate' changed the weights of ctx.evaluation.policy in place",
]


class Faulty:
    """Measure the policy's size, and make it smaller."""

    @hookimpl
    def evaluate(self, ctx):
        weight = next(ctx.evaluation.policy.lm.parameters())
        with torch.no_grad():
            weight.mul_(0.5)
        return {"size": float(weight.detach().norm())}
