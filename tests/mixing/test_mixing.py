"""A sample of what tests/mixing/run_all.py runs: mixtures on the micro world, proved to act."""

from __future__ import annotations

import tomllib
from itertools import combinations
from pathlib import Path

import pytest

from mixing import covering, micro, run_all
from ostinato.contract.hookspecs import KINDS

MIXING = micro.mixing()
ARRAY = covering.covering_array(MIXING)
RANDOM = covering.random_sets(MIXING, 30)
SAMPLE = [*covering.sample_of(ARRAY, 4), *covering.sample_of(RANDOM, 3), *RANDOM[-2:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the settings of the mixtures name."""
    made = tmp_path_factory.mktemp("furnished")
    micro.furnish(made)
    return made


@pytest.mark.parametrize("listed", SAMPLE, ids=lambda listed: f"{len(listed)} from {listed[0]}")
def test_every_method_of_a_mixture_acts(listed, folder, tmp_path):
    assert micro.complaints(MIXING, listed, folder, tmp_path / "run") == []


def test_every_pair_that_may_not_stand_together_is_refused_in_one_sentence(folder):
    assert list(run_all.wrongly_refused(MIXING, folder)) == []
    for why in MIXING.pairs().values():
        assert len(why) <= 1


def test_two_owners_of_a_hook_are_always_apart():
    for one, other in combinations(MIXING.pool, 2):
        shared = set(MIXING.pool[one].hooks) & set(MIXING.pool[other].hooks)
        owned = [hook for hook in shared if KINDS[hook] == "one"]
        if owned:
            assert f"'{one}' and '{other}' claim" in MIXING.conflict(one, other)[0]


def test_every_method_of_the_repository_is_mixed():
    root = Path(__file__).parents[2]
    files = [root / "pyproject.toml", *sorted(root.glob("contrib/*/pyproject.toml"))]
    projects = [tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files]
    names = [name for project in projects for name in project["entry-points"]["ostinato"]]
    assert sorted(names) == list(MIXING.pool)
    assert len(files) > 1


def test_the_array_covers_every_legal_pair_and_no_other():
    ran = set()
    for listed in ARRAY:
        ran |= covering.pairs_of(covering.active(MIXING, listed))
    assert ran == covering.legal_pairs(MIXING)


def test_the_same_declarations_give_the_same_sets():
    assert covering.covering_array(micro.mixing()) == ARRAY
    assert covering.random_sets(micro.mixing(), 30) == RANDOM
    assert len({tuple(sorted(listed)) for listed in RANDOM}) == 30


def test_the_fixed_sets_are_whole():
    assert set(RANDOM[-1]) == set(covering.FIXED)
    assert set(RANDOM[-2]) == set(covering.AGAINST_HACKING)
    assert RANDOM[-1].index("strength") < RANDOM[-1].index("flip") < RANDOM[-1].index("margin")


ROWS = [
    {"kind": "actions", "iteration": k, "actions": actions}
    for k in (1, 2)
    for actions in (
        {
            "concat.combine_data": 8.0,
            "bradley_terry.preference_loss": 0.7,
            "ppo.policy_algorithm": 1,
        },
        {"take_last_rm.combine_rm": 1, "gold_labels.label": 8.0, "fixed_kl.kl_coefficient": 0.1},
        {"from_sft.init_policy": 0.0, "simcse.rm_loss": 0.5 * k},
    )
] + [{"kind": "iteration", "iteration": k} for k in (1, 2)]


def without(key, k):
    return [
        row
        | {
            "actions": {
                n: x for n, x in row["actions"].items() if (n, row["iteration"]) != (key, k)
            }
        }
        if "actions" in row
        else row
        for row in ROWS
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS, []),
        (without("simcse.rm_loss", 2), ["simcse.rm_loss left no action in iteration 2"]),
        (
            [*without("simcse.rm_loss", 1), ROWS[2] | {"actions": {"simcse.rm_loss": 0.0}}],
            ["simcse.rm_loss did nothing in iteration 1"],
        ),
        (
            [*ROWS, ROWS[0] | {"actions": {"swav.rm_loss": 1.0}}],
            ["swav.rm_loss acted, and is neither listed nor a default"],
        ),
        (ROWS[:-1], ["the run has 1 finished iterations"]),
    ],
    ids=["whole", "silent", "zero", "stranger", "unfinished"],
)
def test_proof_of_action_sees(rows, said):
    assert micro.proof(MIXING, ["simcse"], rows) == said
