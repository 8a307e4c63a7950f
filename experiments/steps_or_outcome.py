"""Sixteen answers to a sum: which reward model finds a right one?

    python experiments/steps_or_outcome.py --seeds 10 --out runs/steps_or_outcome

The RLHF Book, sections 7.5 and 7.6, after Let's Verify Step by Step (figure 3): reward models are
trained on the same pairs of the SFT policy's responses of the world `sums`, by preferences, by
outcomes (`orm`) and by steps (`prm`), and pick the best of n responses to prompts that no model has
seen. Chance and the exact verifier are what lies below and above them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from torch import Tensor

from common import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Row,
    arguments,
    axes,
    column,
    spread,
    table,
    write,
)
from ostinato import Policy, Reward, Samples, load_config
from ostinato.config.draws import Draws
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins, activate
from ostinato.data.preferences import comparisons_of, label
from ostinato.data.prompts import load_prompts
from ostinato.engine.reward_training import RewardTrainer
from ostinato.machine.backend import Backend
from ostinato.models.gold import load_gold
from ostinato.models.reward_model import RewardModel
from ostinato_plugins.evaluations.best_of_n import expected_best
from ostinato_worlds import sums

Wanted = list[tuple[str, dict[str, Any]]]

STEPS = {"function": "ostinato_worlds.sums:check_steps", "separator": ";"}
METHODS: dict[str, Wanted] = {
    "bradley_terry": [],
    "orm": [("orm", {"function": "ostinato_worlds.sums:verify"})],
    "prm": [("prm", STEPS)],
}
OTHERS = {"prm, mean": {**STEPS, "reduce": "mean"}, "prm, last": {**STEPS, "reduce": "last"}}
COLOURS = {"bradley_terry": ORANGE, "orm": BLUE, "prm": GREEN, "prm, mean": PURPLE}
PAIRS = (64, 256)
RESPONSES = 16
UPDATES = 100


@dataclass
class World:
    """The world's models and prompts, the pairs and the answers of one seed."""

    seed: int
    pairs: int = PAIRS[-1]
    prompts: int = 192
    responses: int = RESPONSES

    def __post_init__(self) -> None:
        sizes = [f"prompts.preference={self.pairs}", "prompts.held_out=0"]
        sizes += [f"prompts.evaluation={self.prompts}", f"reward_model.updates={UPDATES}"]
        self.config = load_config("sums", [f"seed={self.seed}", *sizes])
        backend = Backend(self.config.backend)
        self.draws = Draws(self.seed, 1)
        self.policy = Policy.load(self.config.policy, 1.0)
        splits = load_prompts(self.config.prompts, self.policy.tokenizer)
        assert self.config.gold is not None
        self.ctx = Context(
            self.config,
            self.draws,
            backend.device,
            PolicyHandle("sft", lambda: self.policy),
            gold=load_gold(self.config.gold, backend.device),
            iteration=1,
            autocast=backend.autocast,
            columns=lambda asked: splits.columns(
                asked.prompts if isinstance(asked, Samples) else asked
            ),
        )
        self.initial = RewardModel.load(self.config.reward_model)
        known = splits.preference.first(self.pairs)
        drawn = self.ctx.sample(self.policy, known, "pairs", count=2)
        self.data = label(comparisons_of(drawn, known, self.ctx), activate([], "pairs"), self.ctx)
        asked = splits.evaluation
        self.answers = self.ctx.sample(self.policy, asked, "answers", count=self.responses)
        right = sums.verify(self.answers.responses, **splits.columns(self.answers.prompts))
        self.right = torch.tensor(right).view(-1, self.responses)  # (prompts, responses)

    def trained(self, plugins: Plugins, data: Dataset) -> RewardModel:
        """A reward model as the loop trains it."""

        def log(kind: str, **row: Any) -> None:
            """Training curves are not kept."""

        fit = RewardTrainer(plugins, self.ctx, log, self.policy.tokenizer)
        return fit(self.initial.with_head(self.draws), data)

    def scores(self, reward: Reward) -> Tensor:
        """What it says of the answers (prompts, responses)."""
        return reward.score_samples(self.answers).total.view(-1, self.responses)


