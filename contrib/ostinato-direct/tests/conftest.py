"""A rollout, responses and a plugin with settings, as small as they can be."""

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
def samples():
    """(response tokens, finished) -> Samples, every prompt of which is one token, 7."""

    def make(rows, finished=None):
        ids = padded(rows)
        mask = padded([[1.0] * len(row) for row in rows]).bool()
        prompt = torch.full((len(rows), 1), 7)
        done = torch.ones(len(rows)).bool() if finished is None else torch.tensor(finished)
        tokenizer = SimpleNamespace(pad_token_id=0)
        return ostinato.Samples(tokenizer, prompt, prompt.bool(), ids.long(), mask, done)

    return make


@pytest.fixture
def rollout(samples):
    """(logprobs by response, score, group) -> a Rollout; further fields by name."""

    def make(logprobs, score, group, **fields):
        old, score = padded(logprobs), torch.tensor(score, dtype=torch.float64)
        drawn = samples([[1] * len(row) for row in logprobs])
        zeros = torch.zeros_like(old)
        given = {
            "samples": drawn,
            "mask": drawn.mask,
            "score": score,
            "rewards": zeros,
            "logprobs": old,
            "ref_logprobs": old,
            "values": zeros,
            "kl_coefficient": torch.zeros_like(score),
            "group": torch.tensor(group),
            "finished": drawn.finished,
            "advantages": zeros,
            "returns": zeros,
        }
        return ostinato.Rollout(**given | fields)

    return make


@pytest.fixture
def outputs():
    """(logprobs by response, policy) -> PolicyOutputs whose log-probabilities take a gradient."""

    def make(logprobs, policy=None):
        found = padded(logprobs).requires_grad_()
        return ostinato.PolicyOutputs(found, torch.zeros_like(found), policy, None)

    return make


class Table:
    """A policy over responses of one token, each with a log-probability of its own."""

    def __init__(self, logprobs):
        self.of = torch.as_tensor(logprobs, dtype=torch.float64)

    def logprobs(self, samples):
        return self.of[samples.response_ids] * samples.mask


@pytest.fixture
def table():
    return Table
