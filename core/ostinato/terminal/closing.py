"""What a finished run says: its verdict and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ostinato.config.sections import RunConfig
from ostinato.config.yaml_files import dumped
from ostinato.contract.discovery import discover, hooks_of
from ostinato.contract.plugins import Plugins
from ostinato.report.tables import ITERATION, known, measured, saturation
from ostinato.terminal.printing import Row


def _verdict(rows: Sequence[Row]) -> list[str]:
    """What the table says, in a sentence or two; nothing of what was not measured."""
    first, last = rows[0], rows[-1]
    moved = [
        f"{name} from {measured(first, key, form)} to {measured(last, key, form)}"
        for name, key, form in ITERATION
        if name in ("gold", "gold wins", "gap") and known(first, key) and known(last, key)
    ]
    said = [saturation(rows)]
    if moved and len(rows) > 1:
        listed = ", ".join(moved).replace(" from", " went from", 1)
        said.insert(0, f"From iteration {first['iteration']} to {last['iteration']} {listed}.")
    return list(filter(None, said))


def other_plugins(config: RunConfig, plugins: Plugins) -> str | None:
    """``plugins=[...]``: the run's own, with another built-in owner of `combine_data`.

    Only what comes with Ostinato is looked at: other packages are imported when a run names them.
    """
    owner = plugins.owners["combine_data"]
    for name, claims in discover().items():
        if name == owner or len(claims) > 1 or not claims[0].built_in:
            continue
        if "combine_data" in hooks_of(claims[0].load()):
            kept = [e for e in config.plugins if owner not in (e if isinstance(e, dict) else [e])]
            listed = dumped([name, *kept], flow=True)
            return f"plugins={listed.strip()}"
    return None


def _next_commands(
    source: str, overrides: Sequence[str], seed: int, other: str | None
) -> dict[str, str]:
    """Runs that come next, with what this one overrode, and what each is for."""
    kept = [text for text in overrides if not text.startswith("seed=")]

    def command(settings: Sequence[str], *rest: str) -> str:
        sets = [word for text in settings for word in ("--set", text)]
        return shlex.join(["ostinato", "run", source, *sets, *rest])

    made = {command(kept, "--seed", str(seed + 1)): "another seed, for the spread"}
    if other is not None:
        kept = [text for text in kept if not text.startswith("plugins")]
        meaning = "other methods; ostinato plugins lists them"
        made[command([*kept, other], "--out", "runs/other")] = meaning
    return made


def _next_steps(folder: Path, again: Mapping[str, str]) -> list[RenderableType]:
    kept = {
        "report.html": "curves, settings and sample texts, for a browser",
        "metrics.jsonl": "every number, one JSON object a line",
        "iteration-*/policy": "checkpoints that transformers loads",
    }
    table = Table.grid(padding=(0, 2))
    for name, meaning in kept.items():
        table.add_row(f"  {name}", Text(meaning, style="dim"))
    commands = {
        f"ostinato report {folder}": "this table again; give several runs to compare them",
        **again,
    }
    lines: list[RenderableType] = []
    for command, meaning in commands.items():
        lines += [Text(f"  {command}"), Text(f"      {meaning}", style="dim")]
    heading = Text.assemble(("Results in ", "bold"), (str(folder), "bold"))
    return [heading, table, "", Text("What to do next", style="bold"), *lines]
