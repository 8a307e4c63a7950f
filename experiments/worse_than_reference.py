"""How often does a policy optimised on noisy rewards end up worse than the one it started from?

    python experiments/worse_than_reference.py --seeds 10 --out runs/worse_than_reference

Uncertainty-aware RLHF, theorem 3.3 and figure 5: the chance to fall below the reference policy of
the variance-unaware policy (definition 3.1) and of the variance-aware one (definition 3.2), counted
over reward estimates R ~ N(r*, S) and beside its closed form; and the same of policies that are
distributions, the maximisers under a KL penalty, at one KL for both.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common import BLUE, ORANGE, Row, arguments, axes, column, spread, table, write

Array = NDArray[np.float64]

SETTINGS = {"equal": 0.0, "mild": 0.3, "strong": 0.6}  # std of log sigma over the responses
NAMES = {"plain": "variance-unaware", "aware": "variance-aware"}
RISK, QUANTILE = 0.3, 0.5244005127080407  # plain's closed form is scaled to it; -Phi^-1 of it


def normal_cdf(x: float) -> float:
    """Phi(x)."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def closed_forms(reward: Array, variance: Array) -> dict[str, float]:
    """Theorem 3.3: the chance that each policy's true reward lies below the reference's.

    reward r* (d,), variance (d,), the diagonal of S. Plain: Phi(-|r*|^2 / sqrt(r*' S r*)); aware:
    Phi(-sqrt(r*' S^-1 r*)).
    """
    plain = reward @ reward / math.sqrt(float(reward**2 @ variance))
    aware = math.sqrt(float(reward**2 @ (1 / variance)))
    return {"plain": normal_cdf(-float(plain)), "aware": normal_cdf(-aware)}


def problem(dimension: int, scatter: float, draw: np.random.Generator) -> tuple[Array, Array]:
    """True rewards (d,), mean 0, and variances (d,): log-normal, scaled so that plain has RISK."""
    reward = draw.normal(size=dimension)
    reward -= reward.mean()
    variance = np.exp(2 * scatter * draw.normal(size=dimension))
    now = reward @ reward / math.sqrt(float(reward**2 @ variance))
    return reward, variance * (now / QUANTILE) ** 2


def gains(
    estimates: Array, reward: Array, variance: Array, radius: float = 1.0
) -> dict[str, Array]:
    """True reward of each policy minus the reference's (draws,), for ``estimates`` (draws, d).

    Definitions 3.1 and 3.2 solved by their Lagrangians: the step pi - pi_0 is along R within
    |step| <= radius, or along S^-1 R within step' S step <= radius^2 min(S), which is the largest
    such ellipsoid inside the ball.
    """
    along = estimates / np.linalg.norm(estimates, axis=1, keepdims=True)
    aware = estimates / variance
    size = np.sqrt((aware**2 * variance).sum(1, keepdims=True))
    edge = radius * math.sqrt(float(variance.min()))
    return {"plain": radius * along @ reward, "aware": edge * (aware / size) @ reward}


def tilted(estimates: Array, variance: Array, scale: Array) -> Array:
    """pi (draws, d) with pi_0 uniform and R - beta S log(pi / pi_0) the same for every response.

    The fixed point of a policy gradient with the variance-weighted KL in the reward, with
    ``scale`` (draws, 1) for 1 / beta; S = 1 is the usual pi_0 exp(R / beta) / Z. The normaliser
    nu solves sum pi = 1 by bisection: it stands inside the exponent, so it does not factor out.
    """
    high, low = estimates.max(1, keepdims=True), estimates.min(1, keepdims=True)
    for _ in range(44):
        middle = (high + low) / 2
        mass = np.exp(np.minimum((estimates - middle) * scale / variance, 700)).mean(1)[:, None]
        low, high = np.where(mass > 1, middle, low), np.where(mass > 1, high, middle)
    pi = np.exp((estimates - high) * scale / variance) / estimates.shape[1]
    found: Array = pi / pi.sum(1, keepdims=True)
    return found


def at_kl(estimates: Array, variance: Array, kl: float) -> Array:
    """:func:`tilted` with the beta of each draw chosen so that KL(pi || pi_0) is ``kl`` nats."""
    low, high = np.full((len(estimates), 1), 1e-4), np.full((len(estimates), 1), 1e4)
    for _ in range(32):
        middle = np.sqrt(low * high)
        pi = tilted(estimates, variance, middle)
        above = (np.where(pi > 0, pi * np.log(pi * pi.shape[1] + 1e-300), 0)).sum(1) > kl
        low = np.where(above[:, None], low, middle)
        high = np.where(above[:, None], middle, high)
    return tilted(estimates, variance, low)


