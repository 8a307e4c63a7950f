"""sample_data: one iteration's worth of pairs, an equal share from each iteration (Wolf 2.2)."""

from __future__ import annotations

from collections import Counter

import pytest

from ostinato import UserError, load_config
from ostinato.config.draws import Draws
from ostinato.engine.session import check


def sets(comparisons, count, prompts=12, responses=2):
    """``count`` iterations over the same prompts."""
    given = {"responses": responses}
    return [comparisons(prompts, seed=k, iteration=k + 1, **given) for k in range(count)]


def sampled(kit, data, mode, seed=0):
    one = kit.make(("sample_data", {"mode": mode}))
    ctx = one.ctx.at(draws=Draws(seed, len(data)), iteration=len(data))
    return one.plugins.one("combine_data", datasets=data, ctx=ctx)


@pytest.mark.parametrize("mode", ["random", "coverage"])
@pytest.mark.parametrize(
    ("k", "shares"), [(1, [12]), (2, [6, 6]), (3, [4, 4, 4]), (5, [2] * 4 + [4])]
)
def test_size_is_fixed_and_shares_are_equal(kit, comparisons, mode, k, shares):
    """What does not divide goes to the newest iteration."""
    made = sampled(kit, sets(comparisons, k), mode)
    assert [Counter(made["iteration"])[i + 1] for i in range(k)] == shares
    rows = [(r["iteration"], r["prompt_id"]) for r in made]
    assert len(set(rows)) == len(rows) == 12


def test_rows_are_taken_as_they_are(kit, comparisons):
    data = sets(comparisons, 3)
    known = [row for one in data for row in one]
    assert all(row in known for row in sampled(kit, data, "random"))


def test_coverage_has_every_prompt_once_where_random_repeats_some(kit, comparisons):
    data = sets(comparisons, 3)
    for seed in range(4):
        assert sorted(sampled(kit, data, "coverage", seed)["prompt_id"]) == list(range(12))
    drawn = [sampled(kit, data, "random", seed)["prompt_id"] for seed in range(4)]
    assert any(len(set(ids)) < 12 for ids in drawn)


def test_draws_differ_by_seed_and_repeat(kit, comparisons):
    data = sets(comparisons, 2)
    for mode in ("random", "coverage"):
        first = sampled(kit, data, mode)["chosen"][:]
        assert sampled(kit, data, mode)["chosen"][:] == first
        assert sampled(kit, data, mode, seed=1)["chosen"][:] != first


def test_all_pairs_of_a_prompt_stay_together(kit, comparisons):
    made = sampled(kit, sets(comparisons, 2, responses=3), "coverage")
    assert set(Counter(zip(made["iteration"], made["group"], strict=True)).values()) == {3}
    assert len(made) == 36


def test_coverage_of_fresh_prompts_is_refused(kit, comparisons):
    data = sets(comparisons, 2)
    data[1] = data[1].remove_columns("prompt_id").add_column("prompt_id", list(range(12, 24)))
    with pytest.raises(UserError, match=r"prompts\.fresh must be false"):
        sampled(kit, data, "coverage")
    assert len(sampled(kit, data, "random")) == 12


def test_check_refuses_coverage_of_fresh_prompts_before_anything_is_computed():
    settings = ["prompts.fresh=true", "plugins=[{sample_data: {mode: coverage}}]"]
    with pytest.raises(UserError, match=r"^toy: plugins\.sample_data\.mode: coverage needs the sa"):
        check(load_config("toy", settings), "toy")
    for change in ("iterations=1", "prompts.fresh=false", "plugins.sample_data.mode=random"):
        check(load_config("toy", [*settings, change]), "toy")
