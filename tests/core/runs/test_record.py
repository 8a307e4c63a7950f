"""run.yaml: what it says of plugins, and which differences keep a run from going on."""

from __future__ import annotations

from typing import Any

import pytest

from ostinato import load_config
from ostinato.contract.plugins import activate
from ostinato.runs import record as records
from ostinato.runs.record import differences

CONFIG = {"iterations": 1, "plugins": ["/a/my.py:Cap"], "seed": 0}
FILE = {"name": "Cap", "hooks": ["reward_transform"], "settings": {}, "file": "/a/my.py"}
INSTALLED = {**FILE, "distribution": "third", "version": "1.0"}
del INSTALLED["file"]


def record(plugin: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"config": CONFIG, "plugins": [plugin | changes]}


@pytest.mark.parametrize(
    ("before", "now", "file"),
    [
        (record(FILE, sha256="a"), record(FILE, sha256="b"), "/a/my.py"),
        (record(FILE, sha256="a"), record(FILE, sha256="b", file="/b/my.py"), "/b/my.py"),
        (record(FILE, sha256="a"), record(INSTALLED), "/a/my.py"),
        (record(INSTALLED), record(FILE, sha256="a"), "/a/my.py"),
    ],
)
def test_another_file_is_named(before: dict[str, Any], now: dict[str, Any], file: str) -> None:
    assert differences(before, now) == [f"the file of plugin 'Cap', {file}, has changed"]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (record(FILE, sha256="a"), record(FILE, sha256="a", file="/b/my.py")),
        (record(INSTALLED), record(INSTALLED, version="1.1")),
        (
            record(FILE, sha256="a", hooks=["observe"]),
            record(FILE, sha256="b", hooks=["observe"]),
        ),
    ],
)
def test_what_makes_no_difference(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Where the file lies, another version, and a plugin that only watches."""
    assert differences(before, now) == []


def test_a_record_is_made_where_the_installation_cannot_be_read(monkeypatch):
    config, active = load_config("toy"), activate([], "run.yaml")
    monkeypatch.setattr("ostinato.config.worlds.entry_points", lambda group: [])
    assert records.record(config, active)["config"]["prompts"]["data"] == "{world}/prompts.jsonl"
