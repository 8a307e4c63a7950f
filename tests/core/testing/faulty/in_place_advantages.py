"""An algorithm that changes the rollout."""

from ostinato import PolicyAlgorithm, hookimpl

SAID = [
    "its advantages(rollout, ctx) changes rollout.rewards, which it is given to read, in place",
    "its 'advantages' changed rollout.rewards in place, which it is given to read",
]


class Faulty(PolicyAlgorithm):
    """REINFORCE whose advantages are the rewards, cut off in the rollout itself."""

    @hookimpl
    def policy_algorithm(self):
        return self

    def advantages(self, rollout, ctx):
        rollout.rewards.clamp_(-1.0, 1.0)
        return rollout.rewards, rollout.rewards

    def loss(self, batch, outputs, ctx):
        each = batch.advantages * outputs.logprobs * batch.mask
        return {"policy": -each.sum() / batch.mask.sum()}
