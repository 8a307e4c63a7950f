"""Shared by several folders: tiny reward models, comparisons and ``fit`` without a run."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from datasets import Dataset

from ostinato import load_config
from ostinato.config.draws import Draws
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins, activate
from ostinato.data.identity import response_id
from ostinato.engine.comparisons import Comparisons
from ostinato.engine.reward_training import RewardTrainer
from ostinato.machine.backend import Backend
from ostinato.models.loading import load_tokenizer
from ostinato.models.reward_model import RewardModel
from ostinato.models.ruler import Ruler
from ostinato.models.samples import Samples
from policy_kit import _function_reward, _policies, _words  # noqa: F401  the policy's fixtures

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1},
    "gpt_neox": {**SMALL, "intermediate_size": 32, "max_position_embeddings": 64},
    "llama": {**SMALL, "intermediate_size": 32, "num_key_value_heads": 2},
}


def _no_policy() -> Any:
    raise AssertionError("these tests have no policy")


@dataclass
class RewardKit:
    """A reward model, its plugins and its trainer; ``rows`` is what training logged."""

    plugins: Plugins
    ctx: Context
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def make(
        cls, *plugins: str | tuple[str, dict[str, Any]], family: str = "gpt_neox", **settings: Any
    ) -> RewardKit:
        """``settings`` are those of the run file's ``reward_model``."""
        model = {"tokenizer": "bytes", "random": {"model_type": family, **FAMILIES[family]}}
        section = {"lr": 3e-3, "batch": 8, "max_tokens": 64, **model, **settings}
        config = load_config(
            {"policy": model, "reward_model": section, "prompts": {"data": "none.jsonl"}}
        )
        wanted = [(p, {}) if isinstance(p, str) else p for p in plugins]
        ctx = Context(
            config, Draws(0, 1), torch.device("cpu"), PolicyHandle("sft", _no_policy), iteration=1
        )
        return cls(activate(wanted, "test"), ctx)

    def initial(self, seed: int = 0, outputs: int = 1, reader: str = "mean") -> RewardModel:
        """R_init with its head."""
        with Draws(seed).forked("body"):
            lm_head = bool(self.plugins.need("lm_head"))
            section, readers = self.ctx.config.reward_model, self.plugins.readers
            model = RewardModel.load(section, lm_head, readers=readers)
        return model.with_head(Draws(seed), outputs, reader)

    def ruler(self, data: Dataset) -> Ruler:
        """A ruler of both sides of comparisons."""
        tokenizer = load_tokenizer(self.ctx.config.policy, "policy")
        return Ruler(*(Samples.of(tokenizer, data, side) for side in ("chosen", "rejected")))

    def trainer(self, meta: Dataset | None = None, plain: bool = False, **at: Any) -> RewardTrainer:
        """``fit`` as the loop makes it."""

        def log(kind: str, **row: Any) -> None:
            self.rows.append(row)

        backend = Backend(self.ctx.config.backend.model_copy(update={"threads": 1}))
        tokenizer = load_tokenizer(self.ctx.config.policy, "policy")
        ctx = self.ctx.at(device=backend.device, autocast=backend.autocast, **at)
        return RewardTrainer(self.plugins, ctx, log, tokenizer, meta, plain)

    def batch(self, data: Dataset, model: RewardModel, groups: list[int] | None = None) -> Any:
        """A PreferenceBatch of these groups, or of all."""
        made = Comparisons(data, model, load_tokenizer(self.ctx.config.policy, "policy"))
        return made.batch(range(len(made.groups)) if groups is None else groups)


def text_gold(response: str) -> float:
    """The gold of these tests: a's minus b's."""
    return float(response.count("a") - response.count("b"))


def comparisons(
    count: int,
    seed: int = 0,
    noise: float = 0.0,
    responses: int = 2,
    letters: str = "abcd",
    iteration: int = 1,
) -> Dataset:
    """``count`` prompts with all pairs of ``responses`` random words, the higher gold chosen.

    ``noise`` is the share of comparisons that are turned round; column ``wrong`` says which.
    """
    draw = random.Random(seed)
    encode = load_tokenizer(load_config(_ANY).policy, "policy").encode
    rows = []
    for group in range(count):
        prompt = "".join(draw.choices("xyz", k=draw.randint(1, 4)))
        words: list[str] = []
        while len(words) < responses:
            word = "".join(draw.choices(letters, k=draw.randint(2, 8)))
            if text_gold(word) not in map(text_gold, words):
                words.append(word)
        for i in range(responses):
            for j in range(i):
                best, worst = (i, j) if text_gold(words[i]) > text_gold(words[j]) else (j, i)
                wrong = draw.random() < noise
                best, worst = (worst, best) if wrong else (best, worst)
                row: dict[str, Any] = {"group": group, "prompt_id": group, "iteration": iteration}
                row |= {"prompt": prompt, "prompt_ids": encode(prompt)[:-1], "wrong": wrong}
                for side, at in (("chosen", best), ("rejected", worst)):
                    row |= {
                        side: words[at],
                        f"{side}_ids": encode(words[at]),
                        f"{side}_finished": True,
                        f"{side}_id": response_id(iteration, group, at),
                        f"{side}_gold": text_gold(words[at]),
                    }
                rows.append(row | {"label": 1.0, "margin": 0.0, "weight": 1.0})
    return Dataset.from_list(rows)


_ANY = {
    "policy": {"tokenizer": "bytes", "random": {"model_type": "gpt_neox"}},
    "reward_model": {"random": {"model_type": "gpt_neox"}},
    "prompts": {"data": "none.jsonl"},
}


@pytest.fixture(scope="session", name="kit")
def _kit() -> type[RewardKit]:
    """Makes a reward model, its plugins and its trainer."""
    torch.set_num_threads(1)
    return RewardKit


@pytest.fixture(scope="session", name="comparisons")
def _comparisons() -> Any:
    """Makes comparisons of random words."""
    return comparisons
