"""Every built-in plugin conforms, each at the cheapest settings that it needs."""

from __future__ import annotations

from typing import Any

import pytest

from mixing.micro import RUN, answer_people, furnish, settings_of
from ostinato.contract.discovery import discover
from ostinato.testing import conformance

BUILT_IN = {n: c for n, claims in discover().items() for c in claims if c.built_in}
# What stands beside a plugin that could do nothing alone.
VOTES = {"strength": {"models": 2}}
BESIDE: dict[str, list[Any]] = {
    **{name: [VOTES] for name in ("flip", "margin", "soft_labels")},
    "strength": ["strength", {"flip": {"lowest": 0.25}}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("furnished")
    furnish(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_conforms(name, folder):
    conformance(
        BUILT_IN[name].load(),
        settings_of(name, folder),
        BESIDE.get(name, []),
        run=RUN.get(name),
        on_pause=answer_people if name == "file_labels" else None,
    )
