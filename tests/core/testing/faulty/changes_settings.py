"""Writes into its own settings."""

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from ostinato import hookimpl

SAID = [
    "changes its own setting 'by' during a run, from 0.5 to",
    "what it remembers between calls belongs into its state_dict",
]


class Faulty:
    """Scale the rewards, each time by less."""

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        by: float = Field(0.5, description="factor of the first rollout")

    @hookimpl
    def reward_transform(self, rewards):
        self.config.by *= 0.9
        return replace(rewards, score=self.config.by * rewards.score)
