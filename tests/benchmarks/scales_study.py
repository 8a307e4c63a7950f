"""The three units of a reward side by side: what each does to gold, at one coefficient and one KL.

    python tests/benchmarks/scales_study.py toy --seeds 5 --out runs/scales
    python tests/benchmarks/scales_study.py quickstart --seeds 5 --iterations 2 --out runs/scales
    python tests/benchmarks/scales_study.py --tables docs/measured/scales.csv

One thread a run. Finished runs are not run again; `--csv` collects what is finished, a row an
evaluation. The last form prints the tables of docs/scales.md from that file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

UNITS = ("training_std", "sft_std", "nats")
METHODS = {
    "take_last_rm": ["plugins=[concat, take_last_rm, from_sft]"],
    "worst_case": ["plugins=[concat, worst_case, from_sft]"],
    "ensemble": ["plugins=[concat, ensemble, from_sft]"],
    "uwo": ["plugins=[concat, uwo, from_sft]"],
    "sharpe, 3 members": [
        "plugins=[concat, take_last_rm, from_sft, sharpe]",
        "reward_model.members=3",
    ],
    "weight_average": ["plugins=[concat, weight_average, from_sft]"],
    "take_last_data": ["plugins=[take_last_data, worst_case, from_sft]"],
}
KEYS = (
    "gold_sft_std",
    "gold_wins",
    "proxy_wins",
    "latest_wins",
    "gap",
    "gap_latest",
    "gap_training_std",
    "proxy_training_std",
    "gold_training_std",
    "proxy_sft_std",
    "spearman",
    "kl",
)
Runs = dict[tuple[str, str, str], dict[int, list[dict[str, float]]]]  # by world, unit, method
EQUAL_KL = {"toy": 4.0, "quickstart": 8.0}  # nats per response; most runs reach them


def run(job: tuple[str, str, str, int, Path, list[str]]) -> None:
    """One run, resumed if it was cut short."""
    world, unit, method, seed, folder, more = job
    if (folder / "report.html").exists():
        return
    sets = [
        f"reward_model.unit={unit}",
        "backend.threads=1",
        "evaluation.every=4",
        *METHODS[method],
        *more,
    ]
    command = [sys.executable, "-m", "ostinato", "run", world, "--seed", str(seed)]
    command += ["--out", str(folder), *(word for one in sets for word in ("--set", one))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run(
            command,
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def folder_of(out: Path, world: str, unit: str, method: str, seed: int) -> Path:
    """Where a run lies."""
    return out / f"{world}-{unit}-{method.replace(', ', '-').replace(' ', '-')}-{seed}"


def collect(out: Path, path: Path) -> None:
    """Every evaluation of the finished runs, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["world", "unit", "method", "seed", "iteration", "step", *KEYS])
        for world in EQUAL_KL:
            for unit in UNITS:
                for method in METHODS:
                    for seed in range(100):
                        folder = folder_of(out, world, unit, method, seed)
                        if not (folder / "report.html").exists():
                            continue
                        for line in (folder / "metrics.jsonl").read_text().splitlines():
                            row = json.loads(line)
                            if row["kind"] == "eval":
                                numbers = [f"{row[key]:.6g}" for key in KEYS]
                                place = [world, unit, method, seed, row["iteration"], row["step"]]
                                writer.writerow([*place, *numbers])


def at_kl(rows: list[dict[str, float]], kl: float, key: str) -> float | None:
    """A measure where the curve of one iteration first reaches a KL, between two evaluations."""
    for before, after in pairwise(rows):
        if before["kl"] <= kl <= after["kl"] and after["kl"] > before["kl"]:
            part = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before[key] + part * (after[key] - before[key])
    return None


def spread(values: list[float], form: str = ".2f") -> str:
    """mean ± std over seeds, and how many they are where some are missing."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{form}} ± {deviation:.2f}"


def last_iteration(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The evaluations of a run's last iteration."""
    return [row for row in rows if row["iteration"] == rows[-1]["iteration"]]


