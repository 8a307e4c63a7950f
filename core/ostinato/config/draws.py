"""Named random draws: every generator is seeded from (seed, purpose, iteration, step, rank).

No generator state is ever saved: a resumed run asks for the same names and draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


def seed_for(seed: int, purpose: str, iteration: int = 0, step: int = 0, rank: int = 0) -> int:
    """A 63-bit seed, the same on every machine."""
    text = f"{seed}/{purpose}/{iteration}/{step}/{rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Draws:
    """The run's source of randomness; ``generator(purpose)`` is fresh at each call."""

    seed: int
    iteration: int = 0
    rank: int = 0

    def generator(
        self, purpose: str, step: int = 0, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """A generator for one purpose at one step, on ``device``."""
        made = torch.Generator(device=device)
        made.manual_seed(seed_for(self.seed, purpose, self.iteration, step, self.rank))
        return made

    @contextmanager
    def forked(self, purpose: str, step: int = 0) -> Iterator[None]:
        """Seed the global generators (dropout has no other) inside the block only."""
        there = torch.accelerator.is_available()
        found = torch.accelerator.current_accelerator() if there else None
        devices = range(torch.accelerator.device_count()) if found else ()
        with torch.random.fork_rng(devices=devices, device_type=found.type if found else "cpu"):
            torch.manual_seed(seed_for(self.seed, purpose, self.iteration, step, self.rank))
            yield
