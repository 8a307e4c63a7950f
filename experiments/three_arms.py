"""Three arms, one of them praised by mistake: plain PPO against two variance-aware KL penalties.

    python experiments/three_arms.py --seeds 20 --out runs/three_arms

Uncertainty-aware RLHF, figure 2: the worst arm has the highest estimate, and the largest variance.
The estimates are the heads of a reward model, N(r*, sigma^2) each; a policy learns from the first
head (assumption 2.1) by the PPO plugin, without and with the `sharpe` plugin, which takes sigma^2
from all heads, in both of its forms. All reach one KL from the reference policy, as in the paper's
section 8; beside them stand the fixed point and the optimum that the two forms should reach.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from common import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Row,
    arguments,
    axes,
    column,
    spread,
    table,
    write,
)
from one_token import OneToken, ppo
from ostinato_plugins.rewards.sharpe import Sharpe
from worse_than_reference import tilted

Array = NDArray[np.float64]

TRUE = np.array([1.0, 2.0, 2.5])  # r*: arm 1 is the worst
SIGMA = np.array([3.0, 0.3, 0.3])
HEADS, KL = 10, 0.25  # nats
TRAINED = {"plain": "PPO", "reward": "sharpe, form: reward", "objective": "sharpe, form: objective"}
COMPUTED = {
    "fixed point": "fixed point of the first form, computed",
    "optimum": "optimum of the objective, computed",
    "theorem": "theorem 3.6 as printed, computed",
    "shifted": "the same, all rewards less 3",
}
SHIFT = 3.0
COLOURS = {"plain": ORANGE, "reward": BLUE, "objective": PURPLE}


class Arms(nn.Module):
    """One logit an arm; the one-hot of the only prompt is 1."""

    def __init__(self, arms: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(arms))

    def forward(self, prompt: Tensor) -> Tensor:
        return prompt @ self.logits[None]


def heads_of(seed: int) -> tuple[Array, int]:
    """Rewards (heads, arms) in which the first head prefers arm 1, and how many draws that took."""
    draw = np.random.default_rng(seed)
    for attempt in range(1, 10_000):
        heads = TRUE + SIGMA * draw.normal(size=(HEADS, 3))
        if heads[0].argmax() == 0:
            return heads, attempt
    raise AssertionError("arm 1 is never over-estimated")


def kl_of(pi: Array) -> float:
    """KL from the uniform policy, nats."""
    return float(sum(p * math.log(p * len(pi)) for p in pi if p > 0))


def closed_form(reward: Array, variance: Array, policy: str, beta: float) -> Array:
    """The policy over the arms that this one should reach, pi_0 being uniform.

    "theorem" is theorem 3.6 as printed, pi_0 exp(r / (beta sigma^2)) / Z, which changes with the
    offset of the rewards. The others have one nu for every arm, and an offset of r moves only nu:
    r - beta sigma^2 log(pi / pi_0) = nu at the fixed point of PPO, which holds the reward constant;
    beta sigma^2 less at the optimum of E[r - beta sigma^2 log(pi / pi_0)].
    """
    if policy in ("theorem", "shifted"):
        tilt = (reward - SHIFT * (policy == "shifted")) / (beta * variance)
        pi: Array = np.exp(tilt - tilt.max())
        pi /= pi.sum()
        return pi
    if policy in ("objective", "optimum"):
        reward = reward - beta * variance
    if policy == "plain":
        variance = np.ones(3)
    found: Array = tilted(reward[None], variance, np.array([[1 / beta]]))[0]
    return found


def at_kl(reward: Array, variance: Array, policy: str, kl: float = KL) -> tuple[float, Array]:
    """(beta, policy), the largest beta at which the closed form goes beyond ``kl`` nats.

    The optimum of the objective is not pi_0 at any beta, and its KL need not rise all the way as
    beta falls. So a bracket is looked for first; where there is none, the least KL has to do.
    """

    def distance(beta: float) -> float:
        return kl_of(closed_form(reward, variance, policy, beta))

    grid = [10 ** (power / 4) for power in range(24, -13, -1)]  # 1e6 down to 1e-3
    brackets = (b for b in pairwise(grid) if distance(b[0]) <= kl < distance(b[1]))
    high, low = next(brackets, (min(grid, key=distance),) * 2)
    for _ in range(40):
        beta = math.sqrt(low * high)
        low, high = (beta, high) if distance(beta) > kl else (low, beta)
    return beta, closed_form(reward, variance, policy, beta)


def trained(heads: Array, beta: float, policy: str, seed: int, rollouts: int) -> Array:
    """The arms' probabilities after PPO on the first head's reward."""
    rewards = torch.tensor(heads, dtype=torch.float32).T  # (arms, heads)
    aware, sharpe = policy != "plain", Sharpe()
    sharpe.config = Sharpe.Config.model_validate(
        {"score": "head", **({"form": policy} if aware else {})}
    )

    def of(_: Tensor, arm: Tensor, __: torch.Generator) -> Tensor:
        return rewards[arm] if aware else rewards[arm][:, :1]

    learner = OneToken(
        Arms(3),
        1,
        of,
        torch.Generator().manual_seed(seed),
        algorithm=ppo(whiten=False, value_clip=None),
        transforms=[sharpe] if aware else [],
        beta=beta,
        batch=256,
        lr=0.02,
    )
    total = np.zeros(3)
    for step in range(rollouts):
        learner.step()
        if step >= 0.75 * rollouts:  # the mean of the last quarter: sampling noise averages out
            total += learner.probabilities()[0].double().numpy()
    pi: Array = total / total.sum()
    return pi


def repetition(seed: int, rollouts: int = 400) -> list[Row]:
    """A row a policy on one draw of the heads."""
    heads, attempts = heads_of(seed)
    variance = heads.var(0, ddof=1)
    rows: list[Row] = []
    for policy in (*TRAINED, *COMPUTED):
        beta, wanted = at_kl(heads[0], variance, policy)
        pi = trained(heads, beta, policy, seed, rollouts) if policy in TRAINED else wanted
        row: Row = {"seed": seed, "policy": policy, "attempts": attempts, "beta": beta}
        row |= {f"arm_{i + 1}": float(p) for i, p in enumerate(pi)}
        row |= {f"head_{i + 1}": float(r) for i, r in enumerate(heads[0])}
        row |= {f"std_{i + 1}": float(s) for i, s in enumerate(np.sqrt(variance))}
        row |= {"kl": kl_of(pi), "true": float(pi @ TRUE), "estimated": float(pi @ heads[0])}
        rows.append(row | {"distance": float(np.abs(pi - wanted).max())})
    return rows


def every_draw(draws: int, true: Array = TRUE, seed: int = 0) -> dict[str, Array]:
    """True reward (draws,) of what is reached over all draws, whichever arm comes out best."""
    draw = np.random.default_rng([seed, 1])
    found: dict[str, list[float]] = {p: [] for p in ("plain", *COMPUTED)}
    for _ in range(draws):
        heads = true + SIGMA * draw.normal(size=(HEADS, 3))
        for policy, values in found.items():
            values.append(float(at_kl(heads[0], heads.var(0, ddof=1), policy)[1] @ true))
    return {policy: np.array(values) for policy, values in found.items()}


def summary(rows: list[Row], draws: int = 300) -> str:
    """Two tables: the policies over seeds; what they earn over draws that are not selected."""
    lines = []
    for policy, name in {**TRAINED, **COMPUTED}.items():
        cells = [spread(column(rows, f"arm_{i}", policy=policy)) for i in (1, 2, 3)]
        cells += [spread(column(rows, key, policy=policy)) for key in ("kl", "estimated", "true")]
        far = max(column(rows, "distance", policy=policy))
        cells.append(f"{far:.4f}" if policy in TRAINED else "–")
        lines.append([name, *cells])
    heads = ["policy", *(f"arm {i}" for i in (1, 2, 3)), "KL, nats", "estimated reward"]
    heads += ["true reward", "largest distance to what is computed"]
    found = [every_draw(draws), every_draw(draws, TRUE[::-1])]
    more = []
    for policy, name in {"plain": "PPO", **COMPUTED}.items():
        earned = [each[policy] for each in found]
        more.append([name, *(c for e in earned for c in (spread(list(e)), worse(e)))])
    worst, best = "uncertain arm worst", "uncertain arm best"
    titles = ["policy", f"true reward, {worst}", "below uniform", f"true reward, {best}"]
    return table(heads, lines) + "\n\n" + table([*titles, "below uniform"], more)


def worse(earned: Array) -> str:
    """The share of draws that earn less than the uniform policy."""
    return f"{(earned < TRUE.mean()).mean():.2f}"


def draw_figure(rows: list[Row]) -> Figure:
    """The estimates of seed 0, the policies' probabilities, their true rewards."""
    figure, (left, middle, right) = axes(3, width_ratios=(1, 1.25, 0.9))
    arms = np.arange(3)
    first = next(r for r in rows if r["seed"] == 0)
    estimate = [first[f"head_{i}"] for i in (1, 2, 3)]
    error = [2 * first[f"std_{i}"] for i in (1, 2, 3)]
    left.bar(arms - 0.19, TRUE, 0.36, color=GREEN, label="true reward")
    left.bar(arms + 0.19, estimate, 0.36, color=SKY, label="estimate, ± 2 std of the heads")
    left.errorbar(arms + 0.19, estimate, error, fmt="none", ecolor=RED, capsize=3)
    left.set(title="What the reward model says (seed 0)", ylabel="reward")
    left.set_ylim(top=max(np.add(estimate, error)) * 1.3)
    reached = {"reward": "fixed point", "objective": "optimum"}
    for place, (policy, name) in enumerate(TRAINED.items()):
        values = np.array([column(rows, f"arm_{i}", policy=policy) for i in (1, 2, 3)])
        style = {"color": COLOURS[policy], "label": name}
        spots = arms + (place - 1) * 0.27
        middle.bar(spots, values.mean(1), 0.25, yerr=values.std(1, ddof=1), capsize=2, **style)
        true = np.array(column(rows, "true", policy=policy))
        right.plot(place + np.linspace(-0.25, 0.25, len(true)), true, "o", ms=4, alpha=0.6, **style)
        right.plot(place, true.mean(), "_", ms=26, mew=2.5, color=COLOURS[policy])
        if policy in reached:
            at = {"policy": reached[policy]}
            wanted = [np.mean(column(rows, f"arm_{i}", **at)) for i in (1, 2, 3)]
            middle.plot(spots, wanted, "_", ms=15, mew=2, color="black")
    middle.plot([], [], "_", ms=15, mew=2, color="black", label="fixed point, optimum (computed)")
    middle.axhline(1 / 3, color=GREY, ls="--", lw=1, label="reference policy")
    middle.set(title="Policies at one KL (mean ± std)", ylabel="probability", ylim=(0, 1.25))
    right.axhline(TRUE.mean(), color=GREY, ls="--", lw=1)
    right.set(title="What they earn", ylabel="true reward", xticks=arms)
    right.set_xticklabels([name.replace(", form: ", ",\n") for name in TRAINED.values()])
    for axis in (left, middle):
        axis.set(xticks=arms, xticklabels=["arm 1", "arm 2", "arm 3"])
        axis.legend(loc="upper right", fontsize=8)
    for axis in (left, middle, right):
        axis.grid(axis="x", visible=False)
    return figure


def main() -> None:
    args = arguments(__doc__, "three_arms", seeds=20)
    rows = [row for seed in range(args.seeds) for row in repetition(seed)]
    print(summary(rows))
    write(args.out, "three_arms", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
