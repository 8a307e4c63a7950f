"""Trains the policy from which it should only start."""

import torch

from ostinato import hookimpl

SAID = [
    "hook 'init_policy' changed the weights of the SFT policy in place, which it is given to read",
]


class Faulty:
    """Start from a smaller SFT policy."""

    @hookimpl
    def init_policy(self, history):
        policy = history.sft.load()
        with torch.no_grad():
            for p in policy.lm.parameters():
                p.mul_(0.9)
        return policy
