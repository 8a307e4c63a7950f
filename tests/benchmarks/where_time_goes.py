"""Where the time of one PPO step goes, and how far each part is from the machine's matmul rate.

    python tests/benchmarks/where_time_goes.py --setting b --threads 2

Times each part of a step on the models of ``common.py`` (value head on the policy's trunk, as a run
has it), counts its matrix products (2 operations a multiply-add; norms, softmax and sampling count
as nothing), and compares with the rate of one large fp32 matrix product measured in the same
process. Prints a Markdown table; parts are medians over ``--rounds`` interleaved rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import argparse

import common


def matmul_rate(size=1024, repeats=10):
    """GFLOP/s of one large fp32 product: the ceiling."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e9


def trunk_flops(setting, tokens, context):
    """Operations of the trunk for ``tokens`` positions that attend to ``context`` on average."""
    d, layers = setting.hidden_size, setting.num_layers
    return layers * tokens * (2 * 12 * d * d + 4 * d * context)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = common.parse_args(parser=parser)
    import torch
    from ostinato_ppo import build_tokenizer

    from ostinato.config.sections import GenerationSection
    from ostinato.models.generation import sample
    from ostinato.models.policy import Policy
    from ostinato.models.reward_model import RewardModel

    common.set_torch_threads(args.threads)
    setting, work = common.SETTINGS[args.setting], common.WORK
    models = common.build_models(setting)
    tokenizer = build_tokenizer(setting)
    policy = Policy(models["policy"], tokenizer).with_value("shared")
    reference = Policy(models["reference"], tokenizer)
    reward = RewardModel(models["reward"], tokenizer)
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-5, eps=1e-5, fused=True)
    prompts = common.build_prompts(setting, 1)
    generation = GenerationSection(max_new_tokens=work.response_tokens)
    samples = sample(policy, prompts, generation, torch.Generator().manual_seed(0))
    kept = {}

    def forward():
        logprobs, values = policy.evaluate(samples)
        kept["loss"] = -logprobs.sum() / logprobs.numel() + values.square().mean()

    def backward():
        optimiser.zero_grad(set_to_none=True)
        kept["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)

    def no_grad(function):
        def call():
            with torch.no_grad():
                function()

        return call

    length = work.prompt_tokens + work.response_tokens
    response = work.episodes * work.response_tokens
    whole = work.episodes * (length - 1)
    logits = 2 * response * setting.hidden_size * setting.vocab_size
    one_pass = trunk_flops(setting, whole, length / 2) + logits
    epochs = work.ppo_epochs
    parts = {  # name: (call, operations, times a step)
        "sampling": (
            lambda: sample(policy, prompts, generation, torch.Generator().manual_seed(1)),
            one_pass,
            1,
        ),
        "reward model": (
            no_grad(lambda: reward.score_samples(samples)),
            trunk_flops(setting, work.episodes * length, length / 2),
            1,
        ),
        "policy, no gradient": (no_grad(lambda: policy.evaluate(samples)), one_pass, 1),
        "reference": (no_grad(lambda: reference.logprobs(samples)), one_pass, 1),
        "update, forward": (forward, one_pass, epochs),
        "update, backward": (backward, 2 * one_pass, epochs),
        "update, Adam": (optimiser.step, 0, epochs),
    }
    seconds = {name: [] for name in parts}
    rates = []
    for round_number in range(args.rounds + 1):
        rates.append(matmul_rate())
        for name, (call, _, _) in parts.items():
            began = time.perf_counter()
            call()
            if round_number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    ceiling = statistics.median(rates)
    medians = {name: statistics.median(found) * parts[name][2] for name, found in seconds.items()}
    total = sum(medians.values())
    print(f"setting {setting.name}, {args.threads} threads, matmul {ceiling:.0f} GFLOP/s\n")
    print("| part | ms a step | share | GFLOP | GFLOP/s | of the matmul rate |")
    print("|---|---|---|---|---|---|")
    for name, found in medians.items():
        operations = parts[name][1] * parts[name][2] / 1e9
        rate = operations / found
        print(
            f"| {name} | {found * 1e3:.0f} | {found / total:.0%} | {operations:.2f} | "
            f"{rate:.0f} | {rate / ceiling:.0%} |"
        )
    print(f"| all | {total * 1e3:.0f} | 100% | | | |")


if __name__ == "__main__":
    main()
