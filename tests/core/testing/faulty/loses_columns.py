"""Loses the columns of others."""

from datasets import Dataset

from ostinato import hookimpl

SAID = [
    "beside concat",
]

SIDES = ("chosen", "rejected")
OWN = (
    *("group", "prompt_id", "iteration", "prompt", "prompt_ids", "label", "margin"),
    *(side + of for side in SIDES for of in ("", "_ids", "_finished", "_id", "_gold")),
)


class Faulty:
    """Halve the weight of every comparison."""

    @hookimpl
    def refine_data(self, data):
        rows = [{key: row[key] for key in OWN} | {"weight": 0.5} for row in data]
        return Dataset.from_list(rows)
