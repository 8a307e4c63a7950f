"""Fails where there is a history."""

from ostinato import hookimpl

SAID = [
    "hook 'combine_data' (raises_late.py, line 16) raises ValueError: I can join one data set only",
]


class Faulty:
    """Take the only data set."""

    @hookimpl
    def combine_data(self, datasets):
        if len(datasets) > 1:
            raise ValueError("I can join one data set only")
        return datasets[0]
