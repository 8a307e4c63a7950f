"""Which plugins may stand together: against a search of its own over plain declarations."""

from __future__ import annotations

from itertools import combinations

import pytest

from mixing.completion import Mixing
from ostinato import UserError
from ostinato.contract.activation import declared
from ostinato.contract.discovery import default_owners, discover, hooks_of
from ostinato.contract.hookspecs import KINDS
from ostinato.contract.plugins import activate, columns

BUILT_IN = [n for n, claims in discover().items() if any(c.built_in for c in claims)]
DEFAULTS = default_owners()
READ_BY_THE_CORE = {"label", "weight"}  # docs/concepts: columns


@pytest.fixture(scope="module")
def mixing():
    return Mixing({name: declared(name) for name in BUILT_IN})


class Declared:
    """One plugin's declarations as plain sets."""

    def __init__(self, instance):
        hooks = set(hooks_of(type(instance)))
        self.owns = {hook for hook in hooks if KINDS[hook] == "one"}
        self.early = "refine_data" in hooks
        self.provides = set(getattr(instance, "provides", ()))
        self.consumes = set(getattr(instance, "consumes", ()))


def stands(names, declared):
    """Whether these plugins can be one run as they are, whatever their order."""
    owned = [hook for name in names for hook in declared[name].owns]
    if len(owned) != len(set(owned)):
        return False
    implied = {name for hook, name in DEFAULTS.items() if hook not in owned}
    whole = [declared[name] for name in {*names, *implied}]
    given = {c for one in whole for c in one.provides} | READ_BY_THE_CORE | {"margin"}
    read = {c for one in whole for c in one.consumes} | READ_BY_THE_CORE
    return all(one.consumes <= given and (not one.provides or one.provides & read) for one in whole)


def test_a_pair_conflicts_exactly_where_no_larger_set_could_hold_it(mixing):
    """Every set with up to three more plugins, of those that have anything to do with columns."""
    declared = {name: Declared(a.instance) for name, a in mixing.pool.items()}
    helpers = [n for n, one in declared.items() if one.provides or one.consumes]
    for pair, why in mixing.pairs().items():
        possible = any(
            stands({*pair, *more}, declared)
            for count in range(4)
            for more in combinations(helpers, count)
        )
        assert bool(why) != possible, (pair, why)


def test_what_is_completed_is_what_activation_accepts(mixing):
    for name in (n for n, a in mixing.pool.items() if columns([a], "provides")):
        listed = mixing.listed([name])
        plugins = activate([(n, {}) for n in listed], "run.yaml")
        assert name in listed
        assert {a.name for a in plugins.active} == {a.name for a in mixing.completed([name])[0]}


def test_two_owners_conflict_in_the_words_of_activation(mixing):
    (why,) = mixing.conflict("concat", "sample_data")
    with pytest.raises(UserError) as caught:
        activate([("concat", {}), ("sample_data", {})], "run.yaml")
    assert str(caught.value) == f"run.yaml: {why}"


def test_a_consumer_stands_behind_its_provider_whatever_the_order_asked(mixing):
    assert mixing.listed(["flip", "concat"]) == ["concat", "strength", "flip"]


def test_a_provider_alone_is_given_a_consumer(mixing):
    listed = mixing.listed(["strength"])
    assert listed[0] == "strength"
    assert len(listed) == 2
    assert "strength_mean" in mixing.pool[listed[1]].instance.consumes


def test_a_loss_that_reads_no_margin_conflicts_with_who_provides_it(mixing):
    """The error names neither owner nor loss: nobody is left who would read the column."""
    assert mixing.conflict("margin", "k_wise") == [
        "plugin 'margin' provides column 'margin', which nothing consumes"
    ]
    assert mixing.conflict("margin", "bradley_terry") == []
