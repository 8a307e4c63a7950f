"""A reward that says nothing: what does PPO make of a constant, and of noise?

    python experiments/random_rewards.py --seeds 20 --out runs/random_rewards

Reward-robust RLHF, lemma 1: under a constant reward the gradient of PPO's objective is zero.
Checked on every response of a small language, so that the expectation is exact. Section 6.2:
rewards drawn from N(0, 1) ruin a good policy, the minimum of several such rewards less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from common import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    RED,
    Row,
    arguments,
    axes,
    column,
    spread,
    table,
    write,
)
from one_token import OneToken, Rewards, ppo
from ostinato.contract.batches import PolicyOutputs, Rollout
from ostinato.models.samples import Samples

STOP, LONGEST = 2, 3  # responses of up to three tokens: 0, 1, or stop
SIZE, HEADS, START = 8, 5, 0.8  # prompts and responses; the best response's probability at first


def responses() -> tuple[Tensor, Tensor]:
    """Every response, (15, 3) and padded with stops, and its mask."""
    found = []
    for tokens in product(range(3), repeat=LONGEST):
        end = tokens.index(STOP) + 1 if STOP in tokens else LONGEST
        found.append((*tokens[:end], *[STOP] * (LONGEST - end), end))
    rows = torch.tensor(sorted(set(found)))
    return rows[:, :LONGEST], torch.arange(LONGEST)[None] < rows[:, LONGEST:]


def prefixes(ids: Tensor) -> Tensor:
    """A number for what stands before each token (N, T)."""
    state, states = torch.zeros(len(ids), dtype=torch.long), []
    for token in ids.unbind(1):
        states.append(state)
        state = 3 * state + token + 1
    return torch.stack(states, 1)


def rollout_of(ids: Tensor, mask: Tensor, score: Tensor, logprobs: Tensor, value: float) -> Rollout:
    """These responses with ``score`` on their last token and a critic that says ``value``."""
    last = mask.long().sum(1) - 1
    rewards = torch.zeros_like(logprobs).scatter(1, last[:, None], score[:, None].to(logprobs))
    zero, rows = torch.zeros_like(logprobs), torch.arange(len(ids))
    finished = ids.gather(1, last[:, None])[:, 0] == STOP
    samples = Samples(None, zero[:, :1].long(), mask[:, :1], ids, mask, finished)
    return Rollout(
        samples=samples,
        mask=mask,
        score=score,
        rewards=rewards,
        logprobs=logprobs,
        ref_logprobs=logprobs,
        values=torch.full_like(logprobs, value).masked_fill(~mask, 0.0),
        kl_coefficient=torch.zeros(len(ids)),
        group=rows,
        finished=finished,
        advantages=zero,
        returns=zero,
    )


def gradient_norms(
    score: Callable[[Tensor], Tensor], value: float, lam: float, seed: int
) -> tuple[float, float]:
    """(norm of the expected gradient, largest norm of one response's) of the PPO plugin's loss.

    ``score`` maps tokens (N, T) to rewards (N,). The expectation runs over all 15 responses with
    the policy's own probabilities; the plugin's mean over tokens is taken over the expected length,
    as in a large batch. float64, beta 0, no whitening.
    """
    algorithm = ppo(whiten=False, lam=lam, value_coefficient=0.0)
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 3, generator=draw, dtype=torch.float64).requires_grad_()
    ids, mask = responses()
    picked = logits.log_softmax(-1)[prefixes(ids)].gather(2, ids[..., None])[..., 0]
    logprobs = picked.masked_fill(~mask, 0.0)  # (N, T)
    chance, lengths = logprobs.detach().sum(1).exp(), mask.sum(1)
    rollout = rollout_of(ids, mask, score(ids).double(), logprobs.detach(), value)
    nothing: Any = None  # the models and the context, at which PPO does not look
    rollout.advantages, rollout.returns = algorithm.advantages(rollout, nothing)
    total, largest = torch.zeros_like(logits), 0.0
    for n in range(len(ids)):
        one = rollout.rows(torch.tensor([n]))
        now = logprobs[n : n + 1, : int(lengths[n])]
        terms = algorithm.loss(one, PolicyOutputs(now, one.values, nothing, nothing), nothing)
        (grad,) = torch.autograd.grad(terms["policy"] * lengths[n], logits, retain_graph=True)
        total += chance[n] * grad / (chance @ lengths.double())
        largest = max(largest, float(grad.norm()))
    assert abs(float(chance.sum()) - 1) < 1e-9  # every response is there
    return float(total.norm()), largest


def constant(ids: Tensor) -> Tensor:
    """The same reward for every response."""
    return torch.ones(len(ids))


def praise(ids: Tensor) -> Tensor:
    """A reward that says something: the number of 0s."""
    return (ids == 0).sum(1)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "constant reward, exact critic": (constant, 1.0, 0.95),
    "constant reward, critic 0, GAE λ = 1": (constant, 0.0, 1.0),
    "constant reward, critic 0, GAE λ = .95": (constant, 0.0, 0.95),
    "number of 0s, critic 0, GAE λ = 1": (praise, 0.0, 1.0),
}


def lemma(seed: int) -> list[Row]:
    """A row for each case on one drawn policy."""
    rows: list[Row] = []
    for name, case in CASES.items():
        expected, largest = gradient_norms(*case, seed)
        row: Row = {"seed": seed, "kind": "lemma", "name": name}
        rows.append(row | {"expected": expected, "largest": largest})
    return rows


def noise(reduce: Callable[[Tensor], Tensor], fixed: bool, seed: int) -> Rewards:
    """N(0, 1) a head, reduced over heads; ``fixed``: drawn once for each prompt and response."""
    draw = torch.Generator().manual_seed(seed + 500)
    drawn = torch.randn(SIZE, SIZE, HEADS, generator=draw)

    def of(prompts: Tensor, answers: Tensor, generator: torch.Generator) -> Tensor:
        fresh = torch.randn(len(prompts), HEADS, generator=generator)
        return reduce(drawn[prompts, answers] if fixed else fresh)[:, None]

    return of


def level(value: float) -> Rewards:
    """``value`` for everything."""
    return lambda prompts, *_: torch.full((len(prompts), 1), value)


CONSTANT = "constant 1"
# name: (reduction over heads, its mean over N(0, 1) draws)
REDUCED: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "one random reward": (lambda heads: heads[:, 0], 0.0),
    f"mean of {HEADS}": (lambda heads: heads.mean(1), 0.0),
    f"minimum of {HEADS}": (lambda heads: heads.amin(1), -1.16296),
    f"maximum of {HEADS}": (lambda heads: heads.amax(1), 1.16296),
}
ROLLOUTS = 40
ONE: dict[str, Any] = {"optimiser": torch.optim.SGD, "lr": 20.0, "epochs": 1}
TRAINING: dict[str, tuple[bool, dict[str, Any]]] = {  # name: (whitening, settings)
    "SGD, one epoch, exact critic": (False, {**ONE, "value_lr": 0.0}),
    "SGD, one epoch, critic learnt from 0": (False, {**ONE, "value_lr": 10.0}),
    "Adam, four epochs, whitening": (True, {"lr": 0.03, "epochs": 4, "value_lr": 0.1}),
}
KINDS = {"fresh": "drawn anew for each sample", "fixed": "drawn once for each response"}


def remaining(rewards: Rewards, seed: int, rollouts: int, value: float, training: str) -> float:
    """Mean probability of the best response after PPO; a critic that is held says ``value``."""
    whiten, how = TRAINING[training]
    body = nn.Linear(SIZE, SIZE, bias=False)
    odds = float(np.log(START * (SIZE - 1) / (1 - START)))
    with torch.no_grad():
        body.weight.copy_(odds * torch.eye(SIZE))
    learner = OneToken(
        body,
        SIZE,
        rewards,
        torch.Generator().manual_seed(seed),
        algorithm=ppo(whiten=whiten, value_clip=None),
        batch=128,
        value=0.0 if how["value_lr"] else value,
        **how,
    )
    for _ in range(rollouts):
        learner.step()
    return float(learner.probabilities().diagonal().mean())


def ruin(
    seed: int, rollouts: int = ROLLOUTS, trainings: Sequence[str] = tuple(TRAINING)
) -> list[Row]:
    """A row for each kind of reward and way of training."""
    rewards = {("constant", CONSTANT): (level(1.0), 1.0)}
    for kind, (name, (reduce, mean)) in product(KINDS, REDUCED.items()):
        rewards[kind, name] = noise(reduce, kind == "fixed", seed), mean
    rows: list[Row] = []
    for training, ((kind, name), (reward, mean)) in product(trainings, rewards.items()):
        row: Row = {"seed": seed, "kind": kind, "name": name, "training": training}
        rows.append(row | {"best": remaining(reward, seed, rollouts, mean, training)})
    return rows


def summary(rows: list[Row]) -> str:
    """Both tables: mean ± std over seeds."""
    lines = []
    for name in CASES:
        at = {"kind": "lemma", "name": name}
        cells = [spread(column(rows, key, **at), ".1e") for key in ("expected", "largest")]
        lines.append([name, *cells])
    heads = ["reward and critic", "norm of the expected gradient", "largest of one response"]
    first = table(heads, lines)
    runs, lines = rows_of(rows), []
    for kind, name in dict.fromkeys((str(r["kind"]), str(r["name"])) for r in runs):
        cells = []
        for training in TRAINING:
            found = column(runs, "best", kind=kind, name=name, training=training)
            cells.append(spread(found))
        lines.append([name, KINDS.get(kind, ""), *cells])
    return first + "\n\n" + table(["reward", "", *TRAINING], lines)


def draw_figure(rows: list[Row]) -> Figure:
    """What is left of the policy, by reward; a panel a way of training."""
    figure, panels = axes(len(TRAINING), height=3.8, sharey=True)
    names = list(REDUCED)
    colours = dict(zip(names, (RED, GREEN, BLUE, PURPLE), strict=True))
    for axis, training in zip(panels, TRAINING, strict=True):
        places, labels = [0.0], ["constant"]
        bars = [("constant", CONSTANT, GREY)]
        for offset, kind in ((1.6, "fresh"), (6.2, "fixed")):
            places += [offset + i for i in range(len(names))]
            bars += [(kind, name, colours[name]) for name in names]
            labels += [name.replace(" random reward", "") for name in names]
        for place, (kind, name, colour) in zip(places, bars, strict=True):
            values = np.array(
                column(rows_of(rows), "best", kind=kind, name=name, training=training)
            )
            spots = place + np.linspace(-0.25, 0.25, len(values))
            axis.plot(spots, values, "o", ms=3, color=colour, alpha=0.4)
            axis.plot(place, values.mean(), "_", ms=15, mew=2.5, color=colour)
        axis.axhline(START, color="black", ls="--", lw=0.8)
        axis.set_xticks(places, labels, rotation=60, ha="right", rotation_mode="anchor")
        axis.set(title=training, ylim=(0, 1))
        axis.text(3.1, 0.96, "each sample", ha="center", fontsize=8)
        axis.text(7.7, 0.96, "each response", ha="center", fontsize=8)
        axis.grid(axis="x", visible=False)
    panels[0].set_ylabel(f"probability of the best response\nafter {ROLLOUTS} rollouts")
    return figure


def rows_of(rows: list[Row]) -> list[Row]:
    """The rows of the second table."""
    return [r for r in rows if r["kind"] != "lemma"]


def main() -> None:
    args = arguments(__doc__, "random_rewards", seeds=20)
    rows = [row for seed in range(args.seeds) for row in (*lemma(seed), *ruin(seed))]
    print(summary(rows))
    write(args.out, "random_rewards", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
