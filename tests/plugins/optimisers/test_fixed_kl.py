"""A constant KL coefficient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ostinato.contract.plugins import activate


@pytest.mark.parametrize("coefficient", [0.0, 0.05])
@pytest.mark.parametrize(("kl", "step"), [(None, 0), (3.0, 7)])
def test_the_coefficient_is_the_run_files_whatever_the_kl(coefficient, kl, step):
    plugins = activate([("fixed_kl", {})], "test")
    ctx = SimpleNamespace(config=SimpleNamespace(kl=SimpleNamespace(coefficient=coefficient)))
    assert plugins.one("kl_coefficient", kl=kl, step=step, ctx=ctx) == coefficient
    assert plugins.owners["kl_coefficient"] == "fixed_kl"
