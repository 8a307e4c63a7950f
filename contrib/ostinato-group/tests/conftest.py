"""A rollout, a context and a plugin with settings, as small as they can be."""

from types import SimpleNamespace

import pytest
import torch

import ostinato


def padded(rows):
    """Rows of numbers (B, T) in float64, 0 where they end."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)


@pytest.fixture
def plugin():
    """(class, settings) -> an instance as a run makes it."""

    def make(made, **settings):
        instance = object.__new__(made)
        instance.config = made.Config(**settings)
        instance.__init__()
        return instance

    return make


@pytest.fixture
def rollout():
    """(logprobs by response, score, group) -> a Rollout; further fields by name."""

    def make(logprobs, score, group, **fields):
        mask = padded([[1.0] * len(row) for row in logprobs]).bool()
        old = padded(logprobs)
        score = torch.tensor(score, dtype=torch.float64)
        zeros = torch.zeros_like(old)
        one = torch.ones(len(score), 1, dtype=torch.long)
        finished = torch.ones(len(score), dtype=torch.bool)
        samples = ostinato.Samples(None, one, one.bool(), mask.long(), mask, finished)
        given = {
            "samples": samples,
            "mask": mask,
            "score": score,
            "rewards": zeros.scatter_add(1, mask.sum(1, keepdim=True) - 1, score[:, None]),
            "logprobs": old,
            "ref_logprobs": old,
            "values": zeros,
            "kl_coefficient": torch.zeros_like(score),
            "group": torch.tensor(group),
            "finished": finished,
            "advantages": zeros,
            "returns": zeros,
        }
        return ostinato.Rollout(**given | fields)

    return make


@pytest.fixture
def ctx():
    """A context with a budget of tokens, which keeps what is logged in ``logged``."""
    logged = {}
    generation = SimpleNamespace(max_new_tokens=10)
    unfinished = SimpleNamespace(mode="subtract", penalty=1.0)
    rl = SimpleNamespace(clip_score=None, unfinished=unfinished)
    config = SimpleNamespace(generation=generation, rl=rl)
    return SimpleNamespace(config=config, log=logged.update, logged=logged)


@pytest.fixture
def outputs():
    """(logprobs by response) -> PolicyOutputs whose log-probabilities take a gradient."""

    def make(logprobs):
        found = padded(logprobs).requires_grad_()
        return ostinato.PolicyOutputs(found, torch.zeros_like(found), None, None)

    return make
