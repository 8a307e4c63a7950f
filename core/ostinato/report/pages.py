"""``report.html``: one self-contained page of curves, tables, sample texts and settings."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from ostinato.config.errors import UserError
from ostinato.contract.events import Event
from ostinato.report.gold_against_kl import NONE, Frontier, frontiers
from ostinato.report.results import Group, RunRecord, read_run
from ostinato.report.tables import ITERATION, LEGEND, OVER_RUNS, number, readable, spread

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2330; background: #fbfbfa;
  margin: 2.5rem auto; max-width: 62rem; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.under, figcaption, .note { color: #5b6472; }
figure { margin: 1rem 0; padding: 1rem; background: #fff; border: 1px solid #e3e5e8;
  border-radius: 8px; }
figure svg { width: 100%; height: auto; }
figcaption { font-size: .9rem; }
table { border-collapse: collapse; margin: .8rem 0; background: #fff; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #e3e5e8; text-align: left;
  vertical-align: top; }
th { font-weight: 600; } .numbers th, .numbers td { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
h3 { font-size: 1rem; margin: 1.2rem 0 0; }
.wide { width: 100%; } .wide th { width: 5rem; }
.scroll { overflow-x: auto; }
pre { background: #fff; border: 1px solid #e3e5e8; border-radius: 8px; padding: 1rem;
  overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; color: #2b5fa8; }
"""
KL_AXIS = "KL to the SFT policy (nats per response)"
COLOURS = {"gold": "#b8860b", "proxy": "#1f77b4", "gap": "#a03070", "mmd": "#2e7d5b"}
Draw = Callable[[Any], None]


def run_page(run: RunRecord) -> str:
    """The page of one run."""
    config = run.config
    plugins = ", ".join(p["name"] for p in run.facts["plugins"])
    parts = [
        f"<h1>{escape(run.path.resolve().name)}</h1>",
        f'<p class="under">seed {config["seed"]}, {len(run.iterations)} of '
        f"{config['iterations']} iterations; {escape(plugins)}</p>",
        "<h2>By iteration</h2>",
        _numbers(
            ["iteration", *(heading for heading, _, _ in ITERATION)],
            [
                [str(row["iteration"]), *(number(row.get(key), form) for _, key, form in ITERATION)]
                for row in run.iterations
            ],
        ),
        _run_curves(run),
        "<h2>What the measures mean</h2>",
        _pairs([(name, escape(meaning)) for name, meaning in LEGEND.items()]),
        "<h2>The same prompts before and after</h2>",
        _samples(run),
        "<h2>Plugins</h2>",
        _plugins(run),
        "<h2>Settings</h2>",
        _details("run.yaml", yaml.safe_dump(dict(run.facts), sort_keys=False)),
    ]
    return _page(run.path.resolve().name, parts)


def comparison_page(groups: Sequence[Group], titles: Sequence[str]) -> str:
    """The page that compares groups of runs."""
    found = frontiers(groups)
    parts = [
        "<h1>Runs compared</h1>",
        '<p class="under">Runs whose settings differ in the seed alone are one group; mean ± '
        "standard deviation over its runs, at each iteration's last evaluation.</p>",
        _group_curves(groups, titles),
        _frontier_curves(found, titles),
    ]
    for group, title, frontier in zip(groups, titles, found, strict=True):
        seeds = ", ".join(map(str, group.seeds))
        folders = ", ".join(str(run.path) for run in group.runs)
        parts += [
            f"<h2>{escape(title)}</h2>",
            f'<p class="under">{len(group.runs)} run(s), seeds {seeds}: {escape(folders)}</p>',
            _numbers(
                ["iteration", *(heading for heading, _, _ in OVER_RUNS)],
                [
                    [str(k), *(spread(group.values(k, key), form) for _, key, form in OVER_RUNS)]
                    for k in group.iterations
                ],
            ),
            _frontier(frontier),
        ]
    parts += [
        "<h2>What the measures mean</h2>",
        _pairs([(name, escape(meaning)) for name, meaning in LEGEND.items()]),
    ]
    return _page("Runs compared", parts)


