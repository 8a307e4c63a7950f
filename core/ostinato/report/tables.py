"""What tables show of a run's measures: headings, meanings, formats, and numbers as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

LEGEND = {
    "gold": "what the responses are really worth, by the gold model that stands for a person; "
    "0 is the SFT policy, in units of the spread over its responses",
    "proxy": "what the trained reward model says they are worth: what the policy is optimised on",
    "gap": "proxy minus gold on one scale: how far the proxy is over-optimised; 0 is honest",
    "latest": "the gap of the newest reward model alone; a minimum over models flatters the gap",
    "KL": "how far the policy has moved from the SFT policy, in nats per response",
    "MMD": "how differently proxy and gold are distributed; 0 is alike",
    "accuracy": "held-out pairs that the newest reward model puts in the labels' order",
}

# (heading, key of the row, format) of one evaluation, of one iteration, and over several runs.
EVALUATION = (
    ("gold", "gold_reward", "+.2f"),
    ("proxy", "proxy_reward", "+.2f"),
    ("gap", "gap", "+.2f"),
    ("KL", "kl", ".2f"),
    ("length", "length", ".1f"),
)
ITERATION = (
    ("gold", "gold_reward", "+.2f"),
    ("peak", "peak_gold", "+.2f"),
    ("proxy", "proxy_reward", "+.2f"),
    ("gap", "gap", "+.2f"),
    ("latest", "gap_latest", "+.2f"),
    ("KL", "kl", ".2f"),
    ("MMD", "mmd", ".3f"),
    ("accuracy", "accuracy", ".0%"),
)
OVER_RUNS = (
    ("gold", "gold_reward", "+.2f"),
    ("gap", "gap", "+.2f"),
    ("latest", "gap_latest", "+.2f"),
    ("KL", "kl", ".2f"),
    ("MMD", "mmd", ".3f"),
    ("accuracy", "accuracy", ".2f"),
)


def number(value: Any, form: str) -> str:
    """A measure as text; an en dash where there is none."""
    if not isinstance(value, int | float):
        return "–"
    text = format(value, form)
    return text[1:] if text[0] == "-" and not any(c in "123456789" for c in text) else text


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (ddof 1); the value alone of one run."""
    if not values:
        return number(None, form)
    mean = number(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {number(statistics.stdev(values), form.removeprefix('+'))}"


def readable(text: str) -> str:
    """One line; what a terminal would obey or not show becomes a middle dot."""
    return "".join(c if c.isprintable() else "·" for c in " ".join(text.split()))
