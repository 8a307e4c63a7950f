"""Gold against KL over seeds: buckets, Gao's fit by iteration, and what is said of its peak."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import binned_statistic

from finished_runs import make_run
from ostinato.report.gold_against_kl import FIT, NONE, Frontier, frontiers
from ostinato.report.results import groups_of, read_run
from ostinato.terminal.comparison import buckets_of, report_runs
from ostinato.terminal.printing import Screen, show


def run_with(path, *iterations, seed=0, **config):
    """A finished run whose evaluations have these KLs and golds, one list an iteration."""
    make_run(path, seed, golds=(0.5,) * len(iterations), **config)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    made = []
    for k, points in enumerate(iterations, start=1):
        mine = [row for row in rows if row["iteration"] == k]
        made += [
            mine[0] | {"step": i, "kl": p[0], "gold_sft_std": p[1]} for i, p in enumerate(points)
        ]
        made.append(mine[-1])
    text = "".join(json.dumps(row) + "\n" for row in made)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return path


def curve(d, alpha, beta):
    return d * (alpha - beta * np.log(d))


def on_curve(kl, alpha, beta, noise=0.0, seed=1):
    kl = np.asarray(kl)
    gold = curve(np.sqrt(kl), alpha, beta) + noise * np.random.default_rng(seed).normal(
        size=len(kl)
    )
    return list(zip(kl.tolist(), gold.tolist(), strict=True))


def found_of(*paths):
    return frontiers(groups_of([read_run(path) for path in paths]))


def test_buckets_pool_the_points_of_all_seeds_of_an_iteration(tmp_path):
    """Eight buckets up to the largest KL of any group, at their mean KL, against scipy.

    The first group has the smaller KLs: its own edges would leave most of the second's points out.
    """
    draw = np.random.default_rng(0)

    def points(largest):
        pairs = zip(draw.uniform(0.1, largest, 40), draw.normal(size=40), strict=True)
        return [(float(k), float(g)) for k, g in pairs]

    runs = [[points(3), points(2)], [points(3), points(2)], [points(9), points(8)]]
    one = run_with(tmp_path / "a", *runs[0], seed=0)
    two = run_with(tmp_path / "b", *runs[1], seed=1)
    other = run_with(tmp_path / "c", *runs[2], seed=0, rl={"rollouts": 5})
    first, second = found_of(one, two, other)
    largest = max(k for run in runs for found in run for k, _ in found)
    edges = np.array([0, largest / 1000, *(np.linspace(0, largest, 9)[1:])])
    assert [len(first), len(second)] == [2, 2]
    for k in (0, 1):
        for frontier, mine in ((first[k], runs[0][k] + runs[1][k]), (second[k], runs[2][k])):
            assert frontier.iteration == k + 1
            assert frontier.edges == pytest.approx(edges.tolist())
            kl, gold = np.array(mine).T
            wanted = np.array(
                [
                    binned_statistic(kl, values, statistic, edges).statistic
                    for values, statistic in (
                        (kl, "mean"),
                        (gold, "mean"),
                        (gold, "std"),
                        (gold, "count"),
                    )
                ]
            ).T
            filled = [place for place in range(9) if wanted[place, 3]]
            assert list(frontier.buckets) == filled
            got = np.array(list(frontier.buckets.values()))
            np.testing.assert_allclose(got, wanted[filled], rtol=1e-9, atol=1e-12)


def test_the_sft_policy_is_drawn_at_0(tmp_path):
    """Though the next evaluation lies within an eighth of the largest KL."""
    ((frontier,),) = found_of(run_with(tmp_path / "run", [(0, 0.125), (0.5, 0.25), (8, 1.0)]))
    buckets = list(frontier.buckets.values())
    assert buckets == [(0, 0.125, 0, 1), (0.5, 0.25, 0, 1), (8, 1.0, 0, 1)]


def test_the_fit_of_an_iteration_is_scipys_over_all_seeds(tmp_path):
    """Each iteration has its own proxy, so its own curve."""
    truths = [(1.0, 0.6), (1.6, 0.7)]
    kl = np.linspace(0.2, 16, 30)
    points = [on_curve(kl, *truth, noise=0.05, seed=i) for i, truth in enumerate(truths)]
    paths = [run_with(tmp_path / str(i), *[p[i::2] for p in points], seed=i) for i in range(2)]
    (found,) = found_of(*paths)
    for frontier, mine in zip(found, points, strict=True):
        gold = np.array([g for _, g in mine])
        (alpha, beta), _ = curve_fit(curve, np.sqrt(kl), gold)
        assert (frontier.fit.alpha, frontier.fit.beta) == pytest.approx((alpha, beta), abs=1e-6)
        dense = np.linspace(0.01, 4, 40000)
        d = dense[curve(dense, alpha, beta).argmax()]
        assert frontier.peak == pytest.approx((d**2, curve(d, alpha, beta)), abs=2e-3)
        error = np.sqrt(np.mean((gold - curve(np.sqrt(kl), alpha, beta)) ** 2))
        low, high = frontier.interval
        assert frontier.cells() == [
            str(frontier.iteration),
            "30",
            f"{alpha:+.2f}",
            f"{beta:+.2f}",
            f"{error:.2f}",
            f"{curve(d, alpha, beta):+.2f} at KL {frontier.peak[0]:.3g} ({low:.3g} to {high:.3g})",
        ]


def test_the_interval_holds_the_true_peak_about_as_often_as_it_says():
    """40 draws of noise around one curve: 95 % would be 38 of them, below 34 is no accident."""
    truth = math.exp(1.0 / 0.6 - 1) ** 2
    intervals = []
    for seed in range(40):
        points = on_curve(np.linspace(0.5, 16, 24), 1.0, 0.6, noise=0.1, seed=seed)
        kl, gold = map(list, zip(*points, strict=True))
        intervals.append(Frontier(1, kl, gold, [0.0, 16.0]).interval)
    assert sum(low <= truth <= high for low, high in intervals) >= 34
    assert max(high - low for low, high in intervals) < 2


def test_an_interval_beyond_what_was_evaluated_says_so(tmp_path):
    """A flat top and much noise: the ends are not read off where nothing was evaluated."""
    points = on_curve(np.linspace(2, 6, 9), 1.0, 0.62, noise=0.2, seed=7)
    ((frontier,),) = found_of(run_with(tmp_path / "run", points))
    low, high = frontier.interval
    assert low < 2
    assert high > 6
    assert frontier.cells()[-1].endswith("(<2 to >6)")


@pytest.mark.parametrize(
    ("alpha", "kl", "words"),
    [
        (1.5, (0.1, 2), "none: rises to KL 2, the last seen"),  # it peaks at KL 54.6
        (500.0, (0.1, 2), "none: rises to KL 2, the last seen"),  # beyond any float
        (0.4, (1.9, 8), "none: falls from KL 1.9, the first seen"),  # it peaks at KL .67
    ],
)
def test_no_peak_is_named_where_evaluations_lie_on_one_side(tmp_path, alpha, kl, words):
    points = [(0.0, 0.0), *on_curve(np.linspace(*kl, 12), alpha, 0.5)]
    ((frontier,),) = found_of(run_with(tmp_path / "run", points))
    assert frontier.peak is None
    assert frontier.cells()[-1] == words


def test_a_curve_that_only_rises_has_no_peak(tmp_path):
    points = [(kl, kl**0.8) for kl in (0.5, 1.0, 2.0, 4.0, 8.0)]
    ((frontier,),) = found_of(run_with(tmp_path / "run", points))
    assert frontier.fit.beta < 0
    assert frontier.cells()[-1] == "none: β is not above 0"


def test_too_few_points_have_no_fit(tmp_path):
    points = [(0.0, 0.1), (1.0, 0.5), (2.0, 0.6)]
    ((frontier,),) = found_of(run_with(tmp_path / "run", points))
    assert frontier.fit is None
    assert frontier.cells() == ["1", "3", "–", "–", "–", "needs three evaluations of different KL"]


def test_the_report_prints_and_draws_them(tmp_path, capsys):
    points = on_curve(np.linspace(0.5, 16, 32), 1.0, 0.6)
    paths = [run_with(tmp_path / str(i), points, points[::2], seed=i) for i in range(2)]
    report_runs(paths, tmp_path / "all.html")
    said = " ".join(capsys.readouterr().out.split())
    ((one, two),) = found_of(*paths)
    assert FIT in said
    for frontier in (one, two):
        assert " ".join(frontier.cells()) in said
        assert "+1.17 at KL 3.79 (3.79 to 3.79)" in frontier.cells()[-1]
    assert "to to to to to to to to iter. 2.00 4.00 6.00 8.00 10.00 12.00 14.00 16.00" in said
    for page in (tmp_path / "all.html", tmp_path / "0" / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert text.count("stroke-dasharray: 5.55,2.4") == 2, page  # a fit an iteration
        assert "<td>+1.17 at KL 3.79 (3.79 to 3.79)</td>" in text, page


def test_the_table_of_buckets_leaves_gaps_open(tmp_path, capsys):
    first, second = [(0, 0.5), (8.0, 1.0), (7.5, 2.0)], [(0, 0.25), (4.5, -1.0)]
    (found,) = found_of(run_with(tmp_path / "run", first, second))
    show(Screen(width=80), buckets_of(found))
    lines = [
        " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()
    ]
    assert lines[0:2] == ["at to to", "iter. 0 5.00 8.00"]
    assert lines[3:] == ["1 +0.50 – +1.50", "± 0.50", "2 +0.25 -1.00 –"]


def test_runs_without_gold_say_so(tmp_path, capsys):
    path = make_run(tmp_path / "run", golds=(None, None))
    report_runs([path], tmp_path / "all.html")
    said = " ".join(capsys.readouterr().out.split())
    assert NONE in said
    assert FIT not in said
    for page in (tmp_path / "all.html", path / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert NONE in text, page
        assert "stroke-dasharray: 5.55,2.4" not in text
