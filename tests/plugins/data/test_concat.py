"""concat: D_k is the union of all sets so far (Wolf 2.2)."""

from __future__ import annotations


def test_every_pair_so_far_once_and_in_order(kit, comparisons):
    one = kit.make("concat")
    sets = [comparisons(n, seed=n) for n in (3, 1, 4)]
    made = one.plugins.one("combine_data", datasets=sets, ctx=one.ctx)
    assert made.to_list() == [row for data in sets for row in data]


def test_groups_of_two_iterations_stay_apart(kit, comparisons):
    """Both number their groups from 0: a batch must not take them for one prompt's responses."""
    one = kit.make("concat")
    later = comparisons(2, seed=1, iteration=2)
    made = one.plugins.one("combine_data", datasets=[comparisons(2), later], ctx=one.ctx)
    batch = one.batch(made, one.initial())
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.iteration.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
