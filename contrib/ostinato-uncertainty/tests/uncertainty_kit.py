"""Situations for single hooks, and runs of the toy world that take a second."""

from types import SimpleNamespace

import torch

import ostinato

TINY = (
    "iterations=1",
    "rl.rollouts=2",
    "rl.rollout_size=16",
    "rl.minibatch=16",
    "reward_model.updates=5",
    "prompts.preference=32",
    "prompts.evaluation=16",
    "prompts.held_out=8",
    "evaluation.every=2",
)


def toy(folder, listed, *changes, watch=()):
    """A run of the toy world with these plugins, written as in a run file."""
    return ostinato.run("toy", folder, [*TINY, *changes, f"plugins=[{listed}]"], watch=watch)


def actions(run, key):
    """Every magnitude that a hook logged, in order."""
    return [row["actions"][key] for row in run.metrics if key in row.get("actions", {})]


def configured(plugin, **settings):
    """An instance as a run makes it."""
    made = plugin.__new__(plugin)
    made.config = plugin.Config(**settings)
    made.__init__()
    return made


def samples(features, tokens=3):
    """Samples whose features (B, members, D) a :class:`Linear` reward reads."""
    mask = torch.ones(len(features), tokens, dtype=torch.bool)
    made = ostinato.Samples(None, mask.long(), mask, mask.long(), mask, mask[:, 0])
    made.features = torch.as_tensor(features, dtype=torch.float32)
    return made


class Linear(ostinato.Reward):
    """The mean over members of weight' features."""

    def __init__(self, weight):
        self.weight = torch.as_tensor(weight, dtype=torch.float32)  # (members, D)

    def scores(self, given):
        each = (given.features * self.weight).sum(-1)  # (B, members)
        return ostinato.Scores(each.mean(1), each[..., None], hidden=given.features)


class Featureless(ostinato.Reward):
    """Answers no features."""

    def scores(self, given):
        return ostinato.Scores(torch.zeros(len(given)))


def context(data=None, references=None, ruler=None, **fields):
    """What the hooks of this package ask of a context."""
    logged = {}
    return SimpleNamespace(
        data=data,
        responses=lambda found, side: found[side],
        sft=SimpleNamespace(load=lambda: None),
        sample=lambda policy, given, purpose, count: references,
        ruler=ruler,
        log=logged.update,
        logged=logged,
        **fields,
    )


def pairs(stds=None, **means):
    """(batch, outputs) of one comparison a column, for preference losses: (V=1, 2C, outputs)."""
    chosen, rejected = (torch.as_tensor(means[s], dtype=torch.float64) for s in means)
    count = len(chosen)
    score = torch.cat([chosen, rejected])[None]
    rows = torch.arange(count)
    batch = SimpleNamespace(
        pairs=torch.stack([rows, rows + count], dim=1),
        label=torch.ones(count, dtype=torch.float64),
        margin=torch.zeros(count, dtype=torch.float64),
    )
    columns = [score[0]] if stds is None else [score[0], torch.cat(stds).double().log()]
    outputs = SimpleNamespace(score=score, logits=torch.stack(columns, dim=-1)[None])
    return batch, outputs
