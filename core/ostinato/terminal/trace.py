"""What ``ostinato check --trace`` shows: every hook call of a micro run, in order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import signature
from itertools import groupby
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ostinato.config.errors import Pause
from ostinato.config.reading import load_config, merged
from ostinato.config.sections import RunConfig
from ostinato.contract.events import Event
from ostinato.contract.plugins import Plugins, activate
from ostinato.engine.session import Session
from ostinato.loop import iterate
from ostinato.terminal.printing import Screen, show

LEAST = 8  # responses of a rollout
FROM_TOY = {  # the models and texts of the trace, whatever the run's own are
    "policy": ("model", "tokenizer", "random"),
    "reward_model": ("model", "tokenizer", "random", "max_tokens"),
    "prompts": ("data", "split", "field", "template", "shares", "max_tokens"),
    "generation": ("stop", "batch"),
    "rl": ("lr", "lr_final"),
}
SIZES: dict[str, Any] = {
    "world": "toy",
    "iterations": 2,
    "reward_model": {
        "updates": 2,
        "epochs": None,
        "batch": 8,
        "accumulate": 1,
        "warmup": 0,
        "lr": 3e-3,
    },
    "prompts": {"preference": 8, "held_out": 4, "evaluation": 4},
    "generation": {"max_new_tokens": 10},
    "rl": {"rollouts": 2, "accumulate": 1, "epochs": 1},
    "evaluation": {"every": 2, "samples": 0},
    "sft": None,
    "backend": {"device": "cpu", "dtype": "fp32", "threads": 1},
}


TITLE = "Every hook call of two iterations on toy models, in order"
MEANING = (
    "×n: n calls alike, one after the other. (8, 10): the shape of a tensor. magnitude: what the "
    "core measured of the call, or its mean over several; 0 is no effect."
)


@dataclass
class Call:
    """One call: of a hook, or of a method of the answered algorithm."""

    iteration: int
    depth: int  # calls that it was made inside of
    hook: str
    plugin: str
    given: str
    answer: str = "(raised an error)"
    magnitudes: list[float] = field(default_factory=list)

    @property
    def look(self) -> tuple[Any, ...]:
        """What calls that are shown as one have in common."""
        return self.iteration, self.depth, self.hook, self.plugin, self.given, self.answer


@dataclass
class Traced(Plugins):
    """Plugins whose calls are written down."""

    calls: list[Call] = field(default_factory=list)
    batches: dict[str, str] = field(default_factory=dict)  # what each kind of batch held, at first
    depth: int = 0
    iteration: int = 0

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        place = arguments.get("ctx") or arguments.get("event")
        self.iteration = getattr(place, "iteration", self.iteration)
        with self._written(name, hook, arguments) as note:
            answer = super().call(name, hook, **arguments)
            note(answer)
        return _Watched(answer, name, self) if hook == "policy_algorithm" else answer

    def acted(self, name: str, hook: str, magnitude: float) -> None:
        super().acted(name, hook, magnitude)
        hooks = (
            {hook, ".advantages"} if hook == "policy_algorithm" else {hook}
        )  # where it was measured
        mine = (c for c in reversed(self.calls) if c.plugin == name and c.hook in hooks)
        if (last := next(mine, None)) is not None:
            last.magnitudes.append(float(magnitude))

    @contextmanager
    def _written(
        self, name: str, hook: str, arguments: Mapping[str, Any]
    ) -> Iterator[Callable[[Any], None]]:
        shown = {k: v for k, v in arguments.items() if k != "ctx"}
        self._open(shown.values())
        given = ", ".join(f"{key} {described(value)}" for key, value in shown.items())
        made = Call(self.iteration, self.depth, hook, name, given)
        self.calls.append(made)
        self.depth += 1
        try:
            yield lambda answer: setattr(made, "answer", described(answer))
        except Pause:
            made.answer = "(waits for people, which ends the trace)"
            raise
        finally:
            self.depth -= 1

    def _open(self, values: Any) -> None:
        """Note what the fields of each kind of batch are."""
        for value in values:
            kind = type(value).__name__
            if is_dataclass(value) and kind not in {"Event", *self.batches}:
                named = [(f.name, getattr(value, f.name)) for f in fields(value)]
                parts = [f"{name} {described(one)}" for name, one in named if one is not None]
                self.batches[kind] = ", ".join(parts)
                self._open(one for _, one in named)


@dataclass
class _Watched:
    """A policy algorithm whose two methods are written down too."""

    algorithm: Any
    name: str
    plugins: Traced

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.algorithm, name)
        if name not in ("advantages", "loss"):
            return found

        def written(*arguments: Any) -> Any:
            given = dict(zip(signature(found).parameters, arguments, strict=True))
            with self.plugins._written(self.name, f".{name}", given) as note:
                note(answer := found(*arguments))
            return answer

        return written


def described(value: Any) -> str:
    """A value by its kind and its shape."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        exact = "" if value.is_floating_point() else f" {str(value.dtype).removeprefix('torch.')}"
        return f"{tuple(value.shape)}{exact}"
    if isinstance(value, Dataset):
        return f"{len(value)} rows"
    if value is None or isinstance(value, bool | str):
        return repr(value)
    if isinstance(value, Real):
        return f"{float(value):.4g}"
    if isinstance(value, Mapping):
        if len(value) > 8:
            return f"{len(value)} {_plural(next(iter(value.values())))}"
        return "{" + ", ".join(f"{k}: {described(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        if not value or len(value) > 3:
            return f"{len(value)} {_plural(value[0])}" if value else "none"
        return "[" + ", ".join(map(described, value)) + "]"
    if hasattr(value, "members"):
        return f"{kind} of {len(value.members)} member{'s' * (len(value.members) != 1)}"
    if isinstance(value, Event):
        return " ".join([value.kind, *filter(None, [value.data.get("stage")])])
    if callable(value) and not isinstance(value, torch.nn.Module | PreTrainedTokenizerBase):
        return "a function"
    return kind


def _plural(one: Any) -> str:
    names = {str: "texts", bool: "truth values", float: "numbers", int: "numbers", list: "lists"}
    return names.get(type(one), "tensors" if isinstance(one, torch.Tensor) else "things")


def micro(config: RunConfig, plugins: Plugins) -> RunConfig:
    """The run on toy models and a few prompts; what its plugins read of the run file is kept."""
    toy, own = load_config("toy").model_dump(mode="json"), config.model_dump(mode="json")
    placed = {key: {name: toy[key][name] for name in names} for key, names in FROM_TOY.items()}
    owner = plugins[plugins.owners["policy_algorithm"]].instance
    each = getattr(owner, "responses_per_prompt", 1)
    size = -(-LEAST // each) * each
    rollout = {"rl": {"rollout_size": size, "minibatch": size}}
    gold = {"gold": toy["gold"] if own["gold"] else None}
    for part in (placed, gold, SIZES, rollout):
        own = merged(own, part)
    return load_config(own)


def show_trace(config: RunConfig, plugins: Plugins, where: str) -> None:
    """Run two iterations in a temporary folder and print their calls, also before an error."""
    console = Screen()
    small = micro(config, plugins)
    active = activate(small.wanted_plugins, where)
    traced = Traced(active.active, active.owners)
    waiting = Screen(stderr=True)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            waiting.status("Tracing two iterations"),
            Session(small, traced, Path(folder) / "run") as session,
        ):
            iterate(session)
    except Pause:
        pass  # its line says so
    finally:
        _print(console, traced)


def _print(console: Console, traced: Traced) -> None:
    console.print(Text(f"\n{TITLE}", style="bold"))
    show(console, Text(MEANING, style="dim"))
    for iteration, calls in groupby(traced.calls, key=lambda call: call.iteration):
        heading = f"Iteration {iteration}" if iteration else "Before the first iteration"
        console.print(Text(f"\n{heading}", style="bold"))
        table = Table.grid(
            Column(no_wrap=True),
            Column(no_wrap=True, style="cyan"),
            Column(ratio=1, overflow="fold"),
            Column(justify="right", no_wrap=True),
            padding=(0, 2),
            expand=True,
        )
        table.add_row("hook", "plugin", "given → answered", "magnitude", style="dim")
        for _, same in groupby(calls, key=lambda call: call.look):
            table.add_row(*_cells([*same]))
        show(console, table)
    held = Table.grid(Column(no_wrap=True), Column(ratio=1, overflow="fold"), padding=(0, 2))
    for kind, parts in traced.batches.items():
        held.add_row(kind, parts)
    if traced.batches:
        console.print(Text("\nWhat they held when they were first given", style="bold"))
        show(console, held)


def _cells(same: list[Call]) -> tuple[str, str, Text, str]:
    """A line of the table: calls that follow each other and look alike are one."""
    one = same[0]
    magnitudes = [m for call in same for m in call.magnitudes]
    times = f" ×{len(same)}" if len(same) > 1 else ""
    return (
        f"{'  ' * one.depth}{one.hook}{times}",
        one.plugin,
        Text(
            " ".join(filter(None, [one.given, "" if one.answer == "None" else f"→ {one.answer}"]))
        ),
        f"{fmean(magnitudes):.3g}" if magnitudes else "",
    )
