"""Responses, rewards and contexts so small that their numbers can be worked out by hand."""

from types import SimpleNamespace

import pytest
import torch

import ostinato

# a run of the toy world in a second or two
TINY = (
    "iterations=1",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "rl.clip_score=null",
    "reward_model.updates=5",
    "prompts.preference=16",
    "prompts.held_out=8",
    "prompts.evaluation=8",
    "checkpoint_every=1",
)


class Words:
    """A tokenizer of which only the decoder is asked for: token 3 is `3`."""

    pad_token_id, eos_token_id = 0, 1

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(str(token) for token in row) for row in rows]


class Told(ostinato.Reward):
    """A reward that a function of samples says, or whole Scores."""

    def __init__(self, function):
        self.function = function

    def scores(self, samples):
        found = self.function(samples)
        return found if isinstance(found, ostinato.Scores) else ostinato.Scores(found.float())


def samples_of(responses, prompts=None):
    """Samples of these rows of tokens, which end with their stop token."""
    width = max(map(len, responses))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in responses])
    mask = torch.arange(width) < torch.tensor([len(row) for row in responses])[:, None]
    texts = prompts or [f"prompt {i}" for i in range(len(responses))]
    seen = torch.ones(len(responses), 1, dtype=torch.bool)
    finished = torch.ones(len(responses), dtype=torch.bool)
    return ostinato.Samples(Words(), seen.long(), seen, ids, mask, finished, texts)


def context(**fields):
    """A context that keeps what is logged."""
    logged = {}
    usual = {"iteration": 1, "step": 0, "attempt": 0, "ruler": None, "data": None}
    made = SimpleNamespace(**usual | fields, logged=logged)
    made.log = lambda **numbers: logged.update({k: float(v) for k, v in numbers.items()})
    return made


def rewards_of(score, logprobs, ref_logprobs=None, parts=None, token_score=None):
    """A batch of rollouts; every token is real."""
    score, logprobs = torch.tensor(score), torch.tensor(logprobs)
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    return ostinato.RewardBatch(
        samples=samples_of([[2] * logprobs.shape[1]] * len(score)),
        score=score,
        parts=score[:, None, None] if parts is None else torch.tensor(parts),
        part_std=None,
        logprobs=logprobs,
        ref_logprobs=logprobs if ref_logprobs is None else torch.tensor(ref_logprobs),
        mask=mask,
        finished=torch.ones(len(score), dtype=torch.bool),
        group=torch.arange(len(score)),
        kl_scale=torch.ones_like(score),
        iteration=1,
        step=0,
        token_score=None if token_score is None else torch.tensor(token_score),
    )


def configured(plugin, **settings):
    """An instance as a run makes it."""
    made = object.__new__(plugin)
    made.config = plugin.Config(**settings)
    made.__init__()
    return made


@pytest.fixture
def small():
    """What the tests make their situations of."""
    return SimpleNamespace(
        told=Told,
        samples=samples_of,
        context=context,
        rewards=rewards_of,
        configured=configured,
    )


@pytest.fixture
def toy(tmp_path):
    """Run plugins in the toy world: (plugins, *overrides) -> Run."""

    def run(plugins, *overrides, name="run", **more):
        listed = f"plugins=[{plugins}]"
        return ostinato.run("toy", tmp_path / name, [*TINY, listed, *overrides], **more)

    return run
