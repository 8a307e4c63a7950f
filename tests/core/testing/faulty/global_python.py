"""Draws from Python's global generator."""

import random

from ostinato import hookimpl

SAID = [
    "hook 'refine_data' draws from Python's global random generator; draw from ctx.generator",
]


class Faulty:
    """Weigh comparisons by chance."""

    @hookimpl
    def refine_data(self, data):
        drawn = [random.choice([0.5, 2.0]) for _ in range(len(data))]
        return data.remove_columns("weight").add_column("weight", drawn)
