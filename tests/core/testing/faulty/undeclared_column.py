"""Adds a column that it does not declare."""

from ostinato import hookimpl

SAID = [
    "hook 'refine_data' added column 'length', which the plugin does not declare in `provides`",
]


class Faulty:
    """Note the length of the chosen response."""

    @hookimpl
    def refine_data(self, data):
        return data.add_column("length", [len(ids) for ids in data["chosen_ids"]])
