"""Three arms, one of them praised by mistake: plain PPO against the variance-aware KL penalty.

    python experiments/three_arms.py --seeds 20 --out runs/three_arms

Uncertainty-aware RLHF, figure 2: the worst arm has the highest estimate, and the largest variance.
The estimates are the heads of a reward model, N(r*, sigma^2) each; a policy learns from the first
head (assumption 2.1) by the PPO plugin, with and without the `sharpe` plugin, which takes sigma^2
from all heads. Both reach one KL from the reference policy, as in the paper's section 8.
"""

from __future__ import annotations

import math

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
POLICIES = {"plain": "PPO", "aware": "PPO with sharpe", "theorem": "theorem 3.6"}
SHIFTED = "theorem, shifted"  # the same with SHIFT taken off every reward
SHIFT = 3.0
COLOURS = {"plain": ORANGE, "aware": BLUE, "theorem": PURPLE}


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
    """The policy over the arms, pi_0 being uniform.

    "theorem" is theorem 3.6 as printed, pi_0 exp(r / (beta sigma^2)) / Z, which changes with the
    offset of the rewards. The others are the fixed point of PPO, at which
    r - beta sigma^2 log(pi / pi_0) is the same for every arm; an offset of r does not move it.
    """
    if policy in ("theorem", SHIFTED):
        tilt = (reward - SHIFT * (policy == SHIFTED)) / (beta * variance)
        pi: Array = np.exp(tilt - tilt.max())
        pi /= pi.sum()
    else:
        pi = tilted(reward[None], variance, np.array([[1 / beta]]))[0]
    return pi


def at_kl(reward: Array, variance: Array, policy: str, kl: float = KL) -> tuple[float, Array]:
    """(beta, policy) at which the closed form lies ``kl`` nats from the uniform policy."""
    low, high = 1e-3, 1e6
    for _ in range(60):
        beta = math.sqrt(low * high)
        far = kl_of(closed_form(reward, variance, policy, beta)) > kl
        low, high = (beta, high) if far else (low, beta)
    return beta, closed_form(reward, variance, policy, beta)


def trained(heads: Array, beta: float, aware: bool, seed: int, rollouts: int) -> Array:
    """The arms' probabilities after PPO on the first head's reward."""
    rewards = torch.tensor(heads, dtype=torch.float32).T  # (arms, heads)
    sharpe = Sharpe()
    sharpe.config = Sharpe.Config(score="head")

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
    """The three policies on one draw of the heads; theorem 3.6 is not trained, only computed."""
    heads, attempts = heads_of(seed)
    rows: list[Row] = []
    for policy in (*POLICIES, SHIFTED):
        variance = np.ones(3) if policy == "plain" else heads.var(0, ddof=1)
        beta, wanted = at_kl(heads[0], variance, policy)
        pi = wanted
        if policy in ("plain", "aware"):
            pi = trained(heads, beta, policy == "aware", seed, rollouts)
        row: Row = {"seed": seed, "policy": policy, "attempts": attempts, "beta": beta}
        row |= {f"arm_{i + 1}": float(p) for i, p in enumerate(pi)}
        row |= {f"closed_{i + 1}": float(p) for i, p in enumerate(wanted)}
        row |= {f"head_{i + 1}": float(r) for i, r in enumerate(heads[0])}
        row |= {f"std_{i + 1}": float(s) for i, s in enumerate(heads.std(0, ddof=1))}
        row |= {"kl": kl_of(pi), "true": float(pi @ TRUE), "estimated": float(pi @ heads[0])}
        rows.append(row | {"distance": float(np.abs(pi - wanted).max())})
    return rows


def every_draw(draws: int, seed: int = 0) -> dict[str, Array]:
    """True reward (draws,) of the closed forms over all draws, whichever arm comes out best."""
    draw = np.random.default_rng([seed, 1])
    found: dict[str, list[float]] = {policy: [] for policy in (*POLICIES, SHIFTED)}
    for _ in range(draws):
        heads = TRUE + SIGMA * draw.normal(size=(HEADS, 3))
        for policy, values in found.items():
            variance = np.ones(3) if policy == "plain" else heads.var(0, ddof=1)
            values.append(float(at_kl(heads[0], variance, policy)[1] @ TRUE))
    return {policy: np.array(values) for policy, values in found.items()}


def summary(rows: list[Row], draws: dict[str, Array]) -> str:
    """The table: mean ± std over seeds, and over unselected draws."""
    lines = []
    names = {**POLICIES, SHIFTED: f"theorem 3.6, all rewards less {SHIFT:.0f}"}
    for policy, name in names.items():
        cells = [spread(column(rows, f"arm_{i}", policy=policy)) for i in (1, 2, 3)]
        cells += [spread(column(rows, key, policy=policy)) for key in ("kl", "estimated", "true")]
        far = max(column(rows, "distance", policy=policy))
        cells.append("–" if "theorem" in policy else f"{far:.3f}")
        cells.append(spread(list(draws[policy])))
        cells.append(f"{(draws[policy] < TRUE.mean()).mean():.2f}")
        lines.append([name, *cells])
    heads = ["policy", *(f"arm {i}" for i in (1, 2, 3)), "KL, nats", "estimated reward"]
    heads += ["true reward", "largest distance to closed form", "true, all draws"]
    return table([*heads, "worse than uniform, all draws"], lines)


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
    for place, (policy, name) in enumerate(POLICIES.items()):
        values = np.array([column(rows, f"arm_{i}", policy=policy) for i in (1, 2, 3)])
        style = {"color": COLOURS[policy], "label": name}
        spots = arms + (place - 1) * 0.27
        middle.bar(spots, values.mean(1), 0.25, yerr=values.std(1, ddof=1), capsize=2, **style)
        true = np.array(column(rows, "true", policy=policy))
        right.plot(place + np.linspace(-0.25, 0.25, len(true)), true, "o", ms=4, alpha=0.6, **style)
        right.plot(place, true.mean(), "_", ms=26, mew=2.5, color=COLOURS[policy])
    middle.axhline(1 / 3, color=GREY, ls="--", lw=1, label="reference policy")
    middle.set(title="Policies at one KL (mean ± std)", ylabel="probability", ylim=(0, 1.05))
    right.axhline(TRUE.mean(), color=GREY, ls="--", lw=1)
    right.set(title="What they earn", ylabel="true reward", xticks=arms)
    right.set_xticklabels([name.replace(" with", "\nwith") for name in POLICIES.values()])
    for axis in (left, middle):
        axis.set(xticks=arms, xticklabels=["arm 1", "arm 2", "arm 3"])
        axis.legend(loc="upper right", fontsize=8)
    for axis in (left, middle, right):
        axis.grid(axis="x", visible=False)
    return figure


def main() -> None:
    args = arguments(__doc__, "three_arms", seeds=20)
    rows = [row for seed in range(args.seeds) for row in repetition(seed)]
    print(summary(rows, every_draw(300)))
    write(args.out, "three_arms", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
