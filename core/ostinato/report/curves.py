"""Curves of a run, and of groups of runs, as inline SVG that takes the colours of its page."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ostinato.report.gold_against_kl import Frontier
from ostinato.report.results import Group, RunRecord
from ostinato.report.tables import known

KL = "KL to the SFT policy (nats per response)"
REWARD = "reward (SFT standard deviations)"
INK = "#5b6473"  # stands for the colour that the page has for its text, be it light or dark
GOLD, PROXY, LATEST, MMD, FIT = "#c08a00", "#3b82c4", "#b0508a", "#2f9068", "#c8504a"
COLOURS = (PROXY, "#d97a1e", MMD, FIT, "#8f6bc0", "#96654f", "#d070b0", "#8f8f1f")
FAINT: dict[str, Any] = {"color": INK, "alpha": 0.4, "linewidth": 0.8, "zorder": 0}
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "svg.fonttype": "none",
    "svg.hashsalt": "ostinato",  # the same page for the same run
    "font.family": "sans-serif",
    "font.size": 10,
}


@dataclass(frozen=True)
class Curves:
    """SVGs with one legend, of names with their colours."""

    panels: Sequence[str]
    legend: Mapping[str, str]


@rc_context(STYLE)
def run_curves(run: RunRecord, found: Sequence[Frontier]) -> list[Curves]:
    """Rewards and wins over rollouts, Gao's figure, and what the iterations ended with."""
    group = Group([run])
    fits = {frontier.iteration: frontier for frontier in found}
    over_rollouts = {
        ("gold_sft_std", "proxy_sft_std"): _axes("rollouts", REWARD),
        ("gold_wins", "proxy_wins"): _axes("rollouts", "share of prompts won", level=0.5),
    }
    over_kl = []
    start = 0.0
    for k in group.evaluated:
        over_kl.append(_axes(KL, REWARD, f"iteration {k}"))
        for key, colour in ("gold_sft_std", GOLD), ("proxy_sft_std", PROXY):
            _draw(over_kl[-1], colour, group.points(k, "kl", key))
        if k in fits:
            _draw_fit(over_kl[-1], FIT, fits[k])
        for keys, axes in over_rollouts.items():
            if start:
                axes.axvline(start, linestyle=":", **FAINT)
            for key, colour in zip(keys, (GOLD, PROXY), strict=True):
                points = group.points(k, "step", key)
                _draw(axes, colour, [(step + start, value) for step, value in points])
        start += max(group.points(k, "step"))[0]
    gaps, mmd = _axes("iteration", "gap, with its standard error"), _axes("iteration", "MMD")
    for axes, key, colour in (gaps, "gap", PROXY), (gaps, "gap_latest", LATEST), (mmd, "mmd", MMD):
        rows = [(row, f"{key}_se") for row in run.iterations if known(row, key)]
        ends = [(r["iteration"], r[key], r[se] if known(r, se) else 0.0) for r, se in rows]
        _draw(axes, colour, ends)
    names = {"gold": GOLD, "proxy": PROXY, "Gao's fit": FIT}
    return [
        _curves(over_rollouts.values(), names),
        _curves(over_kl, names, alike=True),
        _curves([gaps, mmd], {"gap": PROXY, "gap, newest model alone": LATEST, "MMD": MMD}),
    ]


@rc_context(STYLE)
def group_curves(listed: Sequence[tuple[Group, str, Sequence[Frontier]]]) -> list[Curves]:
    """The ends of the iterations, and gold against KL, a line a group."""
    colours = dict(zip((title for _, title, _ in listed), cycle(COLOURS), strict=False))
    gold = "gold (SFT standard deviations)"
    at_ends = {
        "gold_sft_std": _axes("iteration", gold),
        "gold_wins": _axes("iteration", "gold wins", level=0.5),
        "gap": _axes("iteration", "gap"),
        "mmd": _axes("iteration", "MMD"),
    }
    evaluated = sorted({k for group, _, _ in listed for k in group.evaluated})
    over_kl = {k: _axes(KL, gold, f"iteration {k}") for k in evaluated}
    for (group, _, found), colour in zip(listed, colours.values(), strict=True):
        for key, axes in at_ends.items():
            ends = [
                (k, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0)
                for k in group.iterations
                if (v := group.values(k, key))
            ]
            _draw(axes, colour, ends)
        for frontier in found:
            axes = over_kl[frontier.iteration]
            _draw(axes, colour, [bucket[:3] for bucket in frontier.buckets.values()])
            _draw_fit(axes, colour, frontier)
    return [_curves(at_ends.values(), colours), _curves(over_kl.values(), colours, alike=True)]


def _axes(x: str, y: str, title: str = "", level: float = 0.0) -> Axes:
    """Empty axes; ``level`` is where the SFT policy or an honest proxy stands."""
    axes = Figure(figsize=(4.8, 3.2), layout="constrained").subplots()
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.axhline(level, **FAINT)
    if x == "iteration":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def _draw(axes: Axes, colour: str, points: Sequence[Sequence[float]], style: str = "o-") -> None:
    """Join points (x, y), or (x, y, what the bar around it stands for)."""
    if points:
        x, y, *bars = zip(*points, strict=True)
        axes.errorbar(x, y, bars[0] if bars else None, fmt=style, color=colour, markersize=4)


def _draw_fit(axes: Axes, colour: str, frontier: Frontier) -> None:
    """Gao's fit as far as KL was seen, and a cross at its peak."""
    if frontier.fit is not None:
        at = [max(frontier.kl) * i / 60 for i in range(61)]
        _draw(axes, colour, [(kl, frontier.fit.height(kl)) for kl in at], "--")
    if frontier.peak is not None:
        _draw(axes, colour, [frontier.peak], "x")


def _curves(panels: Iterable[Axes], names: Mapping[str, str], alike: bool = False) -> Curves:
    """The panels that have something to show, all with the same limits where ``alike``."""
    shown = [axes for axes in panels if axes.containers]
    for axes in shown[1:] if alike else ():
        axes.sharex(shown[0])
        axes.sharey(shown[0])
        axes.autoscale_view()
    drawn = {line.get_color() for axes in shown for line in axes.lines}
    legend = {name: colour for name, colour in names.items() if colour in drawn}
    return Curves([_svg(axes) for axes in shown], legend if len(legend) > 1 else {})


def _svg(axes: Axes) -> str:
    out = io.StringIO()
    assert isinstance(axes.figure, Figure)  # it has no subfigures
    axes.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
