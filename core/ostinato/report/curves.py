"""Curves of a run, and of groups of runs, as inline SVG that takes the colours of its page."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ostinato.report.gold_against_kl import NONE, Frontier, frontiers
from ostinato.report.results import Group, RunRecord
from ostinato.report.tables import known

KL = "KL to the SFT policy (nats per response)"
REWARD = "reward (SFT standard deviations)"
INK = "#5b6473"  # stands for the colour that the page has for its text, be it light or dark
GOLD, PROXY, LATEST, MMD = "#c08a00", "#3b82c4", "#b0508a", "#2f9068"
COLOURS = (PROXY, "#d97a1e", MMD, "#c8504a", "#8f6bc0", "#96654f", "#d070b0", "#8f8f1f")


@dataclass(frozen=True)
class Line:
    """Points (n,) joined; ``spread`` (n,) around them is a band, or bars where ``bars``."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    bars: bool = False
    style: str = "o-"


@dataclass(frozen=True)
class Panel:
    """A pair of axes; ``level`` is where the SFT policy or an honest proxy stands."""

    x: str
    y: str
    lines: Sequence[Line]
    level: float = 0.0
    ends: Sequence[float] = ()  # of the iterations, where these lie along x
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """SVGs with one legend of (name, colour), and a caption."""

    panels: Sequence[str]
    legend: Sequence[tuple[str, str]]
    caption: str


def _figure(panels: Sequence[Panel], caption: str, alike: bool = False) -> Figure:
    """The panels that have something to show, all with the same limits where ``alike``."""
    shown = [panel for panel in panels if any(line.x for line in panel.lines)]
    lines = [line for panel in shown for line in panel.lines]
    names = dict.fromkeys((line.name, line.colour.replace(INK, "currentColor")) for line in lines)
    limits = [_range([v for one in lines for v in of(one)]) for of in (_xs, _ys)] if alike else []
    legend = [entry for entry in names if entry[0]]
    return Figure([_svg(p, limits) for p in shown], legend if len(legend) > 1 else [], caption)


def run_figures(run: RunRecord) -> list[Figure]:
    """Rewards and wins over rollouts, Gao's figure, and what the iterations ended with."""
    group = Group([run], {})
    last = [max(r["step"] for r in run.evaluations if r["iteration"] == k) for k in group.evaluated]
    ends = list(accumulate(last))
    start = dict(zip(group.evaluated, [0, *ends], strict=False))

    def over(x: str, k: int, key: str, name: str, colour: str) -> Line:
        points = group.points(k, x, key)
        shift = start[k] if x == "step" else 0
        return Line(name, colour, [at + shift for at, _ in points], [y for _, y in points])

    def rollouts(label: str, gold: str, proxy: str, level: float) -> Panel:
        both = (gold, "gold", GOLD), (proxy, "proxy", PROXY)
        lines = [over("step", k, *one) for k in group.evaluated for one in both]
        return Panel("rollouts", label, lines, level, ends[:-1])

    def gao(k: int, fits: Sequence[Frontier]) -> Panel:
        lines = [
            over("kl", k, "gold_sft_std", "gold", GOLD),
            over("kl", k, "proxy_sft_std", "proxy", PROXY),
            *(line for fit in fits if fit.iteration == k for line in _fit(fit, INK, "Gao's fit")),
        ]
        return Panel(KL, REWARD, lines, title=f"iteration {k}")

    def ended(key: str, name: str, colour: str) -> Line:
        rows = [row for row in run.iterations if known(row, key)]
        errors = [row[f"{key}_se"] for row in rows if known(row, f"{key}_se")]
        at, y = [row["iteration"] for row in rows], [row[key] for row in rows]
        return Line(name, colour, at, y, errors if len(errors) == len(rows) else (), bars=True)

    (found,) = frontiers([group])
    gaps = [ended("gap", "gap", PROXY), ended("gap_latest", "gap, newest model alone", LATEST)]
    return [
        _figure(
            [
                rollouts(REWARD, "gold_sft_std", "proxy_sft_std", 0.0),
                rollouts("share of prompts won", "gold_wins", "proxy_wins", 0.5),
            ],
            "Over the rollouts of all iterations, which the dotted lines part. The grey line is "
            "the SFT policy; between the two shares of prompts won lies the gap.",
        ),
        _figure(
            [gao(k, found) for k in group.evaluated],
            "Gold and proxy against KL, and Gao's fit to gold." if found else NONE,
            alike=True,
        ),
        _figure(
            [
                Panel("iteration", "gap, with its standard error", gaps),
                Panel("iteration", "MMD", [ended("mmd", "MMD", MMD)]),
            ],
            "At the end of each iteration; 0 is an honest proxy.",
        ),
    ]


