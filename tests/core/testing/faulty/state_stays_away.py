"""Has a state_dict that does not come back."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "its state_dict is another one after load_state_dict in a fresh instance",
    "what it remembers between calls belongs into its state_dict",
]


class Faulty:
    """Scale the rewards by how many batches there were."""

    def __init__(self):
        self.seen = 0

    @hookimpl
    def reward_transform(self, rewards):
        self.seen += 1
        return replace(rewards, score=rewards.score / self.seen)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.before = state["seen"]
