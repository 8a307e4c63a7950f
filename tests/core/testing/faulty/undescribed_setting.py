"""Has a setting that nobody can understand."""

from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from ostinato import hookimpl

SAID = [
    "its setting 'by' has no description",
]


class Faulty:
    """Scale the rewards."""

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        by: float = 0.5

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=self.config.by * rewards.score)
