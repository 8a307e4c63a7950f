"""What the tests share: plugins with settings, a context that draws and logs, pairs, tiny runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

import ostinato

TINY = {
    "world": "toy",
    "iterations": 1,
    "reward_model": {"updates": 2, "batch": 8, "warmup": 0, "members": 2},
    "prompts": {"preference": 8, "held_out": 4, "evaluation": 4},
    "rl": {"rollouts": 2, "rollout_size": 8, "minibatch": 8, "epochs": 1},
    "evaluation": {"every": 2, "samples": 0},
    "generation": {"max_new_tokens": 12},
}


class Votes(ostinato.Reward):
    """A reward that knows the votes of each response text: (E,) numbers."""

    def __init__(self, known):
        self.known = known

    def scores(self, samples):
        found = torch.tensor([self.known[text] for text in samples.responses])  # (B, E)
        return ostinato.Scores(found.mean(1), parts=found[:, :, None])


@pytest.fixture(scope="session")
def made():
    """Makes a plugin as a run does: the settings are there before ``__init__``."""

    def make(plugin, **settings):
        instance = object.__new__(plugin)
        instance.config = plugin.Config(**settings)
        instance.__init__()
        return instance

    return make


@pytest.fixture
def context():
    """Makes a context of nothing but a seed; ``logged`` holds what a hook logs."""

    def make(seed=0, **fields):
        logged = {}
        ctx = SimpleNamespace(
            iteration=1,
            logged=logged,
            log=lambda **numbers: logged.update(numbers),
            generator=lambda purpose: torch.Generator().manual_seed(
                seed + sum(purpose.encode()) * 1000
            ),
        )
        vars(ctx).update(fields)
        return ctx

    return make


class Texts(SimpleNamespace):
    """Samples that know nothing but their responses."""

    def __len__(self):
        return len(self.responses)

    def rows(self, index):
        return samples_of([self.responses[i] for i in index.tolist()])


def samples_of(texts):
    return Texts(responses=list(texts), mask=torch.ones(len(texts), 1, dtype=torch.bool))


@pytest.fixture
def ask():
    """Makes the context's answer to ``responses(comparisons, side)``, and a reward of votes."""

    def responses(comparisons, side):
        return samples_of(comparisons[side][:])

    return SimpleNamespace(responses=responses, votes=Votes, samples=samples_of)


@pytest.fixture
def pairs():
    """Makes comparisons, before there are labels, of (prompt, first, second)."""

    def make(rows):
        groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(r[0] for r in rows))}
        made = [
            {"iteration": 2, "group": groups[prompt], "prompt": prompt}
            | {"first": first, "first_id": first, "second": second, "second_id": second}
            for prompt, first, second in rows
        ]
        return Dataset.from_list(made)

    return make


@pytest.fixture
def labelled():
    """Makes comparisons with every column of a run: {prompt: [(chosen, rejected), ...]}."""

    def make(texts, **columns):
        rows = []
        for group, (prompt, two) in enumerate(texts.items()):
            for number, (chosen, rejected) in enumerate(two):
                row = {"group": group, "prompt_id": group, "iteration": 1, "prompt": prompt}
                row |= {"prompt_ids": [group], "label": 1.0, "margin": 0.0, "weight": 1.0}
                for side, text in (("chosen", chosen), ("rejected", rejected)):
                    row |= {side: text, f"{side}_ids": list(text.encode())}
                    row |= {f"{side}_finished": True, f"{side}_gold": float(len(text))}
                    row |= {f"{side}_id": f"1:{group}:{2 * number + (side == 'rejected')}"}
                rows.append(row)
        data = Dataset.from_list(rows)
        for name, values in columns.items():
            data = data.add_column(name, values)
        return data

    return make


@pytest.fixture
def run(tmp_path):
    """Runs plugins in the toy world, as small as may be; sections of the run file on top."""

    def tiny(plugins, name="run", **sections):
        source = {key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()}
        for key, value in sections.items():
            source[key] = source.get(key, {}) | value if isinstance(value, dict) else value
        return ostinato.run(source | {"plugins": plugins}, tmp_path / name)

    return tiny
