"""Every draw has its own name, and the same name draws the same numbers, come what may."""

from __future__ import annotations

import itertools

import torch

from ostinato.config.draws import Draws, seed_for


def test_seeds_are_those_of_every_machine() -> None:
    # The first 63 bits of sha256("0/rollout/1/2/0"), worked out with coreutils' sha256sum.
    assert seed_for(0, "rollout", 1, 2) == 0x3F9FA0EFD5A53478
    places = itertools.product([0, 1], ["a", "b"], [0, 1, 11], [0, 1, 11], [0, 1])
    seeds = [seed_for(*place) for place in places]
    assert len(set(seeds)) == len(seeds) == 72
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_depends_on_its_name_alone() -> None:
    draws = Draws(3, iteration=2)
    first = torch.randn(4, generator=draws.generator("x", step=1))
    torch.randn(100, generator=draws.generator("y"))
    torch.manual_seed(5)
    assert torch.equal(first, torch.randn(4, generator=draws.generator("x", step=1)))
    others = [draws.generator("x", step=2), draws.generator("z", step=1)]
    others += [Draws(4, 2).generator("x", step=1), Draws(3, 3).generator("x", step=1)]
    others += [Draws(3, 2, rank=1).generator("x", step=1)]
    for other in others:
        assert not torch.equal(first, torch.randn(4, generator=other))


def test_a_fork_is_seeded_and_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn = []
    for _ in range(2):
        with Draws(1).forked("dropout", step=4):
            drawn.append(torch.nn.functional.dropout(torch.ones(64)))
    with Draws(1).forked("dropout", step=5):
        drawn.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
