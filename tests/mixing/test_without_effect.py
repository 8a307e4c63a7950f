"""Mixtures that run and in which one method can change nothing: docs/mixing.md names them all."""

from __future__ import annotations

from pathlib import Path

import pytest

import ostinato
from mixing import micro
from ostinato.config.reading import merged

MIXING = micro.mixing()
PAGE = Path(__file__).parents[2] / "docs" / "mixing.md"
SHORT = {"iterations": 1, "reward_model": {"members": 2}, "kl": {"coefficient": 1.0}}


@pytest.fixture(scope="module")
def end(tmp_path_factory):
    """KL and gold at the end of one iteration of a mixture; each is run once."""
    known = {}

    def found(*names):
        if names not in known:
            folder = tmp_path_factory.mktemp("run")
            source = merged(micro.run_file(MIXING, MIXING.listed(names), folder), SHORT)
            (row,) = ostinato.run(source, folder / "run").iterations
            known[names] = row["kl"], row["gold_sft_std"], row["proxy_sft_std"]
        return known[names]

    return found


@pytest.mark.parametrize("method", ["sharpe", "adaptive_kl", "ema_anchor"])
def test_what_steers_the_kl_needs_an_algorithm_that_has_one(end, method):
    """It moves a policy under grpo, whose loss has a KL, and not under rejection sampling."""
    assert end("rejection_sampling", method) == end("rejection_sampling")
    assert end("grpo", method) != end("grpo")
    said = PAGE.read_text(encoding="utf-8").partition("## Together, but without effect")[2]
    assert f"[`{method}`](plugins/{method}.md)" in said.partition("\n## ")[0]