def write_page(file: Path, page: str) -> None:
    """Write a page whole; UserError where the place cannot be written."""
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def _page(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · Ostinato</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _numbers(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f'<div class="scroll"><table class="numbers"><tr>{head}</tr>\n{body}</table></div>'


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and what belongs to them, which is HTML."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{html}</td></tr>\n" for name, html in rows)
    return f'<table class="wide">{body}</table>'


def _details(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _samples(run: RunRecord) -> str:
    found = []
    for k in sorted({row["iteration"] for row in run.evaluations}):
        rows = [row.get("samples", []) for row in run.evaluations if row["iteration"] == k]
        if len(rows) < 2:
            continue
        for before, after in zip(rows[0], rows[-1], strict=False):
            cells = [_sample("before", before), _sample("after", after)]
            found.append(
                f"<h3>Iteration {k}: {escape(readable(before['prompt']))}</h3>{_pairs(cells)}"
            )
    return "\n".join(found) or '<p class="note">No sample texts were kept.</p>'


def _sample(name: str, sample: Mapping[str, Any]) -> tuple[str, str]:
    gold, proxy = (number(sample.get(key), "+.2f") for key in ("gold", "proxy"))
    text = escape(readable(sample["response"])) or "(empty)"
    return name, f'{text}<br><span class="note">gold {gold}, proxy {proxy}</span>'


def _plugins(run: RunRecord) -> str:
    return _pairs(
        [
            (
                p["name"],
                f"{escape(', '.join(p['hooks']))}<br>"
                f'<span class="note">{escape(p["distribution"])} {escape(p["version"])}</span>',
            )
            for p in run.facts["plugins"]
        ]
    )


def _run_curves(run: RunRecord) -> str:
    (frontier,) = frontiers([Group([run], {})])

    def over_kl(axes: Any) -> None:
        for place, key, name in zip(axes, ("gold_reward", "proxy_reward"), LEGEND, strict=False):
            for k in sorted({row["iteration"] for row in run.evaluations}):
                rows = [r for r in run.evaluations if r["iteration"] == k and _has(r, key)]
                place.plot(
                    [r["kl"] for r in rows],
                    [r[key] for r in rows],
                    marker="o",
                    color=_shade(COLOURS[name], k, run.config["iterations"]),
                    label=f"iteration {k}",
                )
            if key == "gold_reward":
                _fitted_line(place, frontier, "#5b6472")
            place.set(xlabel=KL_AXIS, ylabel=f"{name} reward")
            place.legend(frameon=False)

    def by_iteration(axes: Any) -> None:
        for place, key in zip(axes, ("gap", "mmd"), strict=True):
            rows = [r for r in run.iterations if _has(r, key)]
            place.plot(
                [r["iteration"] for r in rows],
                [r[key] for r in rows],
                marker="o",
                color=COLOURS[key],
            )
            _by_iteration(place, "gap" if key == "gap" else "MMD")

    over = "Gold and proxy reward against KL, each iteration from left to right."
    dashed = "Dashed: " if frontier.fit is not None else ""
    return _figure(2, over_kl, f"{over} {dashed}{frontier.words()}") + _figure(
        2, by_iteration, "Gap and MMD at the end of each iteration; 0 is an honest proxy."
    )


def _group_curves(groups: Sequence[Group], titles: Sequence[str]) -> str:
    def draw(axes: Any) -> None:
        for place, (name, key) in zip(
            axes, (("gold", "gold_reward"), ("gap", "gap"), ("MMD", "mmd")), strict=True
        ):
            for i, (group, title) in enumerate(zip(groups, titles, strict=True)):
                _group_line(place, group, key, f"C{i}", title)
            _by_iteration(place, name)
        if len(groups) > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            axes[0].figure.legend(handles, labels, loc="outside upper left", frameon=False)

    return _figure(3, draw, "Means over the runs of a group; the bands are standard deviations.")


def _group_line(place: Any, group: Group, key: str, colour: str, title: str) -> None:
    import numpy as np

    found = [(k, v) for k in group.iterations if (v := group.values(k, key))]
    at = [k for k, _ in found]
    mean = np.array([np.mean(v) for _, v in found])
    std = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for _, v in found])
    place.plot(at, mean, marker="o", color=colour, label=title)
    place.fill_between(at, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)


