"""Draws from NumPy's global generator."""

import numpy as np

from ostinato import hookimpl

SAID = [
    "hook 'label' draws from NumPy's global random generator; draw from ctx.generator",
]


class Faulty:
    """Label by a coin."""

    @hookimpl
    def label(self, comparisons):
        return np.random.rand(len(comparisons)).round()
