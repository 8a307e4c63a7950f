"""Each method of contrib/ where over-optimisation bites: the quickstart without a KL penalty.

    python tests/benchmarks/stress_study.py --seeds 3 --jobs 2 --out runs/stress
    python tests/benchmarks/stress_study.py --out runs/stress --csv docs/measured/stress.csv

One iteration, 120 rollouts, coefficient 0; methods that act over iterations have two, and a default
of their own. One thread a run. Finished runs are not run again; `--csv` collects what is finished,
a row an evaluation, of which `python docs/generate.py` makes the tables of docs/stress.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ostinato import load_config
from ostinato_worlds import quickstart

STRESS = ["kl.coefficient=0", "rl.rollouts=120", "iterations=1", "backend.threads=1"]
BASE = "concat, worst_case, from_sft"
TWICE = ["iterations=2"]
MEMBERS = ["reward_model.members=3"]
# By distribution: method -> (plugins, further overrides).
METHODS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "default": {
        "default": (BASE, []),
        "default, 2 iterations": (BASE, TWICE),
        "default, 2 members": (BASE, ["reward_model.members=2"]),
        "default, 3 members": (BASE, MEMBERS),
        "default, KL .005": (BASE, ["kl.coefficient=0.005"]),
        "rloo": (f"{BASE}, rloo", []),
    },
    "shaping": {
        "par": (f"{BASE}, par: {{references: 3}}", []),
        "lsc": (f"{BASE}, lsc: {{references: 5}}", []),
        "odin": (f"{BASE}, odin", []),
        "add_functions": (
            f'{BASE}, add_functions: {{functions: ["{{out}}/rules.py:short"], weights: [0.5]}}',
            [],
        ),
        "chi_squared": (f"{BASE}, chi_squared: {{coefficient: 0.05}}", []),
        "constrained": (f"{BASE}, constrained: {{thresholds: [1.0]}}", ["kl.coefficient=0.005"]),
        "length_calibration": (f"{BASE}, length_calibration: {{fraction: 0.5}}", []),
        "rcfd": (f'{BASE}, rcfd: {{data: "{{out}}/shown.jsonl"}}', []),
        "abc_credit": (f"{BASE}, abc_credit: {{beta: 0.5}}", []),
    },
    "uncertainty": {
        "advpo": ("concat, from_sft, advpo: {b: 10}", []),
        "soft_minimum": ("concat, from_sft, soft_minimum: {beta: 0.3}", MEMBERS),
        "inform": (f"{BASE}, inform: {{latent: 16}}", []),
        "inform + ibl": (f"{BASE}, inform: {{latent: 16}}, ibl: {{gamma: 0.3}}", []),
        "purm": (f"{BASE}, purm: {{penalty: 2}}", []),
        "warm": ("concat, from_sft, warm", MEMBERS),
        "laplace_head": (f"{BASE}, laplace_head: {{pessimism: 2}}", []),
        "laplace_head + uarm": (f"{BASE}, laplace_head: {{pessimism: 0}}, uarm", []),
        "bspo": (f"{BASE}, bspo", []),
        "bspo, support .0001": (f"{BASE}, bspo: {{support: 0.0001}}", []),
    },
    "selection": {
        "early_stopping": (
            f"{BASE}, early_stopping: {{kl: 20, disagreement: 2.0}}",
            ["reward_model.members=2"],
        ),
        "best_checkpoint": (
            f"{BASE}, best_checkpoint: {{value: penalised}}",
            ["reward_model.members=2"],
        ),
        "rrm": (f"{BASE}, rrm: {{share: 0.5}}", []),
        "curriculum": (f"{BASE}, curriculum", []),
        "pf_ppo": (f"{BASE}, pf_ppo: {{pool: rollout}}", []),
        "causal_rm": (f"{BASE}, causal_rm: {{weight: 1.0}}", []),
        "ids": (f"{BASE}, ids", []),
        "west_of_n": (f"{BASE}, west_of_n", TWICE),
        "active_pairs": (
            f"{BASE}, active_pairs",
            [*TWICE, "reward_model.members=2"],
        ),
        "thompson_duels": (
            f"{BASE}, thompson_duels",
            [*TWICE, "reward_model.members=2", "preferences.responses=4"],
        ),
        "apl": (f"{BASE}, apl", TWICE),
    },
    "group": {
        "dr_grpo": (f"{BASE}, dr_grpo", []),
        "dapo": (f"{BASE}, dapo", []),
        "gspo": (f"{BASE}, gspo: {{clip_low: 0.02, clip_high: 0.03}}", []),
        "cispo": (f"{BASE}, cispo", []),
        "remax": (f"{BASE}, remax", []),
        "dr_grpo + gradient_regularisation": (f"{BASE}, dr_grpo, gradient_regularisation", []),
    },
    "direct": {
        "online_dpo": (f"{BASE}, online_dpo", []),
        "online_ipo": (f"{BASE}, online_ipo", []),
        "xpo": (f"{BASE}, xpo: {{alpha: 0.001}}", []),
        "nash_md": (f"{BASE}, nash_md, reinforce", []),
        "default, on-policy": ("concat, worst_case, take_last_policy", TWICE),
        "pilaf": ("concat, worst_case, take_last_policy, pilaf", TWICE),
        "ocrm": ("concat, worst_case, take_last_policy, ocrm: {power: 0.01}", TWICE),
    },
}
KEYS = ("gold_sft_std", "gold_wins", "proxy_wins", "gap", "proxy_training_std", "spearman", "kl")


def prepare(out: Path) -> None:
    """The files that two methods ask for: a rule, and a demonstration for each prompt."""
    out.mkdir(parents=True, exist_ok=True)
    rule = "def short(completion_ids):\n    return [-len(ids) / 20 for ids in completion_ids]\n"
    (out / "rules.py").write_text(rule)
    if not (out / "shown.jsonl").exists():
        demonstrate(out / "shown.jsonl")


@torch.no_grad()
def demonstrate(path: Path, candidates: int = 8) -> None:
    """For each prompt of the world, the best of some SFT responses by gold."""
    world = Path(quickstart.__file__).parent
    prompts = [json.loads(line)["prompt"] for line in (world / "prompts.jsonl").open()]
    tokenizer = AutoTokenizer.from_pretrained(world / "policy", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(world / "policy").eval()
    torch.manual_seed(0)
    lines = []
    for start in range(0, len(prompts), 128):
        batch = prompts[start : start + 128]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, return_token_type_ids=False)
        drawn = policy.generate(**inputs, do_sample=True, num_return_sequences=candidates)
        ids = drawn[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        finished = (ids == tokenizer.eos_token_id).any(1).tolist()
        asked = [prompt for prompt in batch for _ in range(candidates)]
        scores = quickstart.gold().score(asked, texts, finished).view(-1, candidates)
        for i, best in enumerate(scores.argmax(1).tolist()):
            row = {"prompt": batch[i], "completion": texts[i * candidates + best]}
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def folder_of(out: Path, method: str, seed: int) -> Path:
    """Where a run lies."""
    return out / f"{method.replace(', ', '-').replace(' + ', '+').replace(' ', '-')}-{seed}"


def settings(method: str, out: Path) -> list[str]:
    """A method's run, as overrides of the quickstart."""
    plugins, more = next(of[method] for of in METHODS.values() if method in of)
    return [*STRESS, *more, f"plugins=[{plugins.replace('{out}', str(out.resolve()))}]"]


