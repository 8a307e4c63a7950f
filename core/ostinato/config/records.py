"""run.yaml, as a run writes it: what is read of it to show that run, or to replay it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ostinato.config.errors import UserError

FORMAT = 2  # of a run folder and all in it; another one is refused


class RecordedPlugin(BaseModel, strict=True):
    """An active plugin: of a distribution, or of a file."""

    name: str
    hooks: list[str]
    settings: dict[str, Any]
    distribution: str = ""
    version: str = ""
    file: str = ""
    sha256: str = ""


class RecordedConfig(BaseModel, strict=True):
    """What is read of the config before it is checked as a run file is."""

    seed: int
    iterations: int
    plugins: list[str | dict[str, Any]] = []


class Record(BaseModel, strict=True):
    """What a report reads of run.yaml."""

    config: RecordedConfig
    plugins: list[RecordedPlugin]


class Replayed(Record, strict=True):
    """What a replay reads beside it."""

    versions: dict[str, str]


def check_record(facts: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a run.yaml is damaged, or of another edition."""
    if facts.get("format") != FORMAT:
        raise UserError(f"{where}: records a run of another edition of Ostinato")
    try:
        Replayed.model_validate(facts)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"{where}: is damaged at '{key}', so that run cannot be replayed; restore it"
        ) from None
