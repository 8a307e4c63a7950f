"""Look over a plugin's shoulder in a run: what its hooks change, draw and answer."""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from ostinato.contract.batches import PolicyHistory
from ostinato.contract.context import Context
from ostinato.contract.events import Event
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples

PLAIN = str | bytes | int | float | bool | None


@dataclass
class Watch:
    """A watcher of a run that lays itself around the hook calls of the plugin ``name``.

    ``faults`` are what it saw, without the plugin's name.
    """

    name: str
    faults: list[str] = field(default_factory=list)
    drew: list[str] = field(default_factory=list)  # hooks in which torch's generator moved on
    columns: set[str] = field(default_factory=set)  # of data that the plugin answered
    instance: Any = None
    plugins: Any = None
    settings: dict[str, Any] = field(default_factory=dict)  # as they were when the run started
    # by hook, the reward that it answered last, and a few responses of the ruler
    rewards: dict[str, tuple[Reward, Samples]] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if event.kind == "run_started":
            self.plugins = event.data["plugins"]
            self.instance = self.plugins[self.name].instance
            self.settings = settings_of(self.instance)
            call = self.plugins.call
            self.plugins.call = lambda name, hook, **given: (
                self._watched(f"hook '{hook}'", lambda: call(name, hook, **given), given)
                if name == self.name
                else call(name, hook, **given)
            )

    def _watched(self, what: str, call: Callable[[], Any], given: Mapping[str, Any]) -> Any:
        """The answer; what the call did beside it is noted."""
        before = dict(leaves(given))
        held = {path: copied(leaf) for path, leaf in before.items()}
        generators, seed, state = _generators(), torch.initial_seed(), torch.get_rng_state()
        answer = call()
        for generator, kept in _generators().items():
            if kept != generators[generator]:
                self._fault(f"{what} draws from {generator}; draw from ctx.generator(purpose)")
        if torch.initial_seed() != seed:
            self._fault(f"{what} seeds torch's global generator; draw from ctx.generator(purpose)")
        elif not torch.equal(torch.get_rng_state(), state):
            self.drew.append(what)
        after = dict(leaves(given))
        for path, leaf in before.items():  # a field may be set anew, since a copy's is given
            now = leaf if isinstance(leaf, Tensor) else after.get(path)
            if not same(now, held[path]):
                self._fault(f"{what} changes {path}, which it is given to read, in place")
                break
        self._look_at(what, answer)
        if isinstance(answer, Reward):
            samples = given["ctx"].ruler.rl
            few = torch.arange(min(4, len(samples)), device=samples.mask.device)
            self.rewards[what] = answer, samples.rows(few)
        return answer

    def _look_at(self, what: str, answer: Any) -> None:
        if isinstance(answer, Dataset):
            self.columns |= set(answer.column_names)
        hopeless = Tensor.isnan if "sampling_logits" in what else lambda x: ~x.isfinite()
        for path, leaf in leaves({"": answer}):
            number = torch.as_tensor(leaf) if isinstance(leaf, float) else leaf
            if isinstance(number, Tensor) and bool(hopeless(number).any()):
                at = f" ({path.strip('.')})" if path.strip(".") else ""
                self._fault(f"{what} answers a number that is not finite{at}")
        if what == "hook 'policy_algorithm'":
            self._enter(answer)

    def _enter(self, algorithm: Any) -> None:
        """Watch the methods of an algorithm too, which are no hooks."""
        for name in ("advantages", "loss"):
            method = getattr(algorithm, name, None)
            if not isinstance(method, MethodType | FunctionType) or hasattr(method, "__wrapped__"):
                continue
            setattr(algorithm, name, self._method(method))

    def _method(self, method: Any) -> Callable[..., Any]:
        @wraps(method)
        def watched(*given: Any, **named: Any) -> Any:
            asked = inspect.signature(method).bind(*given, **named).arguments
            what = f"its {method.__name__}({', '.join(asked)})"
            return self._watched(what, lambda: method(*given, **named), asked)

        return watched

    def _fault(self, said: str) -> None:
        if said not in self.faults:
            self.faults.append(said)


def depends_on_company(reward: Reward, samples: Samples) -> bool:
    """Whether a response is worth something else alone than in a batch."""
    whole = reward.score_samples(samples).total
    places = torch.arange(len(samples), device=whole.device)
    alone = [reward.score_samples(samples.rows(place)).total for place in places.flip(0).split(1)]
    return not torch.allclose(torch.cat(alone).flip(0), whole, rtol=1e-3, atol=1e-3)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of all that can be changed in what a hook is given, weights among it."""
    if isinstance(value, Tensor | Dataset | PLAIN):
        yield path, value
    elif isinstance(value, nn.Module):
        yield from ((f"{path}.{name}", p) for name, p in value.named_parameters())
    elif isinstance(value, Reward):
        yield from leaves(value.members, f"{path}.members")
    elif isinstance(value, PolicyHistory):
        yield from leaves(value.sft.load(), f"{path}.sft")
        yield path, len(value.final)
    elif isinstance(value, Context):
        yield from leaves(value.parts, path)
        yield f"{path}.config", value.config.model_dump_json()
    elif isinstance(value, Mapping):
        yield f"the length of {path}", len(value)
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence):
        yield f"the length of {path}", len(value)
        for place, part in enumerate(value):
            yield from leaves(part, f"{path}[{place}]")
    elif is_dataclass(value) and not (isinstance(value, Event) or callable(value)):
        for one in fields(value):
            yield from leaves(getattr(value, one.name), f"{path}.{one.name}")


def copied(leaf: Any) -> Any:
    """What :func:`same` compares with later."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return (leaf._fingerprint, len(leaf)) if isinstance(leaf, Dataset) else leaf


def same(leaf: Any, before: Any) -> bool:
    """Whether a leaf is what it was when it was copied."""
    if isinstance(leaf, Tensor):
        alike = leaf.shape == before.shape and leaf.dtype == before.dtype
        return alike and bool(((leaf == before) | (leaf.isnan() & before.isnan())).all())
    return bool(copied(leaf) == before)


def _generators() -> dict[str, Any]:
    """The state of the global generators that the core never draws from."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "Python's global random generator": random.getstate(),
        "NumPy's global random generator": (name, keys.tobytes(), *rest),  # type: ignore[union-attr]
    }


def settings_of(instance: Any) -> dict[str, Any]:
    """A plugin's settings as plain values."""
    config = getattr(instance, "config", None)
    found: dict[str, Any] = {} if config is None else config.model_dump()
    return copy.deepcopy(found)


def shared_state(plugin: type[Any]) -> dict[str, Any]:
    """Plain values that all instances of a class share: its module's and its own attributes."""
    places = {"module variable": vars(sys.modules[plugin.__module__])}
    places |= {"class attribute": dict(vars(plugin))}
    return {
        f"{kind} '{name}'": copy.deepcopy(value)
        for kind, place in places.items()
        for name, value in place.items()
        if not name.startswith("__") and _plain(value)
    }


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_plain(part) for part in value.values())
    if isinstance(value, list | tuple | set):
        return all(map(_plain, value))
    return isinstance(value, PLAIN)
