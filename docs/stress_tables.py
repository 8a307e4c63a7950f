"""The tables of docs/stress.md and of the READMEs in contrib/, from docs/measured/stress.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "measured" / "stress.csv"
HEAD = "| run | peak gold | gold at the end | lost | KL | gold wins | gap | seeds |"
CONTROLS = {  # beside the default
    "group": ["rloo"],
    "selection": ["default, 2 members", "default, 2 iterations"],
    "uncertainty": ["default, 3 members"],
}
Curve = list[dict[str, float]]  # the evaluations of the last iteration


def runs() -> dict[str, dict[str, dict[int, Curve]]]:
    """Curves by package, method and seed."""
    found: dict[str, dict[str, dict[int, Curve]]] = {}
    with DATA.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = {k: float(v) for k, v in row.items() if k not in ("package", "method")}
            of = found.setdefault(row["package"], {}).setdefault(row["method"], {})
            of.setdefault(int(row["seed"]), []).append(numbers)
    return {
        package: {
            method: {
                seed: [row for row in rows if row["iteration"] == rows[-1]["iteration"]]
                for seed, rows in seeds.items()
            }
            for method, seeds in methods.items()
        }
        for package, methods in found.items()
    }


def stress(package: str) -> str:
    """A row a method of the package; the defaults stand above it."""
    known = runs()
    shown = known["default"] if package == "default" else _defaults(known, package)
    lines = [HEAD, "|---|---|---|---|---|---|---|---|"]
    for method, seeds in shown.items():
        lines.append(f"| {method} | {' | '.join(_cells(list(seeds.values())))} | {len(seeds)} |")
    return "\n".join(lines)


def _defaults(known: dict[str, Any], package: str) -> dict[str, Any]:
    """The package's methods below what they are to be compared with."""
    shown = ["default", *CONTROLS.get(package, ())]
    return {name: known["default"][name] for name in shown} | known.get(package, {})


def _cells(curves: list[Curve]) -> list[str]:
    """Mean ± standard deviation over seeds of each column."""
    peaks = [max(row["gold_sft_std"] for row in curve) for curve in curves]
    ends = [curve[-1] for curve in curves]
    columns: list[tuple[list[float], str]] = [
        (peaks, "+.2f"),
        ([end["gold_sft_std"] for end in ends], "+.2f"),
        ([peak - end["gold_sft_std"] for peak, end in zip(peaks, ends, strict=True)], ".2f"),
        ([end["kl"] for end in ends], ".0f"),
        ([end["gold_wins"] for end in ends], ".2f"),
        ([end["gap"] for end in ends], "+.2f"),
    ]
    return [_spread(values, form) for values, form in columns]


def _spread(values: list[float], form: str) -> str:
    if len(values) < 2:
        return format(values[0], form)
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return f"{mean:{form}}&nbsp;±&nbsp;{deviation:{form.removeprefix('+')}}"


MAKERS: dict[str, Callable[..., str]] = {"stress": stress}
