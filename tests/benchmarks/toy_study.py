"""Every built-in method on the toy world, each in the place of the default's.

    python tests/benchmarks/toy_study.py --seeds 5 --jobs 2 --out runs/toy-study

One thread a run. Finished runs are not run again. Prints the table of docs/measured.md.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quickstart_study import MEASURES, rows, run, spread

NOISE = "{gold_labels: {flip: 0.25}}"
VARIANTS = {  # overrides of the toy world, whose plugins are [concat, worst_case, from_sft]
    "default": [],
    "take_last_data": ["plugins=[take_last_data, worst_case, from_sft]"],
    "sample_data, random": ["plugins=[sample_data, worst_case, from_sft]"],
    "sample_data, coverage": ["plugins=[{sample_data: {mode: coverage}}, worst_case, from_sft]"],
    "take_last_rm": ["plugins=[concat, take_last_rm, from_sft]"],
    "ensemble": ["plugins=[concat, ensemble, from_sft]"],
    "weight_average": ["plugins=[concat, weight_average, from_sft]"],
    "take_last_policy": ["plugins=[concat, worst_case, take_last_policy]"],
    "liti, eta .5": ["plugins=[concat, worst_case, liti]"],
    "take_last_rm, 3 members": [
        "plugins=[concat, take_last_rm, from_sft]",
        "reward_model.members=3",
    ],
    "sharpe, 3 members": [
        "plugins=[concat, take_last_rm, from_sft, sharpe]",
        "reward_model.members=3",
    ],
    "reward_heads": ["plugins=[concat, worst_case, from_sft, reward_heads]"],
    "simcse": ["plugins=[concat, worst_case, from_sft, simcse]"],
    "metarm": ["plugins=[concat, worst_case, from_sft, metarm]"],
    "25 % label noise": [f"plugins=[concat, worst_case, from_sft, {NOISE}]"],
    "25 % label noise, strength + flip": [
        f"plugins=[concat, worst_case, from_sft, strength, flip, {NOISE}]"
    ],
}


def folder_name(variant: str) -> str:
    """The variant without spaces and commas."""
    return variant.replace(" ", "-").replace(",", "")


def table(runs: dict[str, list[Path]]) -> str:
    """Markdown: a row a variant, mean ± std over seeds after the last iteration."""
    lines = [
        "| run | " + " | ".join(MEASURES.values()) + " |",
        "|---|" + "---|" * len(MEASURES),
    ]
    for variant, folders in runs.items():
        last = [rows(folder, "iteration")[-1] for folder in folders]
        cells = [spread([row[key] for row in last]) for key in MEASURES]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/toy-study"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {
            variant: [
                pool.submit(run, args.out, folder_name(variant), overrides, seed, "toy")
                for seed in range(args.seeds)
            ]
            for variant, overrides in VARIANTS.items()
        }
        runs = {variant: [job.result() for job in jobs] for variant, jobs in waiting.items()}
    print(table(runs))


if __name__ == "__main__":
    main()
