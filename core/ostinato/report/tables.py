"""What tables show of a run's measures: headings, meanings, formats, and numbers as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

LEGEND = {
    "gold": "what the responses are worth by the gold model, which stands for a person; in "
    "standard deviations of gold over the SFT policy's responses, whose mean is 0",
    "peak": "the highest gold of an iteration; above the last one, the policy went too far",
    "proxy": "what the reward that the policy is optimised on says they are worth, likewise",
    "gold wins": "prompts on which the policy's response beats the SFT policy's, by gold; 50% is "
    "no better, whatever the scale of gold",
    "proxy wins": "the same by the proxy",
    "gap": "proxy wins minus gold wins, from -1 to 1, ± its standard error: how far the proxy "
    "promises more than gold keeps; 0 is honest",
    "latest": "the gap of the newest reward model alone; a minimum over models flatters the gap",
    "KL": "how far the policy has moved from the SFT policy, in nats per response",
    "spearman": "whether the proxy ranks the policy's own responses as gold does; 1 is alike, 0 "
    "is chance",
    "MMD": "how differently proxy and gold are distributed, each on its own scale; 0 is alike",
    "accuracy": "held-out pairs that the newest reward model puts in gold's order",
}

# (heading, key of the row, format) of one evaluation, of one iteration, and over several runs.
EVALUATION = (
    ("gold", "gold_sft_std", "+.2f"),
    ("proxy", "proxy_sft_std", "+.2f"),
    ("gold wins", "gold_wins", ".0%"),
    ("proxy wins", "proxy_wins", ".0%"),
    ("gap", "gap", "+.2f"),
    ("KL", "kl", ".2f"),
    ("length", "length", ".1f"),
)
ITERATION = (
    ("gold", "gold_sft_std", "+.2f"),
    ("peak", "peak_gold", "+.2f"),
    ("gold wins", "gold_wins", ".0%"),
    ("proxy wins", "proxy_wins", ".0%"),
    ("gap", "gap", "+.2f ±"),  # with its standard error
    ("latest", "gap_latest", "+.2f"),
    ("KL", "kl", ".2f"),
    ("spearman", "spearman", ".2f"),
    ("accuracy", "accuracy", ".0%"),
)
OVER_RUNS = tuple((h, key, form.removesuffix(" ±")) for h, key, form in ITERATION if h != "peak")
MMD = ("MMD", "mmd", ".3f")  # on pages, where there is room

SATURATED = 0.98


def known(row: Mapping[str, Any], key: str) -> bool:
    """Whether a row has this number."""
    return isinstance(row.get(key), int | float)


def number(value: Any, form: str) -> str:
    """A measure as text; an en dash where there is none."""
    if not isinstance(value, int | float):
        return "–"
    text = format(value, form)
    return text[1:] if text[0] == "-" and not any(c in "123456789" for c in text) else text


def measured(row: Mapping[str, Any], key: str, form: str) -> str:
    """A measure of a row, with its standard error where the format ends in ``±``."""
    text = number(row.get(key), form.removesuffix(" ±"))
    error = row.get(f"{key}_se") if form.endswith("±") else None
    return text if error is None else f"{text} ±{number(error, '.2f')}"


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (ddof 1); the value alone of one run."""
    if not values:
        return number(None, form)
    mean = number(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {number(statistics.stdev(values), form.removeprefix('+'))}"


def saturation(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where so many prompts are won that their shares tell little; else nothing."""
    where = {
        name: {row["iteration"] for row in rows if known(row, key) and row[key] > SATURATED}
        for name, key in (("gold wins", "gold_wins"), ("proxy wins", "proxy_wins"))
    }
    names = " and ".join(name for name, found in where.items() if found)
    if not names:
        return ""
    iterations = ", ".join(map(str, sorted(set().union(*where.values()))))
    return (
        f"Saturated: {names} above {SATURATED:.0%} in iteration {iterations}; a gap between shares "
        "so near 1 says little, so look at gold, proxy and spearman."
    )


def readable(text: str, most: int | None = None) -> str:
    """One line, of at most so many characters; what a terminal would obey becomes a middle dot."""
    line = "".join(c if c.isprintable() else "·" for c in " ".join(text.split()))
    return line if most is None or len(line) <= most else line[: most - 3] + "..."