def _frontier(frontier: Frontier) -> str:
    """Gold by bucket of KL, and what the fit says."""
    said = f'<p class="note">{escape(frontier.words())}</p>'
    if not frontier.buckets:
        return said
    rows = [
        [number(centre, ".2f"), f"{number(mean, '+.2f')} ± {number(std, '.2f')}", str(count)]
        for centre, mean, std, count in frontier.buckets
    ]
    return _numbers(["KL, middle of the bucket", "gold", "evaluations"], rows) + said


def _frontier_curves(found: Sequence[Frontier], titles: Sequence[str]) -> str:
    if not any(frontier.buckets for frontier in found):
        return f'<p class="note">{escape(NONE)}</p>'

    def draw(axes: Any) -> None:
        (place,) = axes
        for i, (frontier, title) in enumerate(zip(found, titles, strict=True)):
            if frontier.buckets:
                _frontier_line(place, frontier, f"C{i}", title)
        place.set(xlabel=KL_AXIS, ylabel="gold")
        place.axhline(0, color="#c4c8ce", linewidth=0.8, zorder=0)
        if len(found) > 1:
            place.figure.legend(loc="outside upper left", frameon=False)

    return _figure(
        1,
        draw,
        "Gold against KL over all evaluations and runs of a group: means in buckets of KL; the "
        "bands are standard deviations. Dashed: Gao's fit, a cross at its peak if KL got there.",
    )


def _frontier_line(place: Any, frontier: Frontier, colour: str, title: str) -> None:
    import numpy as np

    at, mean, std, _ = (np.array(column) for column in zip(*frontier.buckets, strict=True))
    place.plot(at, mean, marker="o", color=colour, label=title)
    place.fill_between(at, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    _fitted_line(place, frontier, colour)


def _fitted_line(place: Any, frontier: Frontier, colour: Any) -> None:
    """Gao's fit as far as KL was seen, dashed."""
    import numpy as np

    if frontier.fit is None:
        return
    largest = max(frontier.kl)
    at = np.linspace(0, largest, 100)
    place.plot(at, [frontier.height(kl) for kl in at], color=colour, linestyle="--", linewidth=1)
    d, gold = frontier.fit.predicted_peak, frontier.fit.predicted_gold
    if d is not None and d**2 <= largest:
        place.plot([d**2], [gold], color=colour, marker="x", markersize=8)


def _by_iteration(place: Any, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    place.set(xlabel="iteration", ylabel=name)
    place.xaxis.set_major_locator(MaxNLocator(integer=True))
    place.axhline(0, color="#c4c8ce", linewidth=0.8, zorder=0)


def _has(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(row.get(key), int | float)


def _shade(colour: str, iteration: int, iterations: int) -> tuple[float, ...]:
    """Early iterations pale, the last one full."""
    from matplotlib.colors import to_rgb

    strength = 1.0 if iterations == 1 else 0.3 + 0.7 * (iteration - 1) / (iterations - 1)
    return tuple(1 - strength * (1 - c) for c in to_rgb(colour))


def _figure(panels: int, draw: Draw, caption: str) -> str:
    """``draw`` on ``panels`` axes side by side, as inline SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": caption,  # the same page for the same run
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        draw(figure.subplots(1, panels, squeeze=False)[0])
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return (
        f"<figure>{svg[svg.index('<svg') :]}<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def write_report(event: Event) -> None:
    """A watcher that leaves report.html in a run when it is finished."""
    if event.kind == "run_finished":
        folder = Path(event.data["directory"])
        write_page(folder / "report.html", run_page(read_run(folder)))
