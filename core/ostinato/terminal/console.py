"""A run as a person watches it: the brief, progress, evaluations, tables, and what to do next."""

from __future__ import annotations

import json
import shlex
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from ostinato.config.errors import Pause
from ostinato.config.sections import RunConfig, plugin_name
from ostinato.contract.events import Event
from ostinato.report.tables import (
    EVALUATION,
    ITERATION,
    known,
    measured,
    number,
    readable,
    saturation,
)
from ostinato.terminal.brief import brief, legend
from ostinato.terminal.printing import STYLES, Row, Screen, numbers, show

STAGES = {
    "sft": "Training the SFT policy",
    "preferences": "Sampling and labelling pairs",
    "data": "Preparing the training pairs",
    "reward_model": "Training the reward model",
    "policy": "Optimising the policy",
}
UNITS = {"reward_model": "updates", "policy": "rollouts"}
SAMPLE_TEXTS = 2
WIDEST = 300  # characters of a sample text
PLAIN_SECONDS = (5.0, 60.0)  # without a terminal: the least and the most between progress lines


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def iteration_table(rows: Sequence[Row]) -> Table:
    """One line an iteration, at its last evaluation."""
    cells = [
        [str(row["iteration"]), *(measured(row, key, form) for _, key, form in ITERATION)]
        for row in rows
    ]
    return numbers(["iter.", *(heading for heading, _, _ in ITERATION)], cells)


