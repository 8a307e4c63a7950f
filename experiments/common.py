"""What the synthetic experiments share: arguments, tables, raw numbers, the look of a figure."""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # the backend is chosen before
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with every common kind of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, GREY = "#cc79a7", "#56b4e9", "#767676"

Row = dict[str, Any]


def arguments(text: str | None, name: str, seeds: int = 10) -> argparse.Namespace:
    """``--seeds`` and ``--out``; ``text`` is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=seeds, help="independent repetitions")
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    found = parser.parse_args()
    if found.seeds < 2:
        parser.error("--seeds must be at least 2: a standard deviation needs two values")
    torch.set_num_threads(1)  # the models are too small to share
    return found


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard deviation (ddof 1) as text."""
    mean, std = statistics.fmean(values), statistics.stdev(values)
    text = f"{format(mean, form)}&nbsp;±&nbsp;{format(std, form)}"
    return text.replace("-0.00&", "0.00&")


def column(rows: Sequence[Row], key: str, **where: Any) -> list[float]:
    """The values of ``key`` in the rows that have all of ``where``, in their order."""
    return [float(r[key]) for r in rows if all(r[k] == v for k, v in where.items())]


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def axes(columns: int, width: float = 9.6, height: float = 3.4, **more: Any) -> tuple[Figure, Any]:
    """A figure with one row of axes in the style of the documentation."""
    plt.rcParams.update(
        {
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "font.size": 9,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "svg.hashsalt": "ostinato",  # the same bytes for the same numbers
        }
    )
    figure, found = plt.subplots(1, columns, figsize=(width, height), layout="constrained", **more)
    return figure, found


def write(out: Path, name: str, rows: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """``NAME.csv`` with the raw numbers and ``NAME.svg``, both into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    print(f"\nwritten: {out / f'{name}.csv'}, {out / f'{name}.svg'}")