def run(job: tuple[str, int, Path]) -> None:
    """One run, resumed if it was cut short; a run that fails leaves its log and is told."""
    method, seed, out = job
    folder = folder_of(out, method, seed)
    if (folder / "report.html").exists():
        return
    command = [sys.executable, "-m", "ostinato", "run", "quickstart", "--seed", str(seed)]
    command += ["--out", str(folder)]
    for override in settings(method, out):
        command += ["--set", override]
    with Path(f"{folder}.log").open("w") as log:
        done = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    print(f"{folder.name}: {'done' if done.returncode == 0 else 'failed, see its log'}", flush=True)


def collected(path: Path) -> dict[tuple[str, int], list[dict[str, str]]]:
    """The rows of a CSV by method and seed; none where there is no such file."""
    found: dict[tuple[str, int], list[dict[str, str]]] = {}
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault((row["method"], int(row["seed"])), []).append(row)
    return found


def collect(out: Path, path: Path) -> None:
    """Every evaluation of the finished runs, as CSV, beside those that it has already."""
    found = collected(path)
    for package, methods in METHODS.items():
        for method in methods:
            for seed in range(100):
                folder = folder_of(out, method, seed)
                if (folder / "report.html").exists():
                    place = {"package": package, "method": method, "seed": str(seed)}
                    found[method, seed] = [place | row for row in evaluations(folder)]
    order = {method: n for n, method in enumerate(m for of in METHODS.values() for m in of)}
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = ["package", "method", "seed", "iteration", "step", *KEYS]
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for _, rows in sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1])):
            writer.writerows(rows)


def evaluations(folder: Path) -> Iterator[dict[str, str]]:
    """What the CSV has of a run."""
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "eval":
            place = {key: str(row[key]) for key in ("iteration", "step")}
            yield place | {key: f"{row[key]:.5g}" for key in KEYS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [method for methods in METHODS.values() for method in methods]
    parser.add_argument("--seeds", type=int, default=0, help="how many; none are run without it")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--check", action="store_true", help="only read each run's settings")
    parser.add_argument("--out", type=Path, default=Path("runs/stress"))
    parser.add_argument("--csv", type=Path, help="collect the finished runs here")
    args = parser.parse_args()
    if args.seeds or args.check:
        prepare(args.out)
    if args.check:
        for method in args.methods:
            load_config("quickstart", settings(method, args.out))
    known = collected(args.csv) if args.csv else {}
    wanted = [(method, seed) for seed in range(args.seeds) for method in args.methods]
    jobs = [(method, seed, args.out) for method, seed in wanted if (method, seed) not in known]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, jobs))
    if args.csv:
        collect(args.out, args.csv)


if __name__ == "__main__":
    main()
