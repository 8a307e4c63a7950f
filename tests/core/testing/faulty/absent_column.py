"""Declares a column that it does not add."""

from ostinato import hookimpl

SAID = [
    "declares column 'weight_before' in `provides`, which it never adds",
]


class Faulty:
    """Halve the weight of every second comparison, and read what it was."""

    provides = ["weight_before"]
    consumes = ["weight_before"]

    @hookimpl
    def combine_data(self, datasets):
        data = datasets[-1]
        halved = [w / (1 + place % 2) for place, w in enumerate(data["weight"])]
        return data.remove_columns("weight").add_column("weight", halved)
