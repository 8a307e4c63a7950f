"""Tiny models with random weights, a fake reward, and the context that a hook is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostinato.config.draws import Draws
from ostinato.config.reading import load_config, merged
from ostinato.config.sections import RewardModelSection
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.models.loading import load_tokenizer, prompt_tokens
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward
from ostinato.models.reward_model import RewardModel
from ostinato.models.samples import Samples, Scores, Texts

FOLDER = Path(__file__).parent / "world"
# A wide initialisation: at transformers' own .02 every next-token distribution is nearly uniform,
# and a change of the policy would hardly show.
MODEL: dict[str, Any] = {
    "tokenizer": str(FOLDER / "tokenizer"),
    "random": {
        "model_type": "gpt_neox",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,
    },
}
# Two whole iterations in a second or two.
WORLD: dict[str, Any] = {
    "iterations": 2,
    "policy": MODEL,
    "reward_model": {**MODEL, "updates": 2, "batch": 8, "lr": 1e-2, "max_tokens": 32},
    "gold": {"function": f"{__name__}:gold"},
    "prompts": {
        "data": str(FOLDER / "prompts.txt"),
        "preference": 8,
        "held_out": 4,
        "evaluation": 4,
    },
    "generation": {"max_new_tokens": 8},
    "rl": {"rollouts": 2, "rollout_size": 8, "minibatch": 8, "epochs": 1, "lr": 1e-2},
    "evaluation": {"every": 2, "samples": 1},
    "checkpoint_every": 1,
    "backend": {"threads": 1, "device": "cpu"},
}
GOOD = frozenset({"good", "warm", "fresh", "sweet"})
BAD = frozenset({"bad", "cold", "stale", "bitter"})


class WordGold:
    """Good words less bad ones, and a little for each further word."""

    def score(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Tensor:
        """Scores (B,)."""
        return torch.tensor([worth(text) for text in responses])


def gold() -> WordGold:
    """The gold reward of the micro world."""
    return WordGold()


def worth(text: str) -> float:
    """What the micro world's gold says of a response."""
    words = text.split()
    return sum((w in GOOD) - (w in BAD) for w in words) + 0.1 * len(words)


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """The micro world's: one token a word, <eos> is 0."""
    return load_tokenizer(micro_section(), "testing")


def micro_section(**random: Any) -> RewardModelSection:
    """Where a tiny model comes from; ``random`` changes its transformers config."""
    return RewardModelSection.model_validate(merged(MODEL, {"random": random, "max_tokens": 32}))


def prompts(count: int = 4) -> PromptSet:
    """Prompts of the micro world, of several lengths."""
    texts = (FOLDER / "prompts.txt").read_text(encoding="utf-8").splitlines()[:count]
    return PromptSet(list(range(len(texts))), texts, prompt_tokens(tokenizer(), texts))


def tiny_policy(seed: int = 0, temperature: float = 1.0, **random: Any) -> Policy:
    """A policy of some thousand random weights, the same for a seed; 25 words as tokens.

    ``random`` changes the transformers config: ``tiny_policy(num_hidden_layers=2)``.
    """
    section = load_config(merged(WORLD, {"policy": {"random": random}})).policy
    with Draws(seed).forked("tiny policy"):
        return Policy.load(section, temperature)


def tiny_reward_model(
    seed: int = 0, outputs: int = 1, lm_head: bool = False, **random: Any
) -> RewardModel:
    """A reward model of some thousand random weights, not calibrated; as :func:`tiny_policy`."""
    with Draws(seed).forked("tiny reward model"):
        body = RewardModel.load(micro_section(**random), lm_head)
        return body.with_head(Draws(seed), outputs)


class FakeReward(Reward):
    """A reward that is a function of samples: (B,), or whole Scores; the gold if left out."""

    def __init__(self, function: Callable[[Samples], Tensor | Scores] | None = None) -> None:
        self.function = function

    def scores(self, samples: Samples) -> Scores:
        """What the function answers."""
        if self.function is None:
            return Scores(torch.tensor([worth(text) for text in samples.responses]))
        score = self.function(samples)
        return score if isinstance(score, Scores) else Scores(score.float())


def context(settings: Mapping[str, Any] | None = None, **fields: Any) -> Context:
    """A context at iteration 1; ``settings`` are a run file's, ``fields`` and parts Context's.

    A part such as ``policy`` is there when it is given, as it is in some hooks only.
    """
    config = load_config(merged(WORLD, settings or {}))
    given = {"iteration": 1, "gold": gold(), **fields}
    draws = Draws(config.seed, given["iteration"])
    handle = PolicyHandle("sft", tiny_policy)
    return Context(config, draws, torch.device("cpu"), handle).at(**given)
