"""What both sides of the PPO speed comparison share: sizes, models, prompts, clock, output.

Nothing here imports TRL or Ostinato.  Importing this module pulls in the
standard library only; torch and transformers are imported inside the functions
that need them, so that ``set_thread_environment`` can run before torch loads.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

SEED = 20240
WARMUP_STEPS = 2


@dataclass(frozen=True)
class Setting:
    """One size of the four models."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    max_positions: int = 64

    # Two ids just past the vocabulary.  No model has logits for them, so they can
    # never be sampled: no response ends early and none is masked as padding.
    @property
    def pad_token_id(self) -> int:
        return self.vocab_size

    @property
    def eos_token_id(self) -> int:
        return self.vocab_size + 1


SETTINGS = {
    "a": Setting("a", hidden_size=64, num_layers=2, num_heads=4, vocab_size=144),
    "b": Setting("b", hidden_size=160, num_layers=4, num_heads=4, vocab_size=2048),
}


@dataclass(frozen=True)
class Work:
    """The work of one PPO step; the same for both sides and both settings."""

    episodes: int = 96
    prompt_tokens: int = 8
    response_tokens: int = 24
    ppo_epochs: int = 2
    minibatches: int = 1
    temperature: float = 1.0
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    kl_coef: float = 0.05
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95

    @property
    def updates_per_step(self) -> int:
        return self.ppo_epochs * self.minibatches


WORK = Work()


def parse_args(
    description: str | None = None,
    argv: list[str] | None = None,
    parser: argparse.ArgumentParser | None = None,
) -> argparse.Namespace:
    """The command line both sides take.  Sets the thread count before torch is imported."""
    parser = parser or argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after the warm-up")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    set_thread_environment(args.threads)
    return args


def set_thread_environment(threads: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"


def set_torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise RuntimeError(f"asked for {threads} threads, have {torch.get_num_threads()}")


def config_arguments(setting: Setting) -> dict[str, Any]:
    """GPT-NeoX configuration arguments.  Every special token is off and dropout is zero."""
    return {
        "vocab_size": setting.vocab_size,
        "hidden_size": setting.hidden_size,
        "num_hidden_layers": setting.num_layers,
        "num_attention_heads": setting.num_heads,
        "intermediate_size": 4 * setting.hidden_size,
        "max_position_embeddings": setting.max_positions,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }


def build_config(setting: Setting, **extra: Any):
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(**{**config_arguments(setting), **extra})


def build_models(setting: Setting, seed: int = SEED) -> dict[str, Any]:
    """Policy, reference (a copy of the policy), reward model and value model, fp32, sdpa."""
    import torch
    from transformers import GPTNeoXForCausalLM, GPTNeoXForSequenceClassification

    torch.manual_seed(seed)

    def make(cls, **extra):
        config = build_config(setting, **extra)
        config._attn_implementation = "sdpa"
        model = cls(config).to(torch.float32)
        if model.config._attn_implementation != "sdpa":
            raise RuntimeError("the model did not keep sdpa attention")
        return model

    policy = make(GPTNeoXForCausalLM)
    reference = copy.deepcopy(policy)
    reward = make(GPTNeoXForSequenceClassification, num_labels=1)
    value = make(GPTNeoXForSequenceClassification, num_labels=1)
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
        frozen.eval()
    return {"policy": policy, "reference": reference, "reward": reward, "value": value}


def build_prompts(setting: Setting, steps: int, seed: int = SEED) -> list[list[int]]:
    """``steps`` batches of random prompts as steps * episodes rows of prompt_tokens ids."""
    rng = random.Random(seed)
    return [
        [rng.randrange(setting.vocab_size) for _ in range(WORK.prompt_tokens)]
        for _ in range(steps * WORK.episodes)
    ]


class StepClock:
    """Wall time from the end of one step to the end of the next, so nothing falls between steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def start(self) -> None:
        self._last = time.perf_counter()

    def step_end(self) -> None:
        now = time.perf_counter()
        if self._last is None:
            raise RuntimeError("step_end before start")
        self.seconds.append(now - self._last)
        self._last = now

    def timed(self) -> list[float]:
        return self.seconds[WARMUP_STEPS:]


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def report(
    side: str,
    setting: Setting,
    threads: int,
    clock: StepClock,
    work: dict[str, Any],
    packages: tuple[str, ...],
    **extra: Any,
) -> dict[str, Any]:
    """The one JSON object a side prints.  ``work`` holds counts that were measured, not assumed."""
    seconds = clock.timed()
    median = statistics.median(seconds)
    return {
        "side": side,
        "setting": setting.name,
        "threads": threads,
        "warmup_steps": WARMUP_STEPS,
        "seconds_per_step": round(median, 6),
        "fastest_step": round(min(seconds), 6),
        "all": [round(s, 6) for s in seconds],
        "episodes_per_second": round(WORK.episodes / median, 3),
        "work": work,
        "versions": versions(*packages),
        **extra,
    }


def expected_work(steps: int) -> dict[str, int]:
    """What ``work`` in the report must equal for a run of ``steps`` timed steps."""
    total = steps + WARMUP_STEPS
    return {
        "steps": total,
        "episodes": total * WORK.episodes,
        "prompt_tokens": total * WORK.episodes * WORK.prompt_tokens,
        "response_tokens": total * WORK.episodes * WORK.response_tokens,
        "optimizer_updates": total * WORK.updates_per_step,
    }


def check_work(work: dict[str, int], steps: int) -> None:
    want = expected_work(steps)
    if work != want:
        raise RuntimeError(f"not the agreed work: measured {work}, agreed {want}")


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)
