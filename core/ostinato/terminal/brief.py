"""A run in brief: who owns which hook, what it stands on, what its measures mean."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ostinato.config.sections import ModelSection, RunConfig
from ostinato.contract.hookspecs import KINDS
from ostinato.contract.plugins import Plugins
from ostinato.machine.backend import caution, chosen
from ostinato.report.tables import LEGEND, MMD
from ostinato.terminal.printing import STYLES, Screen, show


def hook_owners(config: RunConfig, plugins: Plugins) -> list[tuple[str, str, bool]]:
    """(hook, plugins in order, whether the default was taken) of every hook that is used."""
    listed = {name for name, _ in config.wanted_plugins}
    found = []
    for hook in KINDS:
        names = plugins.implementing(hook)
        if names:
            found.append((hook, ", ".join(names), not listed & set(names)))
    return found


def _weights(section: ModelSection) -> str:
    return "random weights" if section.random else str(section.model)


def sources(config: RunConfig) -> list[tuple[str, str]]:
    """Where models and prompts come from."""
    gold = config.gold and (config.gold.function or _weights(config.gold))
    found = {
        "policy": _weights(config.policy),
        "reward model": _weights(config.reward_model),
        "gold": gold or "none: no gold, gap, spearman and MMD",
        "prompts": str(config.prompts.data),
    }
    return [(key, _of_world(value, config.world)) for key, value in found.items()]


def _of_world(source: str, world: str | None) -> str:
    path = Path(source)
    inside = world is not None and path.is_absolute() and path.parent.name == world
    return f"{path.name} of world '{world}'" if inside else source


def brief(config: RunConfig, plugins: Plugins, facts: Iterable[tuple[str, str]]) -> Table:
    """The run in brief: who owns which hook, then ``facts``."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for hook, names, default in hook_owners(config, plugins):
        owner = Text(names, style="dim" if default else "bold")
        table.add_row(hook, owner + Text("  (default)", style="dim") if default else owner)
    table.add_row("", "")
    for key, value in facts:
        table.add_row(key, Text(value))
    return table


def legend() -> Table:
    """What the measures mean that the terminal shows."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for name, meaning in LEGEND.items():
        if name != MMD[0]:
            table.add_row(Text(name, style=STYLES.get(name, "bold")), meaning)
    return table


def show_check(source: str, config: RunConfig, plugins: Plugins) -> None:
    """What ``ostinato check`` says of a valid run."""
    console = Screen()
    cpu, dtype = chosen(config.backend)
    device = "cpu" if cpu else "gpu"
    facts = [
        *sources(config),
        ("runs on", f"{device}, {dtype}{caution(device, dtype)}"),
        ("iterations", f"{config.iterations} of {config.rl.rollouts} rollouts"),
    ]
    show(console, brief(config, plugins, facts), "")
    console.print(Text(f"{source} is valid; no model was loaded.", style="bold"), soft_wrap=True)
