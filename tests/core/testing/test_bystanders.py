"""The company in which plugins are tried answers every hook between them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ostinato import hookimpl
from ostinato.contract.discovery import default_owners, find, hooks_of
from ostinato.contract.hookspecs import KINDS
from ostinato.testing.conforming import OTHERS, Trial
from ostinato.testing.micro import listed


def test_every_hook_is_answered():
    listed = [name for group in OTHERS for name in group]
    made = [find(n, "test").load() if isinstance(n, str) else n for n in listed]
    answered = {hook for plugin in made for hook in hooks_of(plugin)} | default_owners().keys()
    assert answered == KINDS.keys()


class Plain:
    """Halve rewards."""

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=rewards.score / 2)


class Owner:
    """The newest data set."""

    @hookimpl
    def combine_data(self, datasets):
        return datasets[-1]


@pytest.mark.parametrize(("plugin", "without"), [(Plain, set()), (Owner, {"concat"})])
def test_all_stand_beside_a_plugin_but_other_owners(plugin, without):
    with listed([plugin]):
        beside = Trial(plugin, {}, [], {}, None).company()
    names = {name for group in OTHERS for name in group}
    assert names - {name for group in beside for name in group} == without
