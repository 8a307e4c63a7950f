"""A run in brief: who owns which hook, what it stands on, what its measures mean."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from ostinato.config.sections import ModelSection, RunConfig, plugin_name
from ostinato.contract.hookspecs import KINDS
from ostinato.contract.plugins import UNASKED, Plugins
from ostinato.machine.backend import caution, chosen
from ostinato.report.tables import LEGEND, MMD
from ostinato.runs.record import since
from ostinato.terminal.printing import STYLES, Screen, show

NO_MODEL = "none: the reward needs none, so no pairs are labelled"


def _source(section: ModelSection, world: str | None) -> str:
    return "random weights" if section.random else _of_world(str(section.model), world)


def _of_world(source: str, world: str | None) -> str:
    path = Path(source)
    inside = world is not None and path.is_absolute() and path.parent.name == world
    return f"{path.name} of world '{world}'" if inside else source


def brief(config: RunConfig, plugins: Plugins, facts: Iterable[tuple[str, str]]) -> Table:
    """The run in brief: who owns which hook, where models and prompts come from, ``facts``."""
    table = Table.grid(Column(style="dim", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    listed = {plugin_name(name) for name, _ in config.wanted_plugins}
    learns = plugins.learn_rewards
    for hook in (h for h in KINDS if learns or h not in UNASKED):
        names = plugins.implementing(hook)
        if listed & set(names):
            table.add_row(hook, Text(", ".join(names), style="bold"))
        elif names:
            table.add_row(hook, Text(f"{', '.join(names)}  (default)", style="dim"))
    table.add_row("", "")
    gold = config.gold and (config.gold.function or _source(config.gold, config.world))
    for key, value in (
        ("policy", _source(config.policy, config.world)),
        ("reward model", _source(config.reward_model, config.world) if learns else NO_MODEL),
        ("gold", gold or "none: no gold, gap, spearman and MMD"),
        ("prompts", _of_world(str(config.prompts.data), config.world)),
        *facts,
        ("iterations", f"{config.iterations} of {config.rl.rollouts} rollouts"),
    ):
        table.add_row(key, Text(value))
    changes, versions = since(config, plugins)
    if changes:
        table.add_row("changed", Text("; ".join(changes)))
    if versions:
        said = f"that run was made with {', '.join(versions)}; numbers may differ"
        table.add_row("warning", Text(said, style="yellow"))
    return table


def legend() -> Table:
    """What the measures mean that the terminal shows."""
    table = Table.grid(Column(no_wrap=True), Column(style="dim"), padding=(0, 2))
    for name, meaning in LEGEND.items():
        if name != MMD[0]:
            table.add_row(Text(name, style=STYLES.get(name, "bold")), meaning)
    return table


def show_check(source: str, config: RunConfig, plugins: Plugins) -> None:
    """What ``ostinato check`` says of a valid run."""
    console = Screen()
    cpu, dtype = chosen(config.backend)
    device = "cpu" if cpu else "gpu"
    facts = [("runs on", f"{device}, {dtype}{caution(device, dtype)}")]
    show(console, brief(config, plugins, facts), "")
    console.print(Text(f"{source} is valid; no model was loaded.", style="bold"), soft_wrap=True)
