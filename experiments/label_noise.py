"""A quarter of the labels is wrong: do the votes of reward models find them, and does that help?

    python experiments/label_noise.py --seeds 10 --out runs/label_noise

Secrets of RLHF II, figures 2 to 5, on made-up words whose letters are worth something: the better
of two is chosen, then a quarter of the labels is turned round. Ten reward models vote (`strength`);
reward models trained on the labels as they are, and as `flip`, `soft_labels` and `margin` mend
them, are tested on clean pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Row,
    arguments,
    axes,
    column,
    spread,
    table,
    write,
)
from ostinato import load_config, swapped
from ostinato.config.draws import Draws
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins, activate
from ostinato.data.identity import response_id
from ostinato.data.training import refine_data
from ostinato.engine.calibration import held_out_accuracy
from ostinato.engine.reward_training import RewardTrainer
from ostinato.machine.backend import Backend
from ostinato.models.loading import load_tokenizer
from ostinato.models.policy import Policy
from ostinato.models.reward_model import RewardModel

Array = NDArray[np.float64]
Wanted = list[tuple[str, dict[str, Any]]]

NOISE, GROUPS = 0.25, 10
SIDES = ("chosen", "rejected")
MODEL = {
    "tokenizer": "bytes",
    "random": {
        "model_type": "gpt_neox",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
}
CONFIG = {
    "policy": MODEL,
    "reward_model": {**MODEL, "lr": 1e-2, "batch": 16, "max_tokens": 64},
    "prompts": {"data": "none.jsonl"},
    "backend": {"threads": 1},
}
STRENGTH = ("strength", {"models": 10, "epochs": 1})
FLIP: tuple[str, dict[str, Any]] = ("flip", {})
MARGIN: tuple[str, dict[str, Any]] = ("margin", {})
SOFT: tuple[str, dict[str, Any]] = ("soft_labels", {})
CURES: dict[str, Wanted] = {
    "flip below 0": [FLIP],
    "flip the lowest 20 %": [("flip", {"lowest": 0.2})],
    "soft labels": [SOFT],
    "margin": [MARGIN],
    "flip + margin": [FLIP, MARGIN],
    "soft labels + margin": [SOFT, MARGIN],
}


def gold(word: str) -> int:
    """What a word is worth: twice (a's less b's) plus c's less d's; other letters say nothing."""
    return 2 * (word.count("a") - word.count("b")) + word.count("c") - word.count("d")


def words(count: int, seed: int) -> Dataset:
    """``count`` prompts with two random words each, the one of higher gold chosen."""
    draw = random.Random(seed)
    encode = load_tokenizer(load_config(CONFIG).policy, "policy").encode
    rows = []
    for group in range(count):
        prompt = "".join(draw.choices("xyz", k=draw.randint(1, 4)))
        found: dict[int, str] = {}  # by gold, so that no two tie
        while len(found) < 2:
            word = "".join(draw.choices("abcdef", k=draw.randint(2, 8)))
            found.setdefault(gold(word), word)
        row: Row = {"group": group, "prompt_id": group, "iteration": 1, "prompt": prompt}
        row |= {"prompt_ids": encode(prompt)[:-1], "label": 1.0, "margin": 0.0, "weight": 1.0}
        for place, (side, worth) in enumerate(zip(SIDES, sorted(found)[::-1], strict=True)):
            row |= {side: found[worth], f"{side}_ids": encode(found[worth])}
            row[f"{side}_gold"] = float(worth)
            row |= {f"{side}_finished": True, f"{side}_id": response_id(1, group, place)}
        rows.append(row)
    return Dataset.from_list(rows)


def _no_policy() -> Policy:
    raise AssertionError("there is no policy here")


@dataclass
class World:
    """Reward models trained from one start, in memory; the votes are kept."""

    seed: int

    def __post_init__(self) -> None:
        self.config = load_config(CONFIG)
        backend = Backend(self.config.backend)
        self.draws = Draws(self.seed, 1)
        self.tokenizer = load_tokenizer(self.config.policy, "policy")
        handle = PolicyHandle("sft", _no_policy)
        self.ctx = Context(
            self.config,
            self.draws,
            backend.device,
            handle,
            iteration=1,
            autocast=backend.autocast,
        )
        self.votes: dict[str, Dataset] = {}
        with self.draws.forked("body"):
            self.initial = RewardModel.load(self.config.reward_model)

    def trainer(self, plugins: Plugins) -> RewardTrainer:
        """``fit`` as the loop makes it."""

        def log(kind: str, **row: Any) -> None:
            """Training curves are not kept."""

        return RewardTrainer(plugins, self.ctx, log, self.tokenizer)

    def refined(self, data: Dataset, wanted: Wanted) -> Dataset:
        """The data after these plugins; the votes are made once."""
        plugins = activate([STRENGTH, *wanted], "cure")

        def fit(data: Dataset, purpose: str, **changes: Any) -> RewardModel:
            start = self.initial.with_head(self.draws, purpose=f"head {purpose}")
            return self.trainer(plugins)(start, data, purpose=purpose, **changes)

        def cached(name: str, make: Any) -> Dataset:
            if name not in self.votes:
                self.votes[name] = make()
            return self.votes[name]

        return refine_data(data, plugins, self.ctx.at(fit=fit, cached=cached))

    def accuracy(self, data: Dataset, held_out: Dataset, updates: int) -> float:
        """Held-out accuracy of a reward model trained on ``data``."""
        start = self.initial.with_head(self.draws)
        epochs = updates * self.config.reward_model.batch / len(data)
        model = self.trainer(activate([], "fit"))(start, data, epochs=epochs)
        found = held_out_accuracy(model, held_out, self.tokenizer)["accuracy"]
        assert found is not None  # there are no ties
        return found


def turned(data: Dataset, share: float, seed: int) -> tuple[Dataset, NDArray[np.bool_]]:
    """The data with a share of its labels turned round, and which."""
    wrong = np.zeros(len(data), dtype=bool)
    count = round(share * len(data))
    wrong[np.random.default_rng(seed).permutation(len(data))[:count]] = True
    return swapped(data, wrong.tolist()), wrong


def auc(strength: Array, wrong: NDArray[np.bool_]) -> float:
    """The chance that a wrong label has a lower strength than a right one; ties count half."""
    low, high = strength[wrong][:, None], strength[~wrong][None, :]
    return float(((low < high) + 0.5 * (low == high)).mean())


def repetition(
    seed: int,
    pairs: int = 256,
    updates: int = 72,
    cures: Sequence[str] = tuple(CURES),
    groups: int = GROUPS,
) -> list[Row]:
    """A row a treatment, then a row a group of pairs of like strength (figures 2, 3 and 4)."""
    world, held_out = World(seed), words(512, seed + 10_000)
    clean = words(pairs, seed)
    noisy, wrong = turned(clean, NOISE, seed)
    treated = {"clean labels": clean, "labels as they are": noisy}
    treated |= {name: world.refined(noisy, CURES[name]) for name in cures}
    votes = world.votes["strength"]
    strength, deviation = (np.array(votes[f"strength_{key}"][:]) for key in ("mean", "std"))
    found = auc(strength, wrong)
    rows: list[Row] = []
    for name, data in treated.items():
        differs = [a != b for a, b in zip(data["chosen"], clean["chosen"], strict=True)]
        row: Row = {"seed": seed, "kind": "treatment", "name": name, "auc": found}
        row |= {"negative": float((strength < 0).mean()), "wrong": float(np.mean(differs))}
        rows.append(row | {"accuracy": world.accuracy(data, held_out, updates)})
    order = strength.argsort(kind="stable")
    for number, part in enumerate(np.array_split(order, groups) if groups else []):
        row = {"seed": seed, "kind": "group", "name": number, "wrong": float(wrong[part].mean())}
        row |= {"mean": float(strength[part].mean()), "std": float(deviation[part].mean())}
        few = noisy.select(part.tolist())
        rows.append(row | {"accuracy": world.accuracy(few, held_out, updates // 3)})
    return rows


def summary(rows: list[Row]) -> str:
    """The table: mean ± std over seeds."""
    treated = [r for r in rows if r["kind"] == "treatment"]
    lines = []
    for name in dict.fromkeys(str(r["name"]) for r in treated):
        cells = [
            spread([100 * v for v in column(treated, key, name=name)], ".1f")
            for key in ("wrong", "accuracy")
        ]
        lines.append([name, *cells])
    first = [r for r in treated if r["name"] == "clean labels"]
    text = table(["labels", "wrong labels, %", "held-out accuracy, %"], lines)
    text += f"\n\nAUC of strength against the wrong labels: {spread(column(first, 'auc'), '.3f')}; "
    return text + f"share of strengths below 0: {spread(column(first, 'negative'), '.3f')}"


def draw_figure(rows: list[Row]) -> Figure:
    """Figures 2 to 4 by groups of strength, figure 5 by treatment."""
    figure, (left, middle, right) = axes(3, width_ratios=(1, 1, 1.25))
    of = [r for r in rows if r["kind"] == "group"]
    groups = sorted({int(r["name"]) for r in of})

    def by_group(key: str) -> Array:
        return np.array([column(of, key, name=g) for g in groups])

    for key, colour, text in (("mean", BLUE, "mean"), ("std", ORANGE, "std over the ten models")):
        values = by_group(key)
        left.errorbar(
            groups,
            values.mean(1),
            values.std(1, ddof=1),
            color=colour,
            marker="o",
            ms=4,
            capsize=2,
            label=text,
        )
    left.axhline(0, color="black", lw=0.8)
    left.set(title="Strength (figure 2)", ylabel="score difference")
    for values, colour, text in (
        (1 - by_group("wrong"), GREEN, "right labels"),
        (by_group("accuracy"), RED, "accuracy if trained on it"),
    ):
        middle.errorbar(
            groups,
            values.mean(1),
            values.std(1, ddof=1),
            color=colour,
            marker="o",
            ms=4,
            capsize=2,
            label=text,
        )
    middle.axhline(0.5, color=GREY, ls="--", lw=1)
    middle.set(title="What each group is worth (figures 3, 4)", ylabel="share", ylim=(0, 1.08))
    for axis in (left, middle):
        axis.set(xlabel="group of pairs, by rising strength", xticks=groups)
        axis.set_xticklabels([str(g + 1) for g in groups])
    left.legend(fontsize=8)
    middle.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.2))
    treated = [r for r in rows if r["kind"] == "treatment"]
    names = list(dict.fromkeys(str(r["name"]) for r in treated))[::-1]
    for place, name in enumerate(names):
        values = np.array(column(treated, "accuracy", name=name))
        colour = {"clean labels": GREEN, "labels as they are": RED}.get(name, BLUE)
        spots = place + np.linspace(-0.22, 0.22, len(values))
        right.plot(values, spots, "o", ms=4, color=colour, alpha=0.45)
        right.plot(values.mean(), place, "|", ms=18, mew=2.5, color=colour)
    right.set(title="Held-out accuracy (figure 5)", xlabel="share of clean pairs in gold's order")
    right.set(yticks=range(len(names)), yticklabels=names)
    right.locator_params(axis="x", nbins=5)
    return figure


def main() -> None:
    args = arguments(__doc__, "label_noise")
    rows = [row for seed in range(args.seeds) for row in repetition(seed)]
    print(summary(rows))
    write(args.out, "label_noise", rows, draw_figure(rows))


if __name__ == "__main__":
    main()
