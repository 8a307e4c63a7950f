"""``conformance``: all that a run takes for granted of a plugin, tried in the micro world."""

from __future__ import annotations

import inspect
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from ostinato.config.errors import Pause, UserError
from ostinato.config.reading import load_config, merged
from ostinato.contract.activation import activate_one
from ostinato.contract.discovery import default_owners, hooks_of, summary_of
from ostinato.contract.hookspecs import KINDS
from ostinato.engine.session import Watcher, check
from ostinato.loop import Run
from ostinato.testing import micro
from ostinato.testing.bystanders import Chooses, Draws, Looks
from ostinato.testing.models import WORLD
from ostinato.testing.resuming import cut_and_resumed, difference
from ostinato.testing.watching import (
    Watch,
    depends_on_company,
    same,
    settings_of,
    shared_state,
)

UNUSUAL = 8_675_309  # a seed that no plugin happens to choose
LONGEST = 100  # characters of the first line of a docstring
# Plugins that together have each hook, in an order that works. What cannot stand beside another is
# left out, a group of two as a whole.
OTHERS: tuple[Mapping[str | type[Any], Mapping[str, Any]], ...] = (
    {"concat": {}},
    {"strength": {"models": 2}, "flip": {"lowest": 0.25}},
    {"reward_heads": {"heads": 2}},
    {"centre": {}},
    {"metarm": {"responses": 2}},
    {"worst_case": {}},
    {"liti": {}},
    {"ema_anchor": {}},
    {"sharpe": {}},
    {"rloo": {}},
    {"adaptive_kl": {}},
    {"agreement": {}},
    {"ptx": {"data": WORLD["prompts"]["data"], "field": "prompt", "batch": 4}},
    {Draws: {}},
    {Chooses: {}},
    {Looks: {}},
)


def conformance(
    plugin: type[Any],
    settings: Mapping[str, Any] | None = None,
    with_: Sequence[micro.Listed] = (),
    *,
    run: Mapping[str, Any] | None = None,
    on_pause: Callable[[Path], None] | None = None,
) -> None:
    """Raise one AssertionError that lists every fault of a plugin, a sentence each.

    ``settings`` are the plugin's, ``with_`` what a run of it lists beside it, in order: before it,
    unless the plugin stands there too. ``run`` are further sections of the run file. All should be
    as cheap as may be. ``on_pause`` does what people do in the folder of a run that waits for them.
    Two processes are not tried.
    """
    with micro.listed([plugin]), _generators_kept():
        trial = Trial(plugin, dict(settings or {}), list(with_), dict(run or {}), on_pause)
        try:
            found = list(dict.fromkeys(trial.faults()))
        finally:
            shutil.rmtree(trial.folder.parent, ignore_errors=True)
    if found:
        said = [f"plugin '{trial.name}': {fault}" for fault in found]
        raise AssertionError("\n".join([f"{plugin.__name__} does not conform:", *said]))


