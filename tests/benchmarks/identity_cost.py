"""What a plugin costs that changes nothing: the toy world with and without one, in pairs.

    python tests/benchmarks/identity_cost.py --pairs 8

The plugin answers every hook that can be answered by what is there already; who owns pairs, losses
or algorithms has to make them, and is left out. A pair is two runs, one after the other in one
process, and the ratio of their CPU seconds; the side that goes first changes every pair.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import concatenate_datasets

import ostinato
from ostinato import hookimpl

WITHOUT = ["concat", "worst_case", "from_sft"]


class Idle:
    """Answer each hook with what it was given."""

    @hookimpl
    def combine_data(self, datasets):
        return datasets[0] if len(datasets) == 1 else concatenate_datasets(list(datasets))

    @hookimpl
    def combine_rm(self, reward_models):
        return ostinato.combine(reward_models, lambda scores: scores.amin(1))

    @hookimpl
    def init_policy(self, history):
        return history.sft

    @hookimpl
    def kl_coefficient(self, ctx):
        return ctx.config.kl.coefficient

    @hookimpl
    def wrap_reward(self, reward):
        return reward

    @hookimpl
    def reward_transform(self, rewards):
        return rewards

    @hookimpl
    def select_comparisons(self, comparisons):
        return comparisons

    @hookimpl
    def refine_data(self, data):
        return data

    @hookimpl
    def sampling_logits(self, logits):
        return logits

    @hookimpl
    def filter_rollout(self, rollout):
        return torch.arange(len(rollout.mask))

    @hookimpl
    def after_rollout(self, row):
        return None

    @hookimpl
    def rm_loss(self, batch):
        return {}

    @hookimpl
    def policy_loss(self, batch):
        return {}

    @hookimpl
    def evaluate(self):
        return {}

    @hookimpl
    def observe(self, event):
        pass


def seconds(plugins: list[str]) -> float:
    """CPU seconds of a run of the toy world."""
    with tempfile.TemporaryDirectory() as name:
        source = {"world": "toy", "iterations": 2, "plugins": plugins, "backend": {"threads": 1}}
        started = time.process_time()
        ostinato.run(source, Path(name) / "run")
        return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8)
    pairs = parser.parse_args().pairs
    idle = [f"{__file__}:Idle"]
    seconds(WITHOUT)
    seconds(idle)
    ratios = []
    for pair in range(pairs):
        sides = [idle, WITHOUT] if pair % 2 else [WITHOUT, idle]
        found = {len(side): seconds(side) for side in sides}
        ratios.append(found[len(idle)] / found[len(WITHOUT)])
        print(
            f"{found[len(WITHOUT)]:.2f} s without, {found[len(idle)]:.2f} s with: {ratios[-1]:.3f}"
        )
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(f"{statistics.fmean(ratios):.3f} ± {error:.3f}, median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
