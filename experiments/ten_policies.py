"""Ten policies, one a reward head: how far do they scatter, and how many end worse off?

    python experiments/ten_policies.py --seeds 10 --out runs/ten_policies

Uncertainty-aware RLHF, section 5 and figure 7: each of ten reward heads gives one policy, plain and
with the variance-weighted KL penalty, at one final KL; a judge says what they are worth. Here the
judge is the true reward, eight prompts with sixteen responses each can be enumerated, and the PPO
plugin trains every policy, with both forms of the `sharpe` plugin.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from common import BLUE, GREY, ORANGE, PURPLE, Row, arguments, axes, column, spread, table, write
from one_token import OneToken, ppo
from ostinato_plugins.rewards.sharpe import Sharpe
from worse_than_reference import tilted

Array = NDArray[np.float64]

PROMPTS, RESPONSES, HEADS, KL = 8, 16, 10, 1.0  # nats
NOISE = 3.0  # root mean square of sigma over responses
WORLDS = {  # (std of log sigma over responses, share of the error's variance that all heads share)
    "own": (0.8, 0.0),
    "equal": (0.0, 0.0),
    "shared": (0.8, 0.5),
}
POLICIES = {
    "plain": "PPO",
    "reward": "sharpe, form: reward",
    "objective": "sharpe, form: objective",
}
COLOURS = {"plain": ORANGE, "reward": BLUE, "objective": PURPLE}


class Table(nn.Module):
    """A logit for each prompt and response."""

    def __init__(self, rows: int, responses: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(rows, responses))

    def forward(self, prompts: Tensor) -> Tensor:
        return prompts @ self.logits


def problem(world: str, draw: np.random.Generator) -> tuple[Array, Array]:
    """True rewards (P, R), mean 0 for each prompt, and the heads' (H, P, R).

    Head i: r* + sigma (sqrt(s) e + sqrt(1 - s) e_i), the e standard normal, s as in WORLDS; sigma
    is log-normal over responses (assumption 2.1 where s is 0).
    """
    scatter, share = WORLDS[world]
    true = draw.normal(size=(PROMPTS, RESPONSES))
    true -= true.mean(1, keepdims=True)
    sigma = np.exp(scatter * draw.normal(size=true.shape))
    sigma *= NOISE / math.sqrt(float((sigma**2).mean()))
    common, own = draw.normal(size=true.shape), draw.normal(size=(HEADS, *true.shape))
    return true, true + sigma * (math.sqrt(share) * common + math.sqrt(1 - share) * own)


def closed_form(heads: Array, policy: str, beta: float) -> Array:
    """What each policy should reach, (H, P, R): one for each head, pi_0 being uniform."""
    variance = np.broadcast_to(heads.var(0, ddof=1), heads.shape)
    reward = heads - beta * variance if policy == "objective" else heads
    if policy == "plain":
        variance = np.ones_like(heads)
    rows = (heads.shape[0] * heads.shape[1], heads.shape[2])
    scale = np.full((rows[0], 1), 1 / beta)
    return tilted(reward.reshape(rows), variance.reshape(rows), scale).reshape(heads.shape)


def kl_of(pi: Array) -> Array:
    """KL from the uniform policy, nats, mean over prompts: (..., P, R) -> (...)."""
    logs = np.log(np.where(pi > 0, pi, 1.0) * pi.shape[-1])
    found: Array = (pi * logs).sum(-1).mean(-1)
    return found


def at_kl(heads: Array, policy: str, kl: float = KL) -> float:
    """The largest beta, one for all heads, whose ten policies lie ``kl`` nats out on average."""
    low = high = 100.0
    while kl_of(closed_form(heads, policy, low)).mean() <= kl:
        low, high = low / 1.3, low
    for _ in range(30):
        beta = math.sqrt(low * high)
        far = kl_of(closed_form(heads, policy, beta)).mean() > kl
        low, high = (beta, high) if far else (low, beta)
    return high


def trained(heads: Array, policy: str, beta: float, seed: int, rollouts: int, each: int) -> Array:
    """The ten policies (H, P, R) after PPO, each on its own head, in one table.

    Row i P + x is policy i's answer to prompt x. Rows share no parameter, so the policies do not
    know of each other. ``each``: responses a rollout to each prompt by each policy.
    """
    count, prompts, size = heads.shape
    own_first = np.stack([np.roll(heads, -i, axis=0) for i in range(count)])  # (H, heads, P, R)
    flat = own_first.transpose(0, 2, 3, 1).reshape(count * prompts, size, count)
    rewards = torch.tensor(flat).float()  # (H P, R, heads)
    aware, sharpe = policy != "plain", Sharpe()
    sharpe.config = Sharpe.Config.model_validate(
        {"score": "head", **({"form": policy} if aware else {})}
    )

    def of(rows: Tensor, responses: Tensor, _: torch.Generator) -> Tensor:
        found = rewards[rows, responses]  # (B, H)
        return found if aware else found[:, :1]

    learner = OneToken(
        Table(len(rewards), size),
        len(rewards),
        of,
        torch.Generator().manual_seed(seed),
        algorithm=ppo(whiten=False, value_clip=None),
        transforms=[sharpe] if aware else [],
        beta=beta,
        batch=each * len(rewards),
        lr=0.05,
    )
    total = torch.zeros(len(rewards), size)
    for step in range(rollouts):
        learner.step()
        if step >= 0.75 * rollouts:  # the mean of the last quarter: sampling noise averages out
            total += learner.probabilities()
    pi: Array = (total / total.sum(1, keepdim=True)).double().numpy().reshape(heads.shape)
    return pi


def repetition(seed: int, rollouts: int = 500, each: int = 16) -> list[Row]:
    """A row for each world, kind of policy and head."""
    rows: list[Row] = []
    for world in WORLDS:
        true, heads = problem(world, np.random.default_rng([seed, 3]))
        for policy in POLICIES:
            beta = at_kl(heads, policy)
            wanted = closed_form(heads, policy, beta)
            pi = trained(heads, policy, beta, seed, rollouts, each)
            worth = (pi * true).sum(-1)  # (H, P); the uniform policy's is 0 at every prompt
            for head in range(HEADS):
                row: Row = {"seed": seed, "world": world, "policy": policy, "head": head}
                row |= {"beta": beta, "kl": float(kl_of(pi[head]))}
                row |= {"true": float(worth[head].mean())}
                row |= {"below": float((worth[head] < 0).mean())}
                row["computed"] = float((wanted[head] * true).sum(-1).mean())
                row["estimated"] = float((pi[head] * heads[head]).sum(-1).mean())
                rows.append(row | {"distance": float(np.abs(pi[head] - wanted[head]).max())})
    return rows


def by_seed(rows: list[Row], key: str, world: str, policy: str) -> Array:
    """(seeds, heads) of ``key``."""
    return np.array(column(rows, key, world=world, policy=policy)).reshape(-1, HEADS)


def summary(rows: list[Row]) -> str:
    """The table: mean ± std over seeds of what is measured over the ten policies of each."""
    lines = []
    for world in WORLDS:
        for policy, name in POLICIES.items():

            def of(key: str, at: tuple[str, str] = (world, policy)) -> Array:
                return by_seed(rows, key, *at)

            cells = [spread(list(of(key).mean(1))) for key in ("kl", "estimated", "true")]
            cells += [spread(list(of("true").std(1, ddof=1)), ".3f")]
            narrower = of("true").std(1) < by_seed(rows, "true", world, "plain").std(1)
            cells.append("–" if policy == "plain" else f"{narrower.sum()} of {len(narrower)}")
            cells += [spread(list(of("below").mean(1))), f"{(of('true') < 0).mean():.2f}"]
            cells += [f"{np.abs(of('true') - of('computed')).max():.3f}"]
            lines.append([world, name, *cells])
    heads = ["errors", "policies", "KL, nats", "own head's reward", "true reward"]
    heads += ["its std over the ten", "narrower than PPO's", "prompts below π₀"]
    return table([*heads, "policies below π₀", "largest distance to what is computed"], lines)


def draw_figure(rows: list[Row]) -> Figure:
    """Figure 7: the true rewards of all policies, by kind; one panel a world."""
    figure, panels = axes(len(WORLDS), sharey=True)
    titles = {"own": "errors of their own", "equal": "equal variances", "shared": "half shared"}
    for axis, world in zip(panels, WORLDS, strict=True):
        for place, policy in enumerate(POLICIES):
            found = by_seed(rows, "true", world, policy)
            for shift, values in zip(np.linspace(-0.32, 0.32, len(found)), found, strict=True):
                style = {"color": COLOURS[policy], "alpha": 0.6}
                axis.plot(np.full(HEADS, place + shift), values, "o", ms=3, **style)
            axis.plot(place, found.mean(), "_", ms=40, mew=2.5, color="black")
        axis.axhline(0, color=GREY, ls="--", lw=1)
        axis.set(title=f"Ten policies a seed: {titles[world]}", xticks=range(len(POLICIES)))
        axis.set_xticklabels([name.replace(", form: ", ",\n") for name in POLICIES.values()])
        axis.grid(axis="x", visible=False)
    panels[0].set(ylabel="true reward (0: reference policy)")
    return figure


def main() -> None:
    args = arguments(__doc__, "ten_policies")
    rows = [row for seed in range(args.seeds) for row in repetition(seed)]
    print(summary(rows))
    write(args.out, "ten_policies", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
