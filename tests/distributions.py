"""Plugins for tests: small installed packages, and classes that are made where they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from ostinato import hookimpl
from ostinato.contract import discovery


def write_distribution(
    site: Path,
    name: str,
    source: str,
    plugins: Mapping[str, str],
    group: str = "ostinato",
    version: str = "1.0",
) -> None:
    """Install ``name`` into the folder ``site``: one module of that name, with entry points.

    ``plugins`` maps the name of an entry point to what it names inside the module ("" for the
    module itself).
    """
    (site / f"{name}.py").write_text(dedent(source), encoding="utf-8")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {name}{':' if value else ''}{value}" for key, value in plugins.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))


def offered(monkeypatch: pytest.MonkeyPatch, made: type, name: str = "made") -> None:
    """Let run files list the class ``made`` as a plugin, as if it were installed."""
    found = discovery.discover() | {
        name: [discovery.Found(name, discovery.Given(made), "a-test", "1")]
    }
    monkeypatch.setattr(discovery, "discover", lambda: found)


def plugin(needs: Mapping[str, Any] | None = None, **hooks: Callable[..., Any]) -> type:
    """A plugin class with these hook functions, ``(self, ...)``."""
    made = {hook: hookimpl(function) for hook, function in hooks.items()}
    return type("Made", (), {"__doc__": "Made in a test.", "needs": dict(needs or {}), **made})


STATEFUL = """
    from dataclasses import replace

    from ostinato import hookimpl


    class Drift:
        "A KL controller and a reward offset that remember all that they have seen."

        def __init__(self):
            self.seen = {"coefficient": 0.03, "offset": 0.0, "batches": 0}

        @hookimpl
        def kl_coefficient(self, kl):
            if kl is not None:
                self.seen["coefficient"] *= 1.1 if kl > 0.5 else 0.9
            return self.seen["coefficient"]

        @hookimpl
        def reward_transform(self, rewards, ctx):
            self.seen["batches"] += 1
            self.seen["offset"] = 0.9 * self.seen["offset"] + 0.1 * float(rewards.score.mean())
            ctx.log(**{"drift/offset": self.seen["offset"]})
            return replace(rewards, score=rewards.score - self.seen["offset"])

        @hookimpl
        def preference_loss(self, batch, outputs):
            self.seen["batches"] += 1  # also inside a cached vote
            score = outputs.score[:, batch.pairs]
            return -(score[..., 0] - score[..., 1]).sigmoid().log()

        @hookimpl
        def evaluate(self, ctx):
            ctx.log(**{"drift/batches": self.seen["batches"]})
            return {"coefficient": self.seen["coefficient"]}

        def state_dict(self):
            return self.seen

        def load_state_dict(self, state):
            self.seen = dict(state)
    """
