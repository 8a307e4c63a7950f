"""Has a state that a fresh instance cannot take."""

from dataclasses import replace

from ostinato import hookimpl

SAID = [
    "raises KeyError: 'batches'",
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
        self.seen = state["batches"]
