"""Let every prompt count the same, however many comparisons it has."""

from __future__ import annotations

from collections import Counter

from datasets import Dataset

from ostinato import hookimpl


class PerPromptBalance:
    """Weigh each comparison by one over the comparisons of its prompt (Book 7.4.2, equation 6)."""

    paper = "A Little Bit of RLHF, section 7.4.2, equation 6; InstructGPT"

    @hookimpl
    def refine_data(self, data: Dataset) -> Dataset:
        """Multiply ``weight`` by 1 / C(K, 2), counted over the rows that are left of the group.

        A group: the K responses to one prompt that were collected in one iteration.
        """
        table = data.to_dict()
        groups = list(zip(table["iteration"], table["group"], strict=True))
        count = Counter(groups)
        weights = zip(table["weight"], groups, strict=True)
        table["weight"] = [weight / count[group] for weight, group in weights]
        return Dataset.from_dict(table, features=data.features)
