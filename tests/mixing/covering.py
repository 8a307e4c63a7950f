"""A covering array of a pool of plugins: sets for runs in which every legal pair stands together.

Greedy and without chance, so the same declarations give the same sets on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import combinations

from mixing.completion import Mixing, ordered

Pair = tuple[str, str]
# Mixtures that the methods' authors would most likely ask for, each all in one run.
FIXED = ("concat", "brme", "sharpe", "simcse", "metarm", "strength", "flip", "margin", "liti")
AGAINST_HACKING = ("par", "worst_case", "advpo", "odin", "curriculum", "early_stopping")
AGAINST_HACKING += ("warp", "sharpe")


def pairs_of(names: Iterable[str]) -> set[Pair]:
    """Every pair of these, each in alphabetical order."""
    return set(combinations(sorted(set(names)), 2))


def active(mixing: Mixing, names: Iterable[str]) -> list[str]:
    """The plugins that are active where these are listed, the defaults among them."""
    return [a.name for a in mixing.completed(names)[0]]


def legal_pairs(mixing: Mixing) -> set[Pair]:
    """Pairs that some run can have."""
    return {pair for pair, why in mixing.pairs().items() if not why}


def covering_array(mixing: Mixing) -> list[list[str]]:
    """Sets, as run files list them; each begins with a pair not yet covered and takes what it can.

    The next to join is whoever brings most new pairs, the first by name among equals, until nobody
    brings one.
    """
    left = legal_pairs(mixing)
    rows = []
    while left:
        row = set(min(left))
        while True:
            inside = set(active(mixing, row))
            joined = _best(mixing, row, inside, left)
            if joined is None:
                break
            row.add(joined)
        left -= pairs_of(inside)
        rows.append(mixing.listed(row))
    return rows


def _best(mixing: Mixing, row: set[str], inside: set[str], left: set[Pair]) -> str | None:
    """Who may join and brings most uncovered pairs; nobody where none are brought."""
    gains = {
        name: sum(tuple(sorted((name, other))) in left for other in inside)
        for name in mixing.pool
        if name not in inside and not any(mixing.conflict(name, other) for other in row)
    }
    for name in sorted((n for n in gains if gains[n]), key=lambda n: (-gains[n], n)):
        if not mixing.conflict(*row, name):
            return name
    return None


def random_sets(mixing: Mixing, count: int, seed: int = 0) -> list[list[str]]:
    """Sets of 6 to 14 plugins and whom they need, in any order that works; then the fixed sets.

    Drawn one by one from those that may still join.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(count - 2):
        size, row = draw.randint(6, 14), set[str]()
        for name in draw.sample(sorted(mixing.pool), len(mixing.pool)):
            if len(row) < size and not mixing.conflict(*row, name):
                row.add(name)
        listed = mixing.listed(row)
        draw.shuffle(listed)
        rows.append([a.name for a in ordered([mixing.pool[name] for name in listed])])
    return [*rows, fixed_set(mixing, AGAINST_HACKING), fixed_set(mixing)]


def fixed_set(mixing: Mixing, names: Iterable[str] = FIXED) -> list[str]:
    """A fixed mixture, of the plugins that are there."""
    return mixing.listed(name for name in names if name in mixing.pool)


def sample_of(rows: Sequence[list[str]], count: int) -> list[list[str]]:
    """``count`` of the rows, evenly spread."""
    return [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]