class RunConsole(AbstractContextManager["RunConsole"]):
    """Watches one run; a context manager, so that bars end before an error is told.

    On a terminal there are progress bars; elsewhere plain lines without control codes.
    """

    def __init__(
        self, source: str, console: Console | None = None, overrides: Sequence[str] = ()
    ) -> None:
        self.source = source
        self.overrides = overrides
        self.console = console or Screen()
        self.live = self.console.is_interactive
        self.started = time.monotonic()
        self.iterations = 0
        self.seed = 0
        self.listed: list[str] = []
        self.summaries: list[Row] = []
        self.evaluations: list[Row] = []
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self.spoke = self.started
        self.iteration = 0
        self.steps = 0

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._end_bars()
        if isinstance(error, Pause):
            self._rule(f"Paused after {duration(time.monotonic() - self.started)}")

    def __call__(self, event: Event) -> None:
        getattr(self, f"_{event.kind}")(event)

    def _line(self, text: str | Text, style: str = "") -> None:
        body = Text(text, style=style) if isinstance(text, str) else text
        self.console.print(Text("  ") + body, soft_wrap=True)
        self.spoke = time.monotonic()

    def _rule(self, title: str) -> None:
        self.console.print()
        if self.live:
            self.console.print(Rule(Text(title, style="bold"), align="left", style="dim"))
        else:
            self.console.print(Text(f"== {title}"), soft_wrap=True)

    def _run_started(self, event: Event) -> None:
        config: RunConfig = event.data["config"]
        self.iterations, self.seed = config.iterations, config.seed
        self.listed = [plugin_name(name) for name, _ in config.wanted_plugins]
        self._rule(f"Ostinato {version('ostinato')}: {self.source}")
        where = "goes on with the run there" if event.data["resumed"] else "a new run"
        facts = [
            ("runs on", str(event.data["backend"])),
            ("results in", f"{event.data['directory']} ({where})"),
            ("seed", str(config.seed)),
        ]
        show(self.console, brief(config, event.data["plugins"], facts), "", legend())

    def _enter_iteration(self, iteration: int) -> None:
        if iteration != self.iteration:
            self.iteration = iteration
            self.evaluations = []
            self._rule(f"Iteration {iteration} of {self.iterations}")

    def _stage_started(self, event: Event) -> None:
        self._enter_iteration(event.iteration)
        stage = event.data["stage"]
        if self.live:
            self._show_bar(STAGES.get(stage, stage), event.data["total"] or None, 0)
        elif not event.data.get("member"):
            self._line(f"{STAGES.get(stage, stage)} ...")

    def _stage_advanced(self, event: Event) -> None:
        row, stage = event.data["row"], event.data["stage"]
        what = _described(stage, row)
        self.steps += 1
        if self.live:
            self._show_bar(what, row["total"], row["step"])
        else:
            self._plain_progress(stage, what, row)

    def _show_bar(self, what: str, total: int | None, step: int) -> None:
        if [task.description for task in self.bars.tasks] != [what]:
            self._drop_bar()
            # a resumed stage does not count the steps of its first process into its rate
            self.bars.add_task(what, total=total, completed=max(0, step - 1))
            self.bars.start()
        self.bars.update(self.bars.task_ids[0], completed=step, total=total)

    def _drop_bar(self) -> None:
        for task in self.bars.task_ids:
            self.bars.remove_task(task)

    def _end_bars(self) -> None:
        self._drop_bar()
        if self.live:  # else rich prints an empty line
            self.bars.stop()

    def _plain_progress(self, stage: str, what: str, row: Row) -> None:
        """A line each quarter of the way, at most every few seconds and at least every minute."""
        step, total = row["step"], row["total"]
        quiet = time.monotonic() - self.spoke
        new_quarter = step * 4 // total > (step - 1) * 4 // total and step < total
        if quiet > PLAIN_SECONDS[0 if new_quarter else 1]:
            self._line(f"{what}: {step} of {total} {UNITS[stage]}")

    def _stage_finished(self, event: Event) -> None:
        self._enter_iteration(event.iteration)
        self._drop_bar()
        stage, seconds = event.data["stage"], event.data["seconds"]
        if stage in STAGES and event.data["reused"]:
            self._line(f"{STAGES[stage]}: kept from before", "dim")
        elif stage in STAGES and seconds >= 0.05:
            unit = UNITS.get(stage, "").removesuffix("s" if self.steps == 1 else "")
            steps = f"{self.steps} {unit} in " if unit else ""
            self._line(f"{STAGES[stage]}: {steps}{duration(seconds)}", "dim")
        self.steps = 0

    def _kept(self, event: Event) -> None:
        self._told(event, "keeps this policy")

    def _stopped(self, event: Event) -> None:
        self._told(event, "ends the optimisation")

    def _told(self, event: Event, what: str) -> None:
        row = event.data["row"]
        run = "" if row["name"] == "policy" else f" of {row['name']}"
        self._line(f"rollout {row['step']}{run}: plugin '{row['plugin']}' {what}", "dim")

    def _evaluated(self, event: Event) -> None:
        row = event.data["row"]
        if not self.evaluations:
            self._line("".join(["rollout", *(_wide(h, h) for h, _, _ in EVALUATION)]), "bold")
        self.evaluations.append({"step": event.step, **row})
        line = Text(f"{event.step:>7}")
        for heading, key, form in EVALUATION:
            line.append(_wide(number(row.get(key), form), heading), STYLES.get(heading, ""))
        self._line(line)

    def _iteration_finished(self, event: Event) -> None:
        self._drop_bar()
        self.summaries.append(event.data["row"])
        self._samples()
        if event.iteration < self.iterations:
            show(self.console, iteration_table(self.summaries))

    def _samples(self) -> None:
        """The same prompts at the iteration's first and last evaluation."""
        if len(self.evaluations) < 2 or self.evaluations[0]["step"] > 0:
            return  # the first one was made before the run was cut short
        before, after = (self.evaluations[i].get("samples", []) for i in (0, -1))
        columns = Column(no_wrap=True, style="dim"), Column(overflow="fold")
        table = Table.grid(*columns, padding=(0, 2))
        for old, new in list(zip(before, after, strict=False))[:SAMPLE_TEXTS]:
            table.add_row("", "")
            table.add_row("prompt", Text(readable(old["prompt"], WIDEST), style="bold"))
            table.add_row("before", _sample(old))
            table.add_row("after", _sample(new))
        show(self.console, table)

    def _run_finished(self, event: Event) -> None:
        self._end_bars()
        self._rule(f"Finished in {duration(time.monotonic() - self.started)}")
        rows, folder = event.data["rows"], event.data["directory"]
        show(self.console, iteration_table(rows), *_verdict(rows), "")
        show(self.console, *_acted(folder, self.listed), "")
        show(self.console, *_next_steps(folder, self.source, self.overrides, self.seed))


