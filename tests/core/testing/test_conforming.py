"""``conformance`` finds what is wrong with each of the plugins in ``faulty``, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from ostinato import hookimpl
from ostinato.testing import conformance

FAULTY = sorted((Path(__file__).parent / "faulty").glob("*.py"))


@pytest.fixture
def loaded(monkeypatch):
    """A module from its file."""

    def load(file):
        name = f"faulty_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.slow
@pytest.mark.parametrize("file", FAULTY, ids=[file.stem for file in FAULTY])
def test_the_fault_is_named(file, loaded):
    made = loaded(file)
    with pytest.raises(AssertionError) as caught:
        conformance(made.Faulty)
    first, *found = str(caught.value).splitlines()
    assert first == "Faulty does not conform:"
    assert all(line.startswith("plugin 'Faulty': ") for line in found)
    for said in made.SAID:
        assert any(said in line for line in found), (said, found)
    for line in found:
        assert any(said in line for said in made.SAID), line


def test_there_are_at_least_twenty():
    assert len(FAULTY) >= 20


class Listens:
    """Halve the KL penalty, after a look at the rewards."""

    @hookimpl
    def kl_coefficient(self, ctx):
        return ctx.config.kl.coefficient / 2

    @hookimpl
    def reward_transform(self, rewards):
        return rewards


@pytest.mark.slow
def test_a_link_that_only_looks_conforms_where_another_hook_acts():
    conformance(Listens)
