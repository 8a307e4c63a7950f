"""Eight prompts, eight responses: does a minimum over reward models repair what one gets wrong?

    python experiments/toy_prompts.py --seeds 20 --out runs/toy_prompts

Reward-robust RLHF, sections 4 and 5, figure 1: the best response shares the prompt's index; reward
models are trained on the diagonal against two random others a prompt, so five responses of eight
are never seen; PPO learns from lambda * nominal + (1 - lambda) * min of three further ones.
"""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from common import BLUE, ORANGE, RED, Row, arguments, axes, column, spread, table, write
from one_token import OneToken, mlp, ppo
from ostinato_plugins.losses.bradley_terry import BradleyTerry

SIZE = 8
MODELS = 4  # the nominal one and the paper's three more
LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PAPER = 0.4
MIXTURES = (*((weight, "min") for weight in LAMBDAS), (PAPER, "mean"), (PAPER, "max"))
UPDATES = 160  # of a reward model; the paper gives neither this nor the width
WIDTHS = {"narrow": 32, "wide": 128}  # of the reward models; PPO runs on the narrow ones
BETA = 0.3  # of the KL penalty; without one PPO itself stops short (`no KL`)
DATA = {"own": "each its own pairs", "same": "all the same pairs"}  # of the four reward models


def preferences(seed: list[int]) -> Tensor:
    """Rows (prompt, chosen, rejected): the diagonal against two random others of each prompt."""
    draw = np.random.default_rng(seed)
    rows = []
    for prompt in range(SIZE):
        others = [r for r in range(SIZE) if r != prompt]
        rows += [(prompt, prompt, r) for r in draw.choice(others, 2, replace=False)]
    return torch.tensor(np.array(rows))


def reward_table(data: Tensor, seed: int, width: int, updates: int = UPDATES) -> Tensor:
    """Rewards (prompts, responses) of one model.

    The perceptron of the policy: from a one-hot prompt to the reward of every response. ``seed``
    draws its weights, the Bradley-Terry plugin is its loss.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = mlp(SIZE, SIZE, width)
    loss, prompts = BradleyTerry(), torch.eye(SIZE)
    pairs = data[:, :1] * SIZE + data[:, 1:]  # (C, 2) rows of chosen and rejected in the table
    batch: Any = SimpleNamespace(
        pairs=pairs, label=torch.ones(len(pairs)), margin=torch.zeros(len(pairs))
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(updates):
        outputs: Any = SimpleNamespace(logits=model(prompts).reshape(1, -1, 1))  # (1, P * R, 1)
        optimiser.zero_grad()
        loss.preference_loss(batch, outputs).mean().backward()
        optimiser.step()
    with torch.no_grad():
        table: Tensor = model(prompts)
    return table


def integrated(tables: Tensor, weight: float, reduce: str = "min") -> Tensor:
    """lambda * nominal + (1 - lambda) * reduce(others): rewards (P, R), response by response.

    ``tables`` (models, P, R), the nominal model first. Equation 6 has the minimum outside the
    expectation; inside, as here and in the paper's own training, it is a lower bound of that.
    """
    nominal, others = tables[0], tables[1:]
    reduced = {"min": others.amin(0), "mean": others.mean(0), "max": others.amax(0)}[reduce]
    return weight * nominal + (1 - weight) * reduced


def actor(reward: Tensor, seed: int, beta: float, rollouts: int) -> Tensor:
    """pi (P, R) of a three-layer policy after PPO on ``reward`` (P, R)."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        body = mlp(SIZE, SIZE, 128)

    def of(prompts: Tensor, responses: Tensor, _: torch.Generator) -> Tensor:
        return reward[prompts, responses][:, None]

    learner = OneToken(
        body,
        SIZE,
        of,
        torch.Generator().manual_seed(seed),
        algorithm=ppo(whiten=False, value_clip=None),
        batch=128,
        beta=beta,
    )
    for _ in range(rollouts):
        learner.step()
    return learner.probabilities()