def _wide(text: str, heading: str) -> str:
    """A cell of the lines of evaluations."""
    return f" {text:>{max(7, len(heading))}}"


def _described(stage: str, row: Row) -> str:
    """The stage in words, with the model or run that a plugin trains on its own."""
    what = STAGES[stage]
    name = row.get("purpose" if stage == "reward_model" else "name")
    if name not in {"reward model", "policy", None}:
        what += f" ({name})"
    return what + (f", member {row['member'] + 1}" if row.get("member") else "")


def _sample(sample: Row) -> Text:
    text = Text()
    for key in ("gold", "proxy"):
        text.append(f"{key} {number(sample.get(key), '+.2f')}  ", style=STYLES[key])
    return text.append(readable(sample["response"], WIDEST) or "(empty)")


def _verdict(rows: Sequence[Row]) -> list[str]:
    """What the table says, in a sentence or two; nothing of what was not measured."""
    first, last = rows[0], rows[-1]
    moved = [
        f"{name} from {measured(first, key, form)} to {measured(last, key, form)}"
        for name, key, form in ITERATION
        if name in ("gold", "gold wins", "gap") and known(first, key) and known(last, key)
    ]
    said = []
    if moved and len(rows) > 1:
        listed = ", ".join(moved).replace(" from", " went from", 1)
        said.append(f"From iteration {first['iteration']} to {last['iteration']} {listed}.")
    return [*said, saturation(rows)] if saturation(rows) else said


def _acted(folder: Path, listed: Sequence[str]) -> list[RenderableType]:
    """How much each listed plugin did in each of its hooks, in the mean of the last iteration."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "actions" in row]
    seen: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["iteration"] == rows[-1]["iteration"]:
            for key, magnitude in row["actions"].items():
                seen[key].append(magnitude)
    table = Table.grid(padding=(0, 2))
    for name in listed:
        own = {key.partition(".")[2]: x for key, x in seen.items() if key.startswith(f"{name}.")}
        said = ", ".join(f"{hook} {sum(x) / len(x):.3g}" for hook, x in own.items())
        table.add_row(f"  {name}", Text(said or "–", style="dim"))
    heading = "What each method did (magnitudes, mean of the last iteration)"
    return [Text(heading, style="bold"), table] if listed else []


def _next_steps(
    folder: Path, source: str, overrides: Sequence[str], seed: int
) -> list[RenderableType]:
    """What the run left, and commands that come next, with what this one overrode."""
    left = Table.grid(padding=(0, 2))
    for name, meaning in (
        ("report.html", "curves, settings and sample texts, for a browser"),
        ("metrics.jsonl", "every number, one JSON object a line"),
        ("iteration-*/policy", "checkpoints that transformers loads"),
    ):
        left.add_row(f"  {name}", Text(meaning, style="dim"))
    sets = [part for text in overrides if not text.startswith("seed=") for part in ("--set", text)]
    again = shlex.join(["ostinato", "run", source, *sets, "--seed", str(seed + 1)])
    lines: list[RenderableType] = []
    for command, meaning in (
        (f"ostinato report {folder}", "this table again; give several runs to compare them"),
        (again, "another seed, for the spread"),
        ("ostinato plugins", "other methods, for --set 'plugins=[...]'"),
    ):
        lines += [Text(f"  {command}"), Text(f"      {meaning}", style="dim")]
    heading = Text(f"Results in {folder}", style="bold")
    return [heading, left, "", Text("What to do next", style="bold"), *lines]
