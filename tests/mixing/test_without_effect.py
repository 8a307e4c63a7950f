"""Mixtures that run and in which one method can change nothing: docs/mixing.md names them all."""

from __future__ import annotations

from pathlib import Path

import pytest

import ostinato
from contrib_path import installed
from mixing import micro
from ostinato.config.reading import merged

MIXING = micro.mixing()
PAGE = Path(__file__).parents[2] / "docs" / "mixing.md"
SHORT = {"reward_model": {"members": 2}, "kl": {"coefficient": 1.0}}


@pytest.fixture(scope="module")
def end(tmp_path_factory):
    """KL and gold at the end of each iteration of a mixture; each is run once."""
    known = {}

    def found(*names):
        if names not in known:
            folder = tmp_path_factory.mktemp("run")
            source = merged(micro.run_file(MIXING, MIXING.listed(names), folder), SHORT)
            with installed():
                made = ostinato.run(source, folder / "run")
            keys = ("kl", "gold_sft_std", "proxy_sft_std")
            known[names] = [row[key] for row in made.iterations for key in keys]
        return known[names]

    return found


@pytest.mark.parametrize(
    ("beside", "method", "elsewhere"),
    [
        ("rejection_sampling", "sharpe", "grpo"),
        ("rejection_sampling", "adaptive_kl", "grpo"),
        ("rejection_sampling", "ema_anchor", "grpo"),
        ("online_dpo", "sharpe", "grpo"),
        ("online_ipo", "adaptive_kl", "grpo"),
        ("xpo", "length_penalty", "grpo"),
        ("grpo", "abc_credit", "ppo"),
        ("take_last_data", "ocrm", "concat"),
        ("take_first_data", "ensemble", "concat"),
    ],
)
def test_what_has_nothing_to_act_on_changes_nothing(end, beside, method, elsewhere):
    """Beside another it does, so the page has to say where it does not."""
    assert end(beside, method) == pytest.approx(end(beside), rel=1e-5)  # a mean may round
    assert end(elsewhere, method) != pytest.approx(end(elsewhere), rel=1e-5)
    said = PAGE.read_text(encoding="utf-8").partition("## Together, but without effect")[2]
    (told,) = [
        line
        for line in said.partition("\n## ")[0].split("\n- ")
        if f"`{beside}`" in line and f"`{method}`" in line
    ]
    assert told
