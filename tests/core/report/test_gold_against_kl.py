"""Gold against KL over seeds: buckets, Gao's fit and what is said of its peak."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from finished_runs import make_run
from ostinato.report.gold_against_kl import NONE, frontiers
from ostinato.report.results import groups_of, read_run
from ostinato.terminal.comparison import report_runs


def run_with(path, points, seed=0, **config):
    """A finished run whose evaluations have these KLs and golds."""
    make_run(path, seed, **config)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    pattern = next(row for row in rows if row["kind"] == "eval")
    made = [pattern | {"kl": kl, "gold_reward": gold} for kl, gold in points]
    made.append(next(row for row in rows if row["kind"] == "iteration"))
    text = "".join(json.dumps(row) + "\n" for row in made)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return path


def curve(d, alpha, beta):
    return d * (alpha - beta * np.log(d))


def found_of(*paths):
    return frontiers(groups_of([read_run(path) for path in paths]))


def test_buckets_pool_the_points_of_all_seeds(tmp_path):
    """Eight buckets from 0 to the largest KL of any group, against numpy.digitize."""
    draw = np.random.default_rng(0)
    points = [
        [(k, g) for k, g in zip(draw.uniform(0, 9, 40), draw.normal(size=40), strict=True)]
        for _ in range(3)
    ]
    one = run_with(tmp_path / "a", points[0], 0)
    two = run_with(tmp_path / "b", points[1], 1)
    other = run_with(tmp_path / "c", points[2], 0, rl={"rollouts": 5})
    first, second = found_of(one, two, other)
    edges = np.linspace(0, max(k for p in points for k, _ in p), 9)
    for frontier, mine in ((first, points[0] + points[1]), (second, points[2])):
        assert frontier.edges == pytest.approx(edges.tolist())
        kl, gold = np.array(mine).T
        place = np.clip(np.digitize(kl, edges) - 1, 0, 7)
        wanted = [
            ((edges[i] + edges[i + 1]) / 2, gold[place == i].mean(), gold[place == i].std(), n)
            for i in range(8)
            if (n := int((place == i).sum()))
        ]
        np.testing.assert_allclose(frontier.buckets, wanted, rtol=1e-9, atol=1e-12)


def test_the_fit_is_scipys_over_all_seeds_and_its_peak_is_named(tmp_path):
    draw = np.random.default_rng(1)
    kl = np.linspace(0.2, 16, 30)
    gold = curve(np.sqrt(kl), 1.0, 0.6) + 0.05 * draw.normal(size=30)
    points = list(zip(kl.tolist(), gold.tolist(), strict=True))
    paths = [run_with(tmp_path / str(i), points[i::2], i) for i in range(2)]
    (frontier,) = found_of(*paths)
    (alpha, beta), _ = curve_fit(curve, np.sqrt(kl), gold)
    assert (frontier.fit.alpha, frontier.fit.beta) == pytest.approx((alpha, beta), abs=1e-6)
    d = math.exp(alpha / beta - 1)
    dense = np.linspace(0.01, 4, 4000)
    assert d == pytest.approx(dense[curve(dense, alpha, beta).argmax()], abs=2e-3)
    assert frontier.height(d**2) == pytest.approx(curve(d, alpha, beta))
    assert frontier.height(0.0) == 0.0
    error = np.sqrt(np.mean((gold - curve(np.sqrt(kl), alpha, beta)) ** 2))
    assert frontier.words() == (
        f"Gao's fit to 30 evaluations: gold = d (α - β log d), d = √KL, α {alpha:+.2f}, "
        f"β {beta:+.2f}, off by {error:.2f} (RMS); gold peaks at {curve(d, alpha, beta):+.2f}, "
        f"d {d:.3g}, KL {d**2:.3g}."
    )


def test_a_peak_that_was_not_reached_is_called_an_extrapolation(tmp_path):
    d = np.sqrt(np.linspace(0.1, 2, 12))
    peak = math.exp(2)  # KL 54.6
    said = {}
    for alpha in (1.5, 2.0, 500.0):
        points = list(zip((d**2).tolist(), curve(d, alpha, 0.5).tolist(), strict=True))
        (frontier,) = found_of(run_with(tmp_path / str(alpha), points))
        said[alpha] = frontier.words().split("; ")[1]
    assert said[1.5] == (
        f"gold peaks at {0.5 * peak:+.2f}, d {peak:.3g}, KL {peak**2:.3g}: an extrapolation, the "
        "largest KL seen is 2."
    )
    assert said[2.0] == said[500.0] == "no peak up to 100 times the largest KL seen, 2."


def test_a_curve_that_only_rises_has_no_peak(tmp_path):
    points = [(kl, kl**0.8) for kl in (0.5, 1.0, 2.0, 4.0, 8.0)]
    (frontier,) = found_of(run_with(tmp_path / "run", points))
    assert frontier.fit.beta < 0
    assert frontier.words().endswith("; no peak, for β is not above 0.")


def test_too_few_points_have_no_fit(tmp_path):
    (frontier,) = found_of(run_with(tmp_path / "run", [(0.0, 0.1), (1.0, 0.5), (2.0, 0.6)]))
    assert frontier.fit is None
    assert frontier.words() == "Gao's fit needs three evaluations of different KL above 0."


def test_the_report_prints_and_draws_them(tmp_path, capsys):
    kl = np.linspace(0.5, 16, 32)
    points = list(zip(kl.tolist(), curve(np.sqrt(kl), 1.0, 0.6).tolist(), strict=True))
    paths = [run_with(tmp_path / str(i), points, i) for i in range(2)]
    report_runs(paths, tmp_path / "all.html")
    said = " ".join(capsys.readouterr().out.split())
    words = found_of(*paths)[0].words()
    assert words in said
    assert "KL 1.00 3.00 5.00 7.00 9.00 11.00 13.00 15.00" in said
    assert "points 6 8 8 8 8 8 8 10" in said
    for page in (tmp_path / "all.html", tmp_path / "0" / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert "stroke-dasharray" in text, page
        assert "α +1.00, β +0.60" in text, page


def test_runs_without_gold_say_so(tmp_path, capsys):
    path = make_run(tmp_path / "run", golds=(None, None))
    report_runs([path], tmp_path / "all.html")
    assert NONE in " ".join(capsys.readouterr().out.split())
    for page in (tmp_path / "all.html", path / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert NONE in text, page
        assert "stroke-dasharray" not in text
