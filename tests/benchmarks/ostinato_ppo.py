"""Ostinato's side of the PPO speed comparison.

    python ostinato_ppo.py --setting a --steps 10 --threads 2

Drives the engine that a run uses (``PolicyTrainer`` with the built-in ``ppo`` plugin) on
 the models, prompts and work that ``common.py`` fixes, and prints one JSON line.
A step is timed from one rollout's log row to the next. Checkpoints and evaluation, which a run
makes between rollouts, are off, as they are on TRL's side.

``--value separate`` (the default) trains a value model with a body of its own, as TRL does;
``--value shared`` is Ostinato's own default, a value head on the policy's trunk.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common

PACKAGES = ("torch", "ostinato", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def build_tokenizer(setting):
    """Word-level; its pad and eos ids lie outside the models' vocabulary, so neither is sampled."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(setting.vocab_size)}
    vocabulary["<pad>"] = setting.pad_token_id
    vocabulary["<eos>"] = setting.eos_token_id
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="t0")),
        pad_token="<pad>",
        eos_token="<eos>",
    )


def build_config(setting, steps, value):
    """The run file of this comparison."""
    from ostinato import load_config

    work = common.WORK
    return load_config(
        {
            "plugins": [
                {
                    "ppo": {
                        "clip": work.cliprange,
                        "value_clip": work.cliprange_value,
                        "value_coefficient": work.vf_coef,
                        "gamma": work.gamma,
                        "lam": work.lam,
                    }
                }
            ],
            "policy": {"model": "unused", "value": value},
            "reward_model": {"model": "unused"},
            "gold": {"model": "unused"},
            "prompts": {"data": "unused"},
            "kl": {"coefficient": work.kl_coef},
            "generation": {"max_new_tokens": work.response_tokens},
            "rl": {
                "rollouts": steps,
                "rollout_size": work.episodes,
                "minibatch": work.episodes // work.minibatches,
                "epochs": work.ppo_epochs,
                "lr": work.learning_rate,
                "schedule": "constant",
            },
            "backend": {"device": "cpu"},
            "checkpoint_every": steps + 1,
        }
    )


class NoDirectory:
    """A run directory that keeps nothing."""

    def load_checkpoint(self, *_):
        return None

    def save_checkpoint(self, *_):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--value", choices=("separate", "shared"), default="separate")
    args = common.parse_args(parser=parser)

    from ostinato.config.draws import Draws
    from ostinato.contract.batches import PolicyHandle
    from ostinato.contract.context import Context
    from ostinato.contract.plugins import activate
    from ostinato.engine.policy_training import PolicyTrainer
    from ostinato.machine.backend import Backend
    from ostinato.models.policy import Policy
    from ostinato.models.prompts import PromptSet
    from ostinato.models.reward_model import RewardModel

    setting = common.SETTINGS[args.setting]
    total = args.steps + common.WARMUP_STEPS
    config = build_config(setting, total, args.value)
    config.backend.threads = args.threads
    backend = Backend(config.backend)
    common.set_torch_threads(args.threads)
    models = common.build_models(setting)
    models["policy"].config.pad_token_id = setting.pad_token_id
    tokenizer = build_tokenizer(setting)
    policy = Policy(models["policy"], tokenizer)
    reward = RewardModel(models["reward"], tokenizer)
    rows = common.build_prompts(setting, total)
    prompts = PromptSet(list(range(len(rows))), [""] * len(rows), rows)
    clock = common.StepClock()
    work = {
        "steps": 0,
        "episodes": 0,
        "prompt_tokens": 0,
        "response_tokens": 0,
        "optimizer_updates": 0,
    }

    def log(kind, **row):
        clock.step_end()
        work["steps"] += 1
        work["episodes"] += common.WORK.episodes
        work["prompt_tokens"] += common.WORK.episodes * common.WORK.prompt_tokens
        work["response_tokens"] += round(row["length"] * common.WORK.episodes)
        work["optimizer_updates"] = row["updates"]

    ctx = Context(
        config,
        Draws(common.SEED, iteration=1),
        backend.device,
        PolicyHandle("sft", lambda: policy),
        iteration=1,
        autocast=backend.autocast,
    )
    optimise = PolicyTrainer(
        activate(config.wanted_plugins, "benchmark"),
        ctx,
        NoDirectory(),
        "policy",
        prompts,
        log,
        lambda policy, step: None,
    )
    clock.start()
    optimise(policy, reward)
    common.check_work(work, args.steps)
    result = common.report(
        "ostinato", setting, args.threads, clock, work, PACKAGES, value=args.value
    )
    common.print_json(result)


if __name__ == "__main__":
    main()