def differences(runs: Runs) -> list[str]:
    """The default unit less each other one, mean and standard error over seeds.

    Methods of one seed share prompts and pairs, so a seed counts once: the mean over its methods.
    """
    lines = []
    for world, kl in EQUAL_KL.items():
        for key in (f"gold at KL {kl:g}", "gold_sft_std", "gold_wins", "gap", "kl"):
            cells = []
            for other in UNITS[1:]:
                by_seed: dict[int, list[float]] = {}
                for method in METHODS:
                    ours, theirs = (runs.get((world, u, method), {}) for u in (UNITS[0], other))
                    for seed in sorted(ours.keys() & theirs.keys()):
                        a, b = (
                            at_kl(last_iteration(r[seed]), kl, "gold_sft_std")
                            if key.startswith("gold at")
                            else r[seed][-1][key]
                            for r in (ours, theirs)
                        )
                        if a is not None and b is not None:
                            by_seed.setdefault(seed, []).append(a - b)
                means = [statistics.fmean(found) for found in by_seed.values()]
                error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
                cells.append(f"{statistics.fmean(means):+.2f} ± {error:.2f}" if means else "–")
            lines.append(f"| {world} | {key} | {' | '.join(cells)} |")
    return lines


def tables(path: Path) -> str:
    """Markdown: a table a world, a row a method and unit; then the old gap beside the new one."""
    with path.open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    runs: Runs = {}
    for row in found:
        key = row["world"], row["unit"], row["method"]
        numbers = {k: float(row[k]) for k in (*KEYS, "iteration", "step")}
        runs.setdefault(key, {}).setdefault(int(row["seed"]), []).append(numbers)
    lines: list[str] = []
    for world, kl in EQUAL_KL.items():
        head = f"gold at KL {kl:g}"
        lines += ["", f"{world}:", "", f"| method | unit | {head} | gold | KL | gold wins | gap |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for method in METHODS:
            for unit in UNITS:
                seeds = runs.get((world, unit, method))
                if not seeds:
                    continue
                last = [r[-1] for r in seeds.values()]
                curves = [last_iteration(r) for r in seeds.values()]
                reached = [v for c in curves if (v := at_kl(c, kl, "gold_sft_std")) is not None]
                few = f" ({len(reached)} of {len(seeds)})" if len(reached) < len(seeds) else ""
                cells = [spread(reached, "+.2f") + few]
                for key, form in (
                    ("gold_sft_std", "+.2f"),
                    ("kl", ".1f"),
                    ("gold_wins", ".2f"),
                    ("gap", "+.2f"),
                ):
                    cells.append(spread([r[key] for r in last], form))
                lines.append(f"| {method} | {unit} | {' | '.join(cells)} |")
    lines += ["", "| world | measure | training_std - sft_std | training_std - nats |"]
    lines += ["|---|---|---|---|", *differences(runs)]
    lines += ["", "| world | method | iteration | gap | gap_latest | proxy wins | gold wins |"]
    lines[-1] += " gap_training_std |"
    lines += ["|---|---|---|---|---|---|---|---|"]
    for (world, unit, method), seeds in runs.items():
        if unit != "training_std" or method not in {"take_last_rm", "worst_case"}:
            continue
        for k in sorted({int(x["iteration"]) for r in seeds.values() for x in r}):
            ends = [[x for x in r if x["iteration"] == k][-1] for r in seeds.values()]
            keys = ("gap", "gap_latest", "proxy_wins", "gold_wins", "gap_training_std")
            cells = [
                spread([e[key] for e in ends], "+.2f" if "gap" in key else ".2f") for key in keys
            ]
            lines.append(f"| {world} | {method} | {k} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", nargs="?", choices=[*EQUAL_KL])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument("--iterations", type=int, help="the world's when left out")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--out", type=Path, default=Path("runs/scales"))
    parser.add_argument("--csv", type=Path, help="collect the finished runs here")
    parser.add_argument("--tables", type=Path, help="print the tables of this CSV")
    args = parser.parse_args()
    if args.world:
        more = [f"iterations={args.iterations}"] if args.iterations else []
        jobs = [
            (
                args.world,
                unit,
                method,
                seed,
                folder_of(args.out, args.world, unit, method, seed),
                more,
            )
            for seed in range(args.seeds)
            for method in args.methods
            for unit in UNITS
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run, jobs))
    if args.csv:
        collect(args.out, args.csv)
    if args.tables:
        print(tables(args.tables))


if __name__ == "__main__":
    main()
