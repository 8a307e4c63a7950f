"""How settings and plugins are shown."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from ostinato import hookimpl
from ostinato.contract.discovery import find
from ostinato.terminal.catalogue import Entry, default_of, entries, show_all, show_one, type_of


class Settings(BaseModel):
    """Every kind of setting."""

    share: float = Field(0.5, gt=0, le=1, description="a share")
    mode: Literal["a", "b"] = Field("a", description="a choice")
    limit: int | None = Field(None, ge=1, description="a limit")
    on: bool = Field(True, description="a switch")
    name: str = Field(description="a name")
    names: list[str] = Field(default_factory=lambda: ["x"], description="names")


class Plugin:
    """Do one thing. And more."""

    paper = "Nobody 2026"
    Config = Settings

    @hookimpl
    def observe(self) -> None:
        """Listen
        closely.
        """

    @hookimpl
    def reward_transform(self) -> None:
        """Change."""


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("share", "float, > 0, <= 1", "0.5"),
        ("mode", "Literal['a', 'b']", "a"),
        ("limit", "int | None, >= 1", "null"),
        ("on", "bool", "true"),
        ("name", "str", "(required)"),
        ("names", "list[str]", '["x"]'),
    ],
)
def test_a_setting_in_words(name: str, kind: str, default: str) -> None:
    field = Settings.model_fields[name]
    assert (type_of(field), default_of(field)) == (kind, default)


def test_hooks_stand_in_the_contracts_order() -> None:
    assert Entry(find("ppo", "test"), Plugin).hooks == ["reward_transform", "observe"]


def test_all_built_ins_are_whole() -> None:
    for entry in entries():
        if entry.found.distribution == "ostinato":
            assert entry.hooks
            assert entry.summary.endswith(".")
            assert entry.plugin is not None
            assert entry.plugin.paper


def test_pages(capsys: pytest.CaptureFixture[str]) -> None:
    entry = Entry(find("ppo", "test"), Plugin)
    show_one(entry)
    page = capsys.readouterr().out
    for text in ("Do one thing. And more.", "Paper: Nobody 2026", "Listen closely.", "a switch"):
        assert text in page
    show_all([entry, Entry(find("liti", "test"), error="it is broken")])
    table = capsys.readouterr().out
    assert "reward_transform" in table
    assert "it is broken" in table
    assert f"ostinato {entry.found.version}" in table
