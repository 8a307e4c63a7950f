"""How settings and plugins are shown."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from ostinato import hookimpl
from ostinato.contract.discovery import Found, find
from ostinato.contract.hookspecs import KINDS
from ostinato.terminal.catalogue import (
    GROUPS,
    Entry,
    default_of,
    entries,
    show_all,
    show_one,
    type_of,
)


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


def test_every_hook_says_what_a_method_is_for() -> None:
    listed = [hook for _, *hooks in GROUPS.values() for hook in hooks]
    assert sorted(listed) == sorted(KINDS)


def test_a_plugin_of_several_hooks_stands_in_the_first_group_of_the_loop() -> None:
    assert Entry(find("ppo", "test"), Plugin).group == "Reward"
    assert {entry.found.name: entry.group for entry in entries()}.items() >= {
        "gold_labels": "Labels",
        "reward_heads": "Reward model",
        "reward_fusion": "Reward",
        "warp": "Start",
        "ppo": "Policy",
        "win_rate": "Measures",
    }.items()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_each_method_with_its_whole_summary(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = [entry for entry in entries() if entry.found.built_in]
    show_all(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    named = [line.split()[0] for line in lines if re.match(r"  \S", line)]
    assert sorted(named) == sorted(entry.found.name for entry in found)
    told = " ".join(" ".join(lines).split())
    assert all(entry.brief in told for entry in found)
    headings = [line.partition(":")[0] for line in lines if ": " in line and line[0] != " "]
    assert headings == [group for group in GROUPS if group in {entry.group for entry in found}]
    assert f"{len(found)} of ostinato {found[0].found.version}" in lines


def test_other_packages_are_numbered_and_what_is_broken_is_said_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ours, theirs = (
        find("liti", "test"),
        [
            Found("par", None, name, "1.0")  # type: ignore[arg-type]
            for name in ("ostinato-shaping", "a-lab")
        ],
    )
    broken = f"{theirs[0]} cannot be imported from x:P: " + 20 * "a long story, "
    show_all([Entry(ours, ours.load()), Entry(theirs[1], Plugin), Entry(theirs[0], error=broken)])
    told = capsys.readouterr().out
    assert "\n  par   1 Do one thing. And more.\n" in told
    assert "\n  liti    Start between the last initial and the last final" in told
    assert " ".join(broken.split()) in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 80
    assert "\n1: 1 of a-lab 1.0\n2: 1 of ostinato-shaping 1.0\n" in told


def test_a_reader_that_goes_away_is_no_error():
    command = f'"{sys.executable}" -m ostinato plugins | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("Labels")
    assert done.stderr == ""
