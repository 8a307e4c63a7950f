"""What iterating gains on the quickstart: seeds, a rival, and the control with equal labels.

    python tests/benchmarks/quickstart_study.py --seeds 5 --jobs 2 --out runs/study

Runs ``ostinato run quickstart`` for each seed as it is, with ``take_last_data`` for ``concat``, and
as the control: one iteration that sees as many labels as four iterations do, all on SFT responses.
One thread a run, so that runs side by side do not disturb each other's numbers. Finished runs are
not run again. Prints the table of docs/quickstart.md and draws its figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ostinato import load_config

MEASURES = {
    "gold_sft_std": "gold",
    "peak_gold": "peak gold",
    "gold_wins": "gold wins",
    "proxy_wins": "proxy wins",
    "gap": "gap",
    "gap_latest": "gap, latest RM",
    "gap_training_std": "gap (training std)",
    "mmd": "MMD²",
    "kl": "KL to SFT",
    "accuracy": "RM accuracy",
}


def variants() -> dict[str, list[str]]:
    """Overrides of each variant."""
    config = load_config("quickstart")
    plugins = ["take_last_data" if entry == "concat" else entry for entry in config.plugins]
    labels = config.prompts.preference * config.iterations
    return {
        "default": [],
        "take_last_data": [f"plugins={json.dumps(plugins)}"],
        "control": ["iterations=1", f"prompts.preference={labels}"],
    }


def run(out: Path, variant: str, overrides: list[str], seed: int) -> Path:
    """One run, resumed if it was cut short; its folder."""
    folder = out / f"{variant}-{seed}"
    if (folder / "report.html").exists():
        return folder
    arguments = ["run", "quickstart", "--seed", str(seed), "--out", str(folder)]
    for override in ["backend.threads=1", *overrides]:
        arguments += ["--set", override]
    log = out / f"{variant}-{seed}.log"
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "ostinato", *arguments],
            check=True,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return folder


def rows(folder: Path, kind: str) -> list[dict]:
    """The metrics rows of one kind."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def spread(values: list[float]) -> str:
    """mean ± std, in one piece."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f}&nbsp;±&nbsp;{deviation:.2f}"


def table(runs: dict[str, list[Path]]) -> str:
    """Markdown: a row a variant and iteration, mean ± std over seeds."""
    lines = [
        "| run | iteration | " + " | ".join(MEASURES.values()) + " |",
        "|---|---|" + "---|" * len(MEASURES),
    ]
    for variant, folders in runs.items():
        summaries = [rows(folder, "iteration") for folder in folders]
        for i in range(len(summaries[0])):
            cells = [spread([s[i][key] for s in summaries]) for key in MEASURES]
            lines.append(f"| {variant} | {i + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(runs: dict[str, list[Path]], path: Path) -> None:
    """Gold and proxy against rollouts, in std over SFT responses; final gold and gap."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "ostinato", "font.size": 9})
    shown, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3))
    colours = {"default": "#3f51b5", "take_last_data": "#e08e0b", "control": "#2e7d5b"}
    first = [[r for r in rows(f, "eval") if r["iteration"] == 1] for f in runs["default"]]
    steps = [r["step"] for r in first[0]]
    for key, label, colour in (
        ("proxy_sft_std", "proxy", "#b3261e"),
        ("gold_sft_std", "gold", "#3f51b5"),
    ):
        series = [[r[key] for r in one] for one in first]
        means = [statistics.mean(at) for at in zip(*series, strict=True)]
        for one in series:
            left.plot(steps, one, color=colour, alpha=0.2, linewidth=0.8)
        left.plot(steps, means, color=colour, linewidth=2, label=label)
    left.set(title="iteration 1 (default)", xlabel="rollouts", ylabel="std over SFT responses")
    left.legend(frameon=False)
    for axis, key, title in (
        (middle, "gold_sft_std", "final gold"),
        (right, "gap", "final gap: proxy wins - gold wins"),
    ):
        for variant, folders in runs.items():
            values = [[r[key] for r in rows(f, "iteration")] for f in folders]
            means = [statistics.mean(at) for at in zip(*values, strict=True)]
            spreads = [statistics.stdev(at) for at in zip(*values, strict=True)]
            if variant == "control":
                axis.axhline(means[0], color=colours[variant], linestyle="--", label=variant)
                axis.axhspan(
                    means[0] - spreads[0], means[0] + spreads[0], color=colours[variant], alpha=0.12
                )
                continue
            places = range(1, len(means) + 1)
            axis.errorbar(
                places, means, spreads, color=colours[variant], capsize=3, marker="o", label=variant
            )
            axis.set_xticks(list(places))
        axis.set(title=title, xlabel="iteration")
        axis.legend(frameon=False)
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    shown.tight_layout()
    shown.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--figure", type=Path, help="where the figure goes (default: in --out)")
    parser.add_argument("--set", action="append", default=[], help="overrides for every run")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {
            variant: [
                pool.submit(run, args.out, variant, [*args.set, *overrides], seed)
                for seed in range(args.seeds)
            ]
            for variant, overrides in variants().items()
        }
        runs = {variant: [job.result() for job in jobs] for variant, jobs in waiting.items()}
    print(table(runs))
    figure(runs, args.figure or args.out / "quickstart.svg")


if __name__ == "__main__":
    main()