def repetition(
    seed: int, dimension: int = 1000, draws: int = 4000, kl_draws: int = 100, kl: float = 0.1
) -> list[Row]:
    """One drawn problem for each setting: a row a policy."""
    rows: list[Row] = []
    for setting, scatter in SETTINGS.items():
        draw = np.random.default_rng([seed, list(SETTINGS).index(setting)])
        reward, variance = problem(dimension, scatter, draw)
        closed = closed_forms(reward, variance)
        estimates = reward + np.sqrt(variance) * draw.normal(size=(draws, dimension))
        gained = gains(estimates, reward, variance)
        few = estimates[:kl_draws]
        of = {"plain": np.ones(dimension), "aware": variance / variance.mean()}
        for policy, gain in gained.items():
            counted = float((gain < 0).mean())
            error = math.sqrt(closed[policy] * (1 - closed[policy]) / draws)
            simplex = at_kl(few, of[policy], kl) @ reward if kl_draws else np.array([math.nan])
            rows.append(
                {
                    "seed": seed,
                    "setting": setting,
                    "policy": policy,
                    "closed": closed[policy],
                    "counted": counted,
                    "z": (counted - closed[policy]) / error,
                    "gain": float(gain.mean()),
                    "gain_std": float(gain.std(ddof=1)),
                    "kl_below": float((simplex < 0).mean()),
                    "kl_gain": float(simplex.mean()),
                    "kl_gain_std": float(simplex.std(ddof=1)) if kl_draws > 1 else math.nan,
                }
            )
    return rows


def summary(rows: list[Row]) -> str:
    """The table: mean ± std over the drawn problems."""
    lines = []
    for setting in SETTINGS:
        for policy, name in NAMES.items():

            def of(key: str, at: tuple[str, str] = (setting, policy)) -> list[float]:
                return column(rows, key, setting=at[0], policy=at[1])

            cells = [spread(of(key), ".3f") for key in ("closed", "counted")]
            ratio = [a / b for a, b in zip(of("gain"), of("gain_std"), strict=True)]
            cells += [f"{max(map(abs, of('z'))):.1f}", spread(of("gain_std")), spread(ratio)]
            cells += [spread(of("kl_below")), spread([1000 * g for g in of("kl_gain")], ".1f")]
            lines.append([setting, name, *cells])
    heads = ["variances", "policy", "closed form", "counted", "largest \\|z\\|"]
    heads += ["std of return", "mean / std", "at one KL: below", "at one KL: gain × 1000"]
    return table(heads, lines)


def draw_figure(rows: list[Row], seed: int = 0, draws: int = 4000) -> Figure:
    """Left and right: the chance to be worse; middle: the returns of one drawn problem."""
    figure, (left, middle, right) = axes(3)
    colours = {"plain": ORANGE, "aware": BLUE}
    for place, setting in enumerate(SETTINGS):
        for shift, (policy, colour) in zip((-0.16, 0.16), colours.items(), strict=True):
            at = {"setting": setting, "policy": policy}
            counted, closed = column(rows, "counted", **at), column(rows, "closed", **at)
            spots = place + shift + np.linspace(-0.09, 0.09, len(counted))
            name = NAMES[policy] if place == 0 else None
            left.plot(spots, counted, "o", ms=4, color=colour, label=name)
            left.plot(
                spots,
                closed,
                "_",
                ms=8,
                color="black",
                label="closed form" if name and shift > 0 else None,
            )
            below = column(rows, "kl_below", **at)
            right.plot(spots, below, "o", ms=4, color=colour, alpha=0.45)
            right.plot(place + shift, np.mean(below), "_", ms=22, mew=2.5, color=colour)
    for axis, title in (
        (left, "Theorem 3.3: steps of bounded length"),
        (right, "Distributions at one KL, .1 nats"),
    ):
        axis.set(
            xticks=range(len(SETTINGS)), xticklabels=list(SETTINGS), ylim=(0, 0.6), title=title
        )
        axis.set(xlabel="scatter of the variances", ylabel="chance to be worse than $\\pi_0$")
        axis.grid(axis="x", visible=False)
    left.legend(loc="lower left")
    draw = np.random.default_rng([seed, 2])
    reward, variance = problem(1000, SETTINGS["strong"], draw)
    estimates = reward + np.sqrt(variance) * draw.normal(size=(draws, 1000))
    for policy, gain in gains(estimates, reward, variance).items():
        middle.hist(
            gain,
            40,
            density=True,
            histtype="stepfilled",
            color=colours[policy],
            alpha=0.65,
            label=NAMES[policy],
        )
    middle.axvline(0, color="black", lw=1)
    middle.set(title="Returns, strong scatter (figure 5)", ylabel="density", ylim=(0, 2.4))
    middle.set(xlabel="true reward above $\\pi_0$")
    middle.legend(loc="upper right")
    return figure


def main() -> None:
    args = arguments(__doc__, "worse_than_reference")
    rows = [row for seed in range(args.seeds) for row in repetition(seed)]
    print(summary(rows))
    write(args.out, "worse_than_reference", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