@dataclass
class Trial:
    """One plugin on trial; the micro world is run as often as its faults need."""

    plugin: type[Any]
    settings: dict[str, Any]
    beside: list[micro.Listed]
    sections: dict[str, Any]
    on_pause: Callable[[Path], None] | None
    folder: Path = field(default_factory=micro.scratch)
    runs: int = 0

    @cached_property
    def name(self) -> str:
        return micro.name_of(self.plugin)

    def _listed(self) -> list[micro.Listed]:
        """The plugins of a run: the one on trial stands last, unless it has a place."""
        own: micro.Listed = {self.name: self.settings}
        mine = [self.name in map(micro.name_of, _names(entry)) for entry in self.beside]
        if not any(mine):
            return [*self.beside, own]
        return [own if is_mine else e for e, is_mine in zip(self.beside, mine, strict=True)]

    def faults(self) -> Iterator[str]:
        """Every fault, without the plugin's name. One that cannot run is asked no more.

        Only what has no fault of its own is tried in company.
        """
        try:
            active = activate_one(self.name, self.settings, "conformance")
        except UserError as error:
            yield from map(self._unnamed, str(error).splitlines())
            return
        if active.needs.get("members", 1) > 1:
            members = {"reward_model": {"members": active.needs["members"]}}
            self.sections = merged(members, self.sections)
        yield from self._described()
        if self._half_a_state():
            return
        shared = shared_state(self.plugin)
        watch = Watch(self.name)
        whole, why = self._tried(watch)
        if whole is None:
            yield from [*watch.faults, why]
            return
        alone = [*watch.faults, *self._idle(whole.metrics), *self._kept(watch, shared)]
        alone += self._repeated(whole, watch)
        yield from alone or self._in_company()

    # What it says of itself

    def _described(self) -> Iterator[str]:
        summary = summary_of(self.plugin)
        if "__doc__" not in vars(self.plugin) or not summary:
            yield "its class has no docstring; the first line is what `ostinato plugins` shows"
        elif len(summary) > LONGEST or not summary.endswith("."):
            yield f"the first line of its docstring is no sentence of at most {LONGEST} characters"
        config = getattr(self.plugin, "Config", None)
        for setting in _undescribed(config) if config is not None else ():
            yield f"its setting '{setting}' has no description"
        if self._half_a_state():
            yield "it has only one of state_dict and load_state_dict; a resumed run needs both"
        strangers = {"no_such_setting": 1}
        try:
            activate_one(self.name, {**self.settings, **strangers}, "conformance")
        except UserError:
            pass
        else:
            yield f"it takes an unknown setting {strangers}; give Config extra='forbid'"
        for name in ("provides", "consumes"):
            if isinstance(getattr(self.plugin, name, ()), str):
                yield f"its `{name}` is a text, expected a list of columns"

    def _half_a_state(self) -> bool:
        return hasattr(self.plugin, "state_dict") != hasattr(self.plugin, "load_state_dict")

    # Runs

    def run(
        self, watch: Sequence[Watcher] = (), out: Path | None = None, seed: int = 0, **more: Any
    ) -> Run:
        """Run, or resume, the plugin; the global generators start from ``seed``."""
        self.runs += 1
        start = UNUSUAL + seed
        random.seed(start)
        np.random.seed(start)
        torch.manual_seed(start)
        folder = self.folder / str(self.runs) if out is None else out
        listed = more.pop("plugins", self._listed())
        settings = merged(self.sections, more)
        for _ in range(1 + WORLD["iterations"]):
            try:
                return micro.run(listed, folder, watch=watch, **settings)
            except Pause:
                if self.on_pause is None:
                    raise
                self.on_pause(folder)
        raise UserError("the run pauses again and again, though people have done their part")

    def _tried(self, *watch: Watcher, **more: Any) -> tuple[Run | None, str]:
        """The run, or why there is none."""
        try:
            return self.run(watch, **more), ""
        except Exception as error:  # whatever a plugin raises
            return None, self._why(error)

    def _why(self, error: BaseException) -> str:
        """What ended a run."""
        if isinstance(error, UserError):
            return f"its run ends with: {self._unnamed(str(error))}"
        if isinstance(error, Pause):
            return "its run waits for people; give conformance on_pause"
        where = next((n for n in getattr(error, "__notes__", []) if n.startswith("in ")), "")
        place = where.partition(", ")[2] or "its run"
        first = next(iter(str(error).splitlines()), "")
        return f"{place} raises {type(error).__name__}: {first}"

    def _unnamed(self, said: str) -> str:
        """A sentence without where it was found and whose it is."""
        return re.sub(rf"^(run: |conformance: )?plugin '{self.name}'( of \S+ \S+)?:? ", "", said)

    # What its runs show

    def _idle(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Proof of action: in each hook a magnitude above 0 somewhere.

        The default owner of a hook answers what is there already, and is told so by 0. A link of a
        chain may pass on what it is given, and learn from it what another hook acts on.
        """
        most: dict[str, float] = {}
        for row in rows:
            for key, magnitude in row.get("actions", {}).items():
                most[key] = max(most.get(key, 0.0), abs(magnitude))
        defaults = default_owners()
        acts = any(magnitude for key, magnitude in most.items() if key.startswith(f"{self.name}."))
        for hook in hooks_of(self.plugin):
            key = f"{self.name}.{hook}"
            if KINDS[hook] == "all" or defaults.get(hook) == self.name:
                continue
            if key not in most:
                yield f"hook '{hook}' left no action in the log: nothing asks it"
            elif most[key] == 0 and not (acts and KINDS[hook] == "chain"):
                yield f"hook '{hook}' does nothing: its action is 0 in every row"

    def _kept(self, watch: Watch, shared: Mapping[str, Any]) -> Iterator[str]:
        """What a run leaves: settings and shared variables untouched, a state that comes back."""
        now = settings_of(watch.instance)
        for key in [k for k in now if now[k] != watch.settings.get(k)]:
            was = watch.settings.get(key)
            yield f"changes its own setting '{key}' during a run, from {was!r} to {now[key]!r}"
        after = shared_state(self.plugin)
        for name in [n for n in after if n not in shared or after[n] != shared[n]]:
            yield (
                f"changes its {name} during a run; what it remembers belongs to the instance and "
                "its state_dict"
            )
        for column in set(getattr(watch.instance, "provides", ())) - watch.columns:
            yield f"declares column '{column}' in `provides`, which it never adds"
        for what, (reward, samples) in watch.rewards.items():
            try:
                impure = depends_on_company(reward, samples)
            except Exception as error:  # whatever a plugin raises
                yield f"the reward of {what} cannot score one response alone: {self._why(error)}"
            else:
                if impure:
                    yield f"the reward of {what} gives a response another score in another batch"
        if hasattr(watch.instance, "state_dict"):
            yield from self._comes_back(watch)

    def _comes_back(self, watch: Watch) -> Iterator[str]:
        state, tensors = watch.plugins.state()
        fresh = activate_one(self.name, self.settings, "conformance").instance
        watch.plugins[self.name].instance = fresh
        try:
            watch.plugins.load_state(state, tensors)
        except Exception as error:  # likewise
            yield self._why(error)
            return
        again, others = watch.plugins.state()
        alike = again["states"] == state["states"] and tensors.keys() == others.keys()
        if not alike or not all(same(others[key], value) for key, value in tensors.items()):
            yield "its state_dict is another one after load_state_dict in a fresh instance"

    def _repeated(self, whole: Run, watch: Watch) -> Iterator[str]:
        """Cut short everywhere, from other global generators: all the same rows, or why not."""
        folder = self.folder / "cut"
        try:
            found = cut_and_resumed(
                lambda watchers: self.run(watchers, folder, seed=1), folder, whole.metrics
            )
        except Exception as error:  # likewise
            yield f"a run of it that was cut short does not go on: {self._why(error)}"
            return
        if found is None:
            return
        place, said = found
        again, other = (self.run(seed=seed).metrics for seed in (0, 1))
        if fault := difference(again, whole.metrics):
            yield f"two runs with the same seed differ: {fault}"
        elif fault := difference(other, whole.metrics):
            hooks = ", ".join(dict.fromkeys(watch.drew)) or "something outside its hooks"
            said = "draws from torch's global generator; draw from ctx.generator(purpose)"
            if not any("draws from" in known for known in watch.faults):  # that is why
                yield f"{hooks} {said}: {fault}"
        else:
            yield (
                f"a run that was cut after {place} and went on differs: {said}; what it remembers "
                "between calls belongs into its state_dict"
            )

    def _in_company(self) -> Iterator[str]:
        """One run in which each other hook has somebody, as far as they may stand together."""
        beside = self.company()
        _, error = self._tried(plugins=[*beside, *self._listed()], iterations=1)
        if error:
            names = ", ".join(micro.name_of(n) for entry in beside for n in entry)
            yield f"beside {names}: {error}"

    def company(self) -> list[Mapping[Any, Mapping[str, Any]]]:
        """Who of the others may stand before it."""
        mine = self._listed()
        names = {micro.name_of(n) for entry in mine for n in _names(entry)}
        chosen: list[Mapping[Any, Mapping[str, Any]]] = []
        for group in OTHERS:
            known = names & {micro.name_of(n) for n in group}
            if not known and self._stands([*chosen, group, *mine]):
                chosen.append(group)
        return chosen

    def _stands(self, plugins: Sequence[micro.Listed]) -> bool:
        with micro.listed(plugins) as entries:
            try:
                check(load_config(merged(WORLD, {**self.sections, "plugins": entries})), "run")
            except UserError:
                return False
        return True


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Global generators that the block seeds are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _names(entry: micro.Listed) -> Iterator[Any]:
    yield from entry if isinstance(entry, Mapping) else [entry]


def _undescribed(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Settings without a description, ``a.b`` inside sections."""
    for name, one in schema.model_fields.items():
        inner = one.annotation
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            yield from _undescribed(inner, f"{prefix}{name}.")
        elif not one.description:
            yield prefix + name
