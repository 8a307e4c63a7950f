"""What the policy's tests share: tiny policies of three families, a fake reward, an engine.

``conftest.py`` makes its fixtures known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ostinato import load_config
from ostinato.config.draws import Draws
from ostinato.config.sections import RunConfig
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins, activate
from ostinato.engine.policy_training import PolicyTrainer
from ostinato.machine.backend import Backend
from ostinato.models.generation import sample
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples
from ostinato.testing import FakeReward

# A wide initialisation: at transformers' own .02 every next-token distribution is nearly uniform,
# and a wrong temperature or position would hardly show.
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
RANDOM = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": None},
    "gpt_neox": {**SIZES, "intermediate_size": 32, "max_position_embeddings": 64},
    "llama": {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "bos_token_id": None},
}
WORDS = ("a", "b", "c", "d")


def words_tokenizer(words: Sequence[str] = WORDS, pad: str | None = "<pad>") -> Any:
    """One token a word; <eos> is 0, and the pad is the eos where none is named."""
    names = ["<eos>", *([pad] if pad else []), *words]
    known = {name: i for i, name in enumerate(names)}
    core = Tokenizer(models.WordLevel(known, unk_token=words[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token=pad or "<eos>"
    )


class NoDirectory:
    """A run directory that keeps only what a checkpoint would hold."""

    def __init__(self) -> None:
        self.checkpoints: list[tuple[int, dict[str, Tensor]]] = []

    def load_checkpoint(self, *_: Any) -> None:
        return None

    def checkpoint_facts(self, stage: str) -> list[dict[str, Any]]:
        return []

    def save_checkpoint(self, stage: str, name: str, step: int, tensors: Any, facts: Any) -> None:
        self.checkpoints.append((step, {key: value.clone() for key, value in tensors.items()}))


@dataclass
class PolicyKit:
    """A config with its plugins, policies and engine; ``rows`` is what training logged."""

    config: RunConfig
    plugins: Plugins
    ctx: Context
    family: str
    rows: list[dict[str, Any]] = field(default_factory=list)  # of kind `policy`
    others: list[dict[str, Any]] = field(default_factory=list)
    directory: NoDirectory = field(default_factory=NoDirectory)

    @classmethod
    def make(
        cls,
        family: str = "gpt_neox",
        plugins: Sequence[Any] = (),
        seed: int = 0,
        model: dict[str, Any] | None = None,
        **sections: Any,
    ) -> PolicyKit:
        """``sections`` are those of the run file; ``model`` changes the transformers config."""
        torch.set_num_threads(1)
        random = {
            "model_type": family,
            "initializer_range": 0.4,
            **RANDOM[family],
            **(model or {}),
        }
        policy = {"tokenizer": "bytes", "random": random, **sections.pop("policy", {})}
        generation = {"max_new_tokens": 6, "temperature": 0.7, **sections.pop("generation", {})}
        config = load_config(
            {
                "seed": seed,
                "plugins": list(plugins),
                "policy": policy,
                "reward_model": {"random": random},
                "prompts": {"data": "none.jsonl"},
                "generation": generation,
                "backend": {"threads": 1, "device": "cpu"},
                **sections,
            }
        )

        def absent() -> Any:
            raise AssertionError("these tests have no SFT policy")

        active = activate(config.wanted_plugins, "test")
        handle = PolicyHandle("sft", absent)
        ctx = Context(config, Draws(seed, 1), torch.device("cpu"), handle, iteration=1)
        return cls(config, active, ctx, family)

    def policy(self, seed: int = 0, temperature: float | None = None) -> Policy:
        """Random weights; bytes as tokens."""
        with Draws(seed).forked("policy weights"):
            scale = self.config.generation.temperature if temperature is None else temperature
            return Policy.load(self.config.policy, scale)

    def word_policy(self, seed: int = 0, tokenizer: Any = None) -> Policy:
        """Random weights; words as tokens."""
        tokenizer = tokenizer or words_tokenizer()
        from transformers import AutoConfig, AutoModelForCausalLM

        with Draws(seed).forked("policy weights"):
            section = dict(self.config.policy.random or {}, vocab_size=len(tokenizer))
            lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**section))
        return Policy(lm, tokenizer, self.config.generation.temperature)

    def sample(self, policy: Policy, prompts: Sequence[Sequence[int]], seed: int = 0) -> Samples:
        """One response to each prompt."""
        generator = torch.Generator().manual_seed(seed)
        return sample(policy, prompts, self.config.generation, generator)

    def engine(self, prompts: Sequence[Sequence[int]], evaluate: Any = None) -> PolicyTrainer:
        """``optimise`` as the loop makes it; ``rows`` collects what it logs."""

        def log(kind: str, **row: Any) -> dict[str, Any]:
            whole = {"kind": kind, "iteration": self.ctx.iteration, **row, **self.ctx.logged}
            self.ctx.logged.clear()
            (self.rows if kind == "policy" else self.others).append(whole)
            return whole

        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        backend = Backend(self.config.backend)
        chosen = PromptSet(list(range(len(prompts))), texts, [*map(list, prompts)])
        return PolicyTrainer(
            self.plugins,
            self.ctx.at(device=backend.device, autocast=backend.autocast),
            self.directory,  # type: ignore[arg-type]
            "iteration-1/policy",
            chosen,
            log,
            evaluate or (lambda policy, step: None),
        )


@dataclass
class Watched:
    """An engine as ``train_policy`` hooks see it, with what they asked of it."""

    engine: PolicyTrainer
    runs: list[dict[str, Any]] = field(default_factory=list)
    ends: list[Policy] = field(default_factory=list)

    def __call__(self, initial: Policy, reward_model: Reward, **asked: Any) -> Policy:
        self.runs.append(asked)
        self.ends.append(self.engine(initial, reward_model, **asked))
        return self.ends[-1]

    def evaluate(self, policy: Policy, step: int) -> None:
        self.engine.evaluate(policy, step)


def float64(policy: Policy) -> dict[str, NDArray[np.float64]]:
    """The language model's parameters, tied ones once."""
    return {n: p.detach().double().numpy().copy() for n, p in policy.lm.named_parameters()}


@pytest.fixture(scope="session", name="policies")
def _policies() -> type[PolicyKit]:
    """Makes policies and the engine that optimises them."""
    return PolicyKit


@pytest.fixture(scope="session", name="function_reward")
def _function_reward() -> type[FakeReward]:
    """A reward that is a function of the samples."""
    return FakeReward


@pytest.fixture(scope="session", name="words")
def _words() -> Callable[..., Any]:
    """Makes a word-level tokenizer."""
    return words_tokenizer
