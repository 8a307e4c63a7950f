"""Takes a misspelt setting for none."""

from dataclasses import replace

from pydantic import BaseModel, Field

from ostinato import hookimpl

SAID = [
    "its Config lets unknown keys pass; give it ConfigDict(extra='forbid')",
]


class Faulty:
    """Scale the rewards."""

    class Config(BaseModel):
        """Settings."""

        by: float = Field(0.5, description="factor")

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=self.config.by * rewards.score)
