"""bf16 beside fp32 on a CPU: one forward and backward pass of a policy, the two in turn.

    python tests/benchmarks/bf16.py --threads 2 --pairs 15

Each pair is timed together, so that a busy machine disturbs both; read the median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ostinato.config.sections import BackendSection
from ostinato.machine.backend import Backend

VOCABULARY = 2048
SIZES = {  # hidden size, layers, heads, responses in the batch; 32 tokens each
    "hidden 160, 4 layers": (160, 4, 4, 32),
    "hidden 768, 6 layers": (768, 6, 12, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15)
    args = parser.parse_args()
    print("| policy | fp32, ms | bf16, ms | fp32 / bf16, median (quartiles) |\n|---|---|---|---|")
    for name, (hidden, layers, heads, batch) in SIZES.items():
        config = AutoConfig.for_model(
            "gpt_neox",
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
        )
        model = AutoModelForCausalLM.from_config(config)
        ids = torch.randint(VOCABULARY, (batch, 32), generator=torch.Generator().manual_seed(0))

        def step(dtype: str, model=model, ids=ids) -> float:
            backend = Backend(BackendSection(device="cpu", dtype=dtype, threads=args.threads))
            began = time.perf_counter()
            with backend.autocast():
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            model.zero_grad(set_to_none=True)
            return time.perf_counter() - began

        pairs = [(step("fp32"), step("bf16")) for _ in range(args.pairs + 2)][2:]
        fp32, bf16 = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        print(f"| {name} | {fp32:.0f} | {bf16:.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