def repetition(
    seed: int,
    data: tuple[str, ...] = tuple(DATA),
    mixtures: tuple[tuple[float, str], ...] = MIXTURES,
    rollouts: int = 100,
) -> list[Row]:
    """A row for each kind of data, width, lambda and integration.

    ``reward``: every prompt's highest reward is on the diagonal; ``actor``: so is every prompt's
    likeliest response after PPO; ``no_kl``: the same without the KL penalty.
    """
    rows: list[Row] = []
    diagonal = torch.arange(SIZE)
    for kind, (name, width) in product(data, WIDTHS.items()):
        pairs = [preferences([seed, m * (kind == "own")]) for m in range(MODELS)]
        tables = torch.stack(
            [reward_table(found, 1000 * seed + m, width) for m, found in enumerate(pairs)]
        )
        for weight, reduce in mixtures:
            reward = integrated(tables, weight, reduce)
            right = reward.argmax(1) == diagonal
            row: Row = {"seed": seed, "data": kind, "width": name, "lambda": weight}
            row |= {"integration": reduce, "reward": float(right.all())}
            row["reward_prompts"] = float(right.float().mean())
            if name == "narrow":
                for key, beta in (("actor", BETA), ("no_kl", 0.0)):
                    if beta or (reduce == "min" and weight in (PAPER, 1.0)):
                        pi = actor(reward, seed, beta, rollouts)
                        right = pi.argmax(1) == diagonal
                        row |= {key: float(right.all())}
                        row[f"{key}_prompts"] = float(right.float().mean())
                        row[f"{key}_diagonal"] = float(pi.diagonal().mean())
            rows.append(row)
    return rows


def rate(values: list[float]) -> str:
    """A share of seeds with its binomial standard error."""
    mean = float(np.mean(values))
    return f"{mean:.2f}&nbsp;±&nbsp;{(mean * (1 - mean) / len(values)) ** 0.5:.2f}"


def summary(rows: list[Row]) -> str:
    """The table: rates over seeds with their errors, and prompts right as mean ± std."""
    lines = []
    for kind, (weight, reduce) in product(DATA, MIXTURES):
        at = {"data": kind, "lambda": weight, "integration": reduce}
        narrow = [r for r in rows if r["width"] == "narrow"]
        cells = [f"{weight:.1f}", reduce, rate(column(narrow, "actor", **at))]
        cells += [spread(column(narrow, key, **at)) for key in ("actor_prompts", "actor_diagonal")]
        plain = [r for r in narrow if "no_kl" in r and r["no_kl"] != ""]
        found = column(plain, "no_kl", **at)
        cells += [rate(found) if found else "", rate(column(narrow, "reward", **at))]
        cells.append(rate(column(rows, "reward", width="wide", **at)))
        lines.append([DATA[kind], *cells])
    heads = ["reward models", "lambda", "integration", "optimal actor", "prompts right"]
    heads += ["probability of the best", "optimal actor, no KL", "optimal reward"]
    return table([*heads, "optimal reward, wide"], lines)


def draw_figure(rows: list[Row], seed: int = 3) -> Figure:
    """Two rewards of one seed, and the rate of optimal actors against lambda."""
    figure, (left, middle, right) = axes(3, width_ratios=(1, 1, 1.45))
    models = [
        reward_table(preferences([seed, m]), 1000 * seed + m, WIDTHS["narrow"])
        for m in range(MODELS)
    ]
    tables = torch.stack(models)
    titles = ("nominal reward model", f"λ = {PAPER}, min of three more")
    for axis, weight, title in zip((left, middle), (1.0, PAPER), titles, strict=True):
        reward = integrated(tables, weight)
        centred = reward - reward.mean(1, keepdim=True)
        axis.imshow(centred, cmap="cividis")
        best = reward.argmax(1)
        good = best == torch.arange(SIZE)
        for prompt in range(SIZE):
            style = {"color": "white" if good[prompt] else RED, "mec": "black", "mew": 0.8}
            axis.plot(int(best[prompt]), prompt, "o" if good[prompt] else "X", ms=8, **style)
        axis.set(title=title, xlabel="response", xticks=range(SIZE), yticks=range(SIZE))
        axis.grid(visible=False)
    left.set_ylabel("prompt")
    for kind, colour, marker in (("own", BLUE, "o"), ("same", ORANGE, "s")):
        found = [column(rows, "actor", **_at(kind, w)) for w in LAMBDAS]
        mean = np.array([np.mean(f) for f in found])
        error = np.sqrt(mean * (1 - mean) / len(found[0]))
        right.errorbar(
            LAMBDAS, mean, error, color=colour, marker=marker, capsize=3, label=DATA[kind]
        )
    right.set(title="Seeds whose actor is optimal", ylim=(-0.03, 1.03))
    right.set(
        xlabel="λ (1: the nominal reward model alone)", ylabel="rate over seeds, ± standard error"
    )
    right.legend(title="four reward models")
    return figure


def _at(kind: str, weight: float) -> Row:
    return {"data": kind, "width": "narrow", "lambda": weight, "integration": "min"}


def main() -> None:
    args = arguments(__doc__, "toy_prompts", seeds=20)
    rows = [row for seed in range(args.seeds) for row in repetition(seed)]
    print(summary(rows))
    write(args.out, "toy_prompts", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
