"""The plugins of a run: whether they may stand together, and how their hooks are called."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.config.errors import UserError, blamed
from ostinato.config.sections import plugin_name
from ostinato.contract.activation import Active, activate_one
from ostinato.contract.answers import check_answer, wrong
from ostinato.contract.discovery import default_owners
from ostinato.contract.hookspecs import KINDS

if TYPE_CHECKING:
    from torch import Tensor

    from ostinato.models.reward_model import Reader

T = TypeVar("T")

# Who has one of these learns from labels; so does who owns one of LEARNING other than by default.
LABELLED = {
    "draw_responses",
    "meta_update",
    "refine_data",
    "rm_loss",
    "select_comparisons",
    "train_rm",
}
LEARNING = ("combine_data", "preference_loss")
UNASKED = {*LABELLED, *LEARNING, "label"}  # in a run that learns no reward model

# Columns that the core itself reads. `margin` is there too, but only some losses read it.
CORE_COLUMNS = {"weight", "label"}


@dataclass
class Plugins:
    """The active plugins of a run, and the three ways to call a hook."""

    active: list[Active]
    owners: dict[str, str]
    # a magnitude of what each call did, by `plugin.hook`: proof that it acted
    actions: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    logged: dict[str, float] = field(default_factory=dict)  # for the next row of metrics.jsonl

    def implementing(self, hook: str) -> list[str]:
        """Names of the active plugins with this hook, in the run file's order."""
        return [a.name for a in self.active if hook in a.hooks]

    @property
    def readers(self) -> dict[str, Reader]:
        """What reads the run's reward models, the mean among it, and is trained with them."""
        from ostinato.models.reward_model import MEAN, Reader  # plugins are listed without torch

        def brought(by: Any) -> Reader:
            return Reader(*(getattr(by, part, None) for part in ("read", "modules")))

        return {a.name: brought(a.instance) for a in self.active} | {**MEAN}

    def __getitem__(self, name: str) -> Active:
        return next(a for a in self.active if a.name == name)

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call one plugin's hook; an error carries the plugin's name as a note."""
        from ostinato.contract.guards import watched  # here: plugins are listed without torch

        with watched(name, hook, arguments) as given, blamed(name, f"hook '{hook}'"):
            answers = getattr(self[name].callers, hook)(**given)
        if not answers:  # pluggy leaves None out
            if KINDS[hook] == "all":
                return None
            raise wrong(name, hook, "answered None")
        check_answer(name, hook, answers[0], arguments)
        return answers[0]

    def acted(self, name: str, hook: str, magnitude: float) -> None:
        """Record the magnitude of what a hook call did."""
        self.actions[f"{name}.{hook}"].append(float(magnitude))

    def one(self, hook: str, measure: Callable[[Any], float] | None = None, **given: Any) -> Any:
        """The owner's answer; ``measure`` gives its magnitude."""
        name = self.owners[hook]
        answer = self.call(name, hook, **given)
        if measure is not None:
            self.acted(name, hook, measure(answer))
        return answer

    def chain(
        self, hook: str, argument: str, value: T, check: Callable[[str, T, T], float], **others: Any
    ) -> T:
        """Pass ``value`` through all; ``check(plugin, before, after)`` answers a magnitude.

        Who answers what was given has done nothing, and there is nothing to check.
        """
        for name in self.implementing(hook):
            before, value = value, self.call(name, hook, **{argument: value}, **others)
            self.acted(name, hook, 0.0 if value is before else check(name, before, value))
        return value

    def each(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """(plugin, answer) of every plugin with the hook, in order."""
        for name in self.implementing(hook):
            yield name, self.call(name, hook, **arguments)

    def taken_actions(self) -> dict[str, float]:
        """Mean magnitude by ``plugin.hook`` since the last call of this, which forgets them."""
        means = {key: sum(seen) / len(seen) for key, seen in self.actions.items() if seen}
        self.actions.clear()
        return means

    def need(self, key: str) -> Any:
        """The largest value that an active plugin needs of ``key``, or None.

        A need is a least value, save ``dropout``: two plugins that need different ones are refused.
        """
        return max((a.needs[key] for a in self.active if a.needs.get(key)), default=None)

    @cached_property
    def learn_rewards(self) -> bool:
        """Whether pairs are labelled and reward models trained on them.

        Not where the owner of combine_rm says that R_k is made without (``reward_models = False``)
        and nobody else learns from labels.
        """
        if getattr(self[self.owners["combine_rm"]].instance, "reward_models", True):
            return True
        usual = default_owners()
        return (
            bool(self.need("reward_models"))
            or any(LABELLED & set(a.hooks) for a in self.active)
            or any(self.owners[hook] != usual[hook] for hook in LEARNING)
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, actions and logged numbers start empty; afterwards they are as before."""
        actions, logged = dict(self.actions), dict(self.logged)
        self._pending({}, {})
        try:
            yield
        finally:
            self._pending(actions, logged)

    def _pending(self, actions: Mapping[str, list[float]], logged: Mapping[str, float]) -> None:
        for mine, new in ((self.actions, actions), (self.logged, logged)):
            mine.clear()
            mine.update(new)  # type: ignore[arg-type]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All that a resumed run must know: each ``state_dict()``, and what waits for a row.

        JSON, and the tensors that stood in it.
        """
        from ostinato.contract.state import parted  # here: plugins are listed without torch

        states: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for a in self.active:
            if hasattr(a.instance, "state_dict"):
                with blamed(a.name, "its state_dict()"):
                    state = a.instance.state_dict()
                try:
                    states[a.name] = json.loads(json.dumps(parted(state, a.name, tensors)))
                except (TypeError, ValueError) as error:
                    wanted = "numbers, text, lists, mappings with text as keys, and tensors only"
                    fault = f"its state_dict() should hold {wanted}: {error}"
                    raise UserError(f"{a.found}: {fault}") from error
        waiting = {"actions": dict(self.actions), "logged": dict(self.logged)}
        return {"states": states, **waiting}, tensors

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """What :meth:`state` answered, once more."""
        from ostinato.contract.state import whole  # as above

        self._pending(state["actions"], state["logged"])
        for a in self.active:
            if a.name in state["states"]:
                with blamed(a.name, "its load_state_dict(state)"):
                    a.instance.load_state_dict(whole(state["states"][a.name], tensors))


def activate(wanted: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> Plugins:
    """Activate the plugins of a run file and the defaults of hooks that nobody owns.

    Raises UserError, every complaint a line, before anything is computed.
    """
    active: list[Active] = []
    complaints: list[str] = []
    names = [name for name, _ in wanted]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        complaints.append(f"{where}: plugin '{plugin_name(name)}' is listed twice")
    for name, settings in dict(wanted).items():
        try:
            active.append(activate_one(name, settings, where))
        except UserError as error:
            complaints.append(str(error))
    if not complaints:
        active = with_defaults(
            active, default_owners(), lambda name: activate_one(name, {}, where, built_in=True)
        )
    complaints += [f"{where}: {fault}" for fault in faults(active, whole=not complaints)]
    if complaints:
        raise UserError("\n".join(complaints))
    owners = {hook: a.name for a in active for hook in a.hooks if KINDS[hook] == "one"}
    return Plugins(active, owners)


def with_defaults(
    active: Sequence[Active], owners: Mapping[str, str], make: Callable[[str], Active]
) -> list[Active]:
    """The plugins, and the default of each hook in ``owners`` that none of them has."""
    whole = list(active)
    for hook in KINDS:
        if hook in owners and not any(hook in a.hooks for a in whole):
            whole.append(make(owners[hook]))
    return whole


def faults(active: Sequence[Active], whole: bool = True) -> Iterator[str]:
    """Why these plugins, defaults among them, may not stand in one run, a sentence each.

    Where they are not the ``whole`` run, what a column lacks may be in the rest.
    """
    of_name = {a.name: a for a in active}
    for one in (a for a in active if a is not of_name[a.name]):
        both = f"{one.found.origin} and of {of_name[one.name].found.origin}"
        yield f"plugins of {both} are both called '{one.name}'; rename a class"
    claims: dict[str, list[str]] = defaultdict(list)
    for hook in (h for h, kind in KINDS.items() if kind == "one"):
        owners = [f"'{a.name}'" for a in active if hook in a.hooks]
        if len(owners) > 1:
            claims[" and ".join(owners)].append(f"'{hook}'")
    for names, hooks in claims.items():
        if len(hooks) == 1:
            yield f"hook {hooks[0]} has one owner, but {names} claim it"
        else:
            yield f"hooks {' and '.join(hooks)} have one owner each, but {names} claim them"
    for name, column, late in missing_columns(active) if whole else ():
        order = " listed before it" if late else ""
        yield f"plugin '{name}' consumes column '{column}', which no plugin{order} provides"
    for name, columns in idle_columns(active) if whole else ():
        names = ", ".join(f"'{column}'" for column in columns)
        word = "column" if len(columns) == 1 else "columns"
        yield f"plugin '{name}' provides {word} {names}, which nothing consumes"
    asked = [(a.name, a.needs["dropout"]) for a in active if a.needs.get("dropout")]
    for name, p in asked[1:]:  # more dropout is not better, so the largest need would not do
        first, other = asked[0]
        if p != other:
            both = f"plugin '{first}' needs dropout {other:g} and plugin '{name}' {p:g}"
            yield f"{both}, but a reward model has one; set them alike"


def columns(of: Sequence[Active], which: str) -> set[str]:
    """Data columns that these plugins declare: ``which`` is provides or consumes."""
    return {column for a in of for column in getattr(a.instance, which, ())}


def missing_columns(active: Sequence[Active]) -> Iterator[tuple[str, str, bool]]:
    """(plugin, column that it consumes and nothing provides, whether it must be listed before)."""
    for place, one in enumerate(active):
        late = "refine_data" in one.hooks
        there = columns(active[:place] if late else active, "provides")
        for column in sorted(columns([one], "consumes") - there - CORE_COLUMNS - {"margin"}):
            yield one.name, column, late


def idle_columns(active: Sequence[Active]) -> Iterator[tuple[str, list[str]]]:
    """(plugin, its columns) where nothing consumes any column that the plugin provides."""
    consumed = columns(active, "consumes") | CORE_COLUMNS
    for one in active:
        provided = columns([one], "provides")
        if provided and not provided & consumed:
            yield one.name, sorted(provided)
