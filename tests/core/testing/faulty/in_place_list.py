"""Changes the list of data sets that it is given."""

from ostinato import hookimpl

SAID = [
    "hook 'combine_data' changes the length of datasets, which it is given to read, in place",
]


class Faulty:
    """Take the newest data set out of the list."""

    @hookimpl
    def combine_data(self, datasets):
        return datasets.pop()
