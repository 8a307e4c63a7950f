"""take_last_data: D_k is the newest set (Wolf 2.2)."""

from __future__ import annotations


def test_only_the_newest_pairs_are_left(kit, comparisons):
    one = kit.make("take_last_data")
    sets = [comparisons(3, seed=k) for k in range(3)]
    made = one.plugins.one("combine_data", datasets=sets, ctx=one.ctx)
    assert made.to_dict() == sets[2].to_dict()
