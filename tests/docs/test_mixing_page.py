"""docs/mixing.md says of every pair what activation says of it."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from contrib_path import distributions, installed
from ostinato.contract.activation import declared
from ostinato.contract.discovery import discover
from ostinato.contract.hookspecs import KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "mixing.md").read_text(encoding="utf-8")
with installed():
    ORIGIN = {n: c.distribution for n, claims in discover().items() for c in claims}
    METHODS = sorted(n for n in ORIGIN if ORIGIN[n] in {"ostinato", *distributions()})
    HOOKS = {name: set(declared(name).hooks) for name in METHODS}


def section(title):
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def matrix():
    """{(one, other): symbol}, read as the page tells a reader to."""
    lines = re.search(r"```text\n(.*?)\n```", section("Every pair"), re.S)[1].splitlines()
    names = [line.split()[-1] for line in lines]
    for place, line in enumerate(lines):  # the column under a name's first letter is its own
        assert line.index(names[place]) == 2 * place
    return {
        (names[column], names[row]): symbol
        for row, line in enumerate(lines)
        for column, symbol in enumerate(line.split()[:-1])
    }


def test_every_pair_is_there_once(matrix):
    assert set(matrix) == set(combinations(METHODS, 2))
    assert set(matrix.values()) == {"·", "+", "×"}


def test_a_pair_is_apart_if_it_shares_a_hook_or_has_a_line_of_its_own(matrix):
    rows = re.findall(r"^\| .*? and .*", section("Further pairs that exclude each other"), re.M)
    firsts = (row.split(" | ")[0] for row in rows)
    further = {tuple(sorted(re.findall(r"`(\w+)`", first))) for first in firsts}
    for pair, symbol in matrix.items():
        shared = {hook for hook in HOOKS[pair[0]] & HOOKS[pair[1]] if KINDS[hook] == "one"}
        assert (symbol == "×") == bool(shared or pair in further), pair


def test_a_third_is_needed_by_who_reads_or_gives_a_column(matrix):
    assert matrix["concat", "flip"] == "+"
    assert matrix["flip", "strength"] == "·"
    assert matrix["concat", "strength"] == "+"
    assert matrix["concat", "simcse"] == "·"


def test_who_owns_a_hook_stands_in_its_row():
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(hooks/\w+\.md\) \| (.*?) \|", TEXT, re.M))
    for hook in KINDS:
        owners = {name for name in METHODS if hook in HOOKS[name]}
        assert set(re.findall(r"`(\w+)`", rows[hook])) == owners


def test_a_method_stands_with_its_distribution_or_links_to_its_page():
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(hooks/\w+\.md\) \| (.*?) \|", TEXT, re.M))
    for row in rows.values():
        for part in row.split("; "):
            names, _, origin = part.partition(" of ")
            for name in re.findall(r"`(\w+)`", names):
                folder = f"../contrib/{ORIGIN[name]}/README.md"
                link = f"[`{name}`](plugins/{name}.md)"
                known = link in names if not origin else origin == f"[{ORIGIN[name]}]({folder})"
                assert known, part