def choosers(world: World, data: Dataset, methods: Sequence[str]) -> dict[str, Tensor]:
    """Scores (prompts, responses) by who gives them."""
    found: dict[str, Tensor] = {}
    for name in methods:
        plugins = activate(METHODS[name], name)
        model = world.trained(plugins, data)
        if name != "prm":
            found[name] = world.scores(model)
            continue
        for by, settings in {"prm": STEPS, **OTHERS}.items():
            reading = activate([("prm", settings)], by)
            reward = reading.call("prm", "wrap_reward", reward=model, ctx=world.ctx)
            found[by] = world.scores(reward)
    return found


def auc(scores: Tensor, right: Tensor) -> float:
    """The chance that a prompt's right answer scores above its wrong one; ties count half."""
    above = (scores[:, :, None] > scores[:, None, :]).double()
    above += 0.5 * (scores[:, :, None] == scores[:, None, :])
    pairs = (right[:, :, None] > right[:, None, :]).double()
    return float((above * pairs).sum() / pairs.sum())


def repetition(
    seed: int,
    sizes: Sequence[int] = PAIRS,
    methods: Sequence[str] = tuple(METHODS),
    prompts: int = 192,
    responses: int = RESPONSES,
) -> list[Row]:
    """Rows of (pairs, chooser, n): the share of right answers among those that are picked."""
    world = World(seed, max(sizes), prompts, responses)
    rows: list[Row] = []

    def add(pairs: int, name: str, scores: Tensor) -> None:
        row: Row = {"seed": seed, "pairs": pairs, "chooser": name, "auc": auc(scores, world.right)}
        for n in (2**k for k in range(responses.bit_length())):
            picked = expected_best(scores, world.right, n).mean()
            rows.append(row | {"n": n, "right": float(picked)})

    for size in sizes:
        data = world.data.select(range(size))
        for name, scores in choosers(world, data, methods).items():
            add(size, name, scores)
    add(0, "chance", torch.zeros_like(world.right))
    add(0, "verifier", world.right)
    return rows


def summary(rows: list[Row]) -> str:
    """The table: mean ± std over seeds, best of 4 and of 16, by pairs."""
    most = max(int(r["n"]) for r in rows)
    lines = []
    for pairs, name in dict.fromkeys((r["pairs"], str(r["chooser"])) for r in rows):
        where = {"pairs": pairs, "chooser": name}
        shares = [[100 * v for v in column(rows, "right", **where, n=n)] for n in (4, most)]
        cells = [spread(values, ".1f") for values in shares]
        lines.append([name, str(pairs or "–"), *cells, spread(column(rows, "auc", **where, n=1))])
    head = ["picked by", "pairs", "right of 4, %", f"right of {most}, %", "AUC"]
    return table(head, lines)


def draw_figure(rows: list[Row]) -> Figure:
    """Right answers against n, and against the pairs that were trained on."""
    figure, (left, right) = axes(2)
    sizes = sorted({int(r["pairs"]) for r in rows} - {0})
    ns = sorted({int(r["n"]) for r in rows})

    def mean(name: str, pairs: int, n: int) -> tuple[float, float]:
        values = torch.tensor(column(rows, "right", chooser=name, pairs=pairs, n=n))
        return float(values.mean()), float(values.std())

    for name, colour in COLOURS.items():
        for axis, xs, points in (
            (left, ns, [mean(name, sizes[-1], n) for n in ns]),
            (right, sizes, [mean(name, size, ns[-1]) for size in sizes]),
        ):
            means, stds = zip(*points, strict=True)
            axis.errorbar(xs, means, stds, color=colour, marker="o", ms=4, capsize=2, label=name)
    for name, style in (("chance", ":"), ("verifier", "--")):
        left.plot(ns, [mean(name, 0, n)[0] for n in ns], color=GREY, ls=style, label=name)
        right.axhline(mean(name, 0, ns[-1])[0], color=GREY, ls=style)
    left.set(title=f"Trained on {sizes[-1]} pairs", xlabel="n", xscale="log", xticks=ns)
    left.set_xticklabels([str(n) for n in ns])
    left.set(ylabel="share of right answers among the picked")
    right.set(title=f"Best of {ns[-1]}", xlabel="pairs", xscale="log", xticks=sizes)
    right.set_xticklabels([str(size) for size in sizes])
    for axis in (left, right):
        axis.minorticks_off()
    left.legend(fontsize=8)
    return figure


def main() -> None:
    args = arguments(__doc__, "steps_or_outcome")
    rows = [row for seed in range(args.seeds) for row in repetition(seed)]
    print(summary(rows))
    write(args.out, "steps_or_outcome", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
