"""What a mixture of plugins needs beside it, and in which order: searched for in what they declare.

No plugin is known by name here: the checks are those of :mod:`ostinato.contract.plugins`, and what
else is asked of a whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from ostinato.contract.activation import Active
from ostinato.contract.discovery import default_owners
from ostinato.contract.plugins import columns, faults, idle_columns, missing_columns, with_defaults

Mixture = tuple[list[Active], list[str]]


class Mixing:
    """The plugins of which mixtures are made, ``pool`` by name.

    ``at_odds`` says what else keeps a run's plugins apart, all of which it is given.
    """

    def __init__(
        self,
        pool: Mapping[str, Active],
        at_odds: Callable[[Sequence[Active]], Iterable[str]] = lambda whole: (),
    ) -> None:
        self.pool = dict(sorted(pool.items()))
        self.at_odds = at_odds
        self.defaults = {h: n for h, n in default_owners().items() if n in self.pool}
        self._known: dict[frozenset[str], Mixture] = {}

    def completed(self, names: Iterable[str]) -> Mixture:
        """The plugins with what they need beside them, in an order that works; and their faults.

        What the defaults do not bring is added from the pool: a plugin that provides a column which
        another consumes, or consumes one which nothing else does. Of all ways the shortest without
        a fault is answered, else the one with the fewest faults, a sentence each. Defaults of hooks
        that nobody owns stand last.
        """
        wanted = frozenset(names)
        if wanted not in self._known:
            self._known[wanted] = self._search(wanted)
        return self._known[wanted]

    def conflict(self, *names: str) -> list[str]:
        """Why no run can have all of these, a sentence each; nothing where one can."""
        return self.completed(names)[1]

    def listed(self, names: Iterable[str]) -> list[str]:
        """What a run file lists to have these plugins: their completion without its defaults."""
        wanted = set(names)
        implied = set(self.defaults.values()) - wanted
        return [a.name for a in self.completed(wanted)[0] if a.name not in implied]

    def pairs(self) -> dict[tuple[str, str], list[str]]:
        """Each pair of the pool, and why it may not stand together."""
        return {pair: self.conflict(*pair) for pair in combinations(self.pool, 2)}

    def _search(self, wanted: frozenset[str]) -> Mixture:
        best: Mixture | None = None
        queue = [wanted]
        for names in queue:
            bare = ordered([self.pool[name] for name in sorted(names)])
            whole = with_defaults(bare, self.defaults, self.pool.__getitem__)
            found = list(faults(whole)) or list(self.at_odds(whole))
            if best is None or len(found) < len(best[1]):
                best = whole, found
            if not found:
                break
            more = (names | {mender} for mender in self._menders(whole))
            queue += [new for new in more if new not in queue]
        assert best is not None
        return best

    def _menders(self, whole: Sequence[Active]) -> Iterator[str]:
        """Plugins of the pool that would provide a missing column, or consume an idle one."""
        missing = {column for _, column, _ in missing_columns(whole)}
        idle = {column for _, names in idle_columns(whole) for column in names}
        for name, one in self.pool.items():
            useful = columns([one], "provides") & missing or columns([one], "consumes") & idle
            if useful and one not in whole:
                yield name


def ordered(active: Sequence[Active]) -> list[Active]:
    """The plugins, each behind those that provide the columns it consumes."""
    left = list(active)
    done: list[Active] = []

    def waits(one: Active) -> bool:
        others = [other for other in left if other is not one]
        return bool(columns([one], "consumes") & columns(others, "provides"))

    while left:
        done.append(next((one for one in left if not waits(one)), left[0]))
        left.remove(done[-1])
    return done