def group_figures(groups: Sequence[Group], titles: Sequence[str]) -> list[Figure]:
    """The ends of the iterations, and gold against KL, a line a group."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(groups))]
    named = list(zip(groups, titles, colours, frontiers(groups), strict=True))

    def ended(label: str, key: str, level: float = 0.0) -> Panel:
        lines = []
        for group, title, colour, _ in named:
            found = {k: values for k in group.iterations if (values := group.values(k, key))}
            means = [statistics.fmean(values) for values in found.values()]
            stds = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in found.values()]
            lines.append(Line(title, colour, list(found), means, stds))
        return Panel("iteration", label, lines, level)

    def gao(k: int) -> Panel:
        lines = []
        for _, title, colour, found in named:
            for frontier in (one for one in found if one.iteration == k):
                at, mean, std, _ = zip(*frontier.buckets, strict=True)
                lines += [Line(title, colour, at, mean, std), *_fit(frontier, colour)]
        return Panel(KL, "gold (SFT standard deviations)", lines, title=f"iteration {k}")

    iterations = sorted({one.iteration for _, _, _, found in named for one in found})
    return [
        _figure(
            [
                ended("gold (SFT standard deviations)", "gold_sft_std"),
                ended("gold wins", "gold_wins", 0.5),
                ended("gap", "gap"),
                ended("MMD", "mmd"),
            ],
            "At the end of each iteration: means over the runs of a group; the bands are standard "
            "deviations.",
        ),
        _figure(
            [gao(k) for k in iterations],
            "Gold against KL: means over the evaluations of a group's runs in buckets of KL, each "
            "at the mean KL of its points; the bands are standard deviations. Dashed: Gao's fit, "
            "with a cross at its peak."
            if iterations
            else NONE,
            alike=True,
        ),
    ]


def _fit(frontier: Frontier, colour: str, name: str = "") -> list[Line]:
    """Gao's fit as far as KL was seen, and a cross at its peak."""
    if frontier.fit is None:
        return []
    at = [max(frontier.kl) * i / 60 for i in range(61)]
    curve = Line(name, colour, at, [frontier.height(kl) for kl in at], style="--")
    if frontier.peak is None:
        return [curve]
    kl, gold = frontier.peak
    return [curve, Line("", colour, [kl], [gold], style="x")]


def _xs(line: Line) -> Sequence[float]:
    return line.x


def _ys(line: Line) -> Sequence[float]:
    spread = line.spread or [0.0] * len(line.y)
    return [y + s * e for y, e in zip(line.y, spread, strict=True) for s in (-1, 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest, 0 among them, and a little air."""
    low, high = min([0.0, *values]), max([0.0, *values])
    air = 0.05 * (high - low or 1.0)
    return low - air, high + air


def _svg(panel: Panel, limits: Sequence[tuple[float, float]]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        **dict.fromkeys(ink, INK),
        "svg.fonttype": "none",
        "svg.hashsalt": "ostinato",  # the same page for the same run
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        canvas = Canvas(figsize=(4.8, 3.2), layout="constrained")
        place = canvas.subplots()
        place.axhline(panel.level, color=INK, alpha=0.4, linewidth=0.8, zorder=0)
        for end in panel.ends:
            place.axvline(end, color=INK, alpha=0.4, linewidth=0.8, linestyle=":", zorder=0)
        for line in panel.lines:
            place.plot(line.x, line.y, line.style, color=line.colour, markersize=4)
            if line.spread and line.bars:
                place.errorbar(line.x, line.y, line.spread, color=line.colour, fmt="none")
            elif line.spread:
                low, high = _ys(line)[::2], _ys(line)[1::2]
                place.fill_between(line.x, low, high, color=line.colour, alpha=0.15, linewidth=0)
        place.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)
        if limits:
            place.set(xlim=limits[0], ylim=limits[1])
        if panel.x == "iteration":
            place.xaxis.set_major_locator(MaxNLocator(integer=True))
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
