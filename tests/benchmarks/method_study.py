"""Every method on one world, each in the place of the default's, at one budget of policy samples.

    python tests/benchmarks/method_study.py toy --seeds 5 --out runs/toy-study
    python tests/benchmarks/method_study.py quickstart --seeds 3 --out runs/quickstart-study

One thread a run. Finished runs are not run again. Writes docs/measured/WORLD.csv, a row a run, from
which ``python docs/generate.py`` fills the ranking and each method's page.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from quickstart_study import MEASURES, rows

DEFAULT = "default"
DEFAULTS = "concat worst_case from_sft bradley_terry ppo fixed_kl gold_labels"
NOISY = "25 % wrong labels"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Variant:
    """One row of the ranking: the plugins listed, the methods measured, what it stands beside.

    Overrides in capitals are counted from the world's own settings.
    """

    plugins: str
    methods: str
    against: str = DEFAULT
    overrides: tuple[str, ...] = ()
    quickstart: bool = False


def variant(
    listed: str,
    methods: str | None = None,
    *,
    data: str = "concat",
    combine: str = "worst_case",
    init: str = "from_sft",
    **rest,
) -> Variant:
    """The default's three plugins, some exchanged, and the listed ones; all of them measured."""
    chosen = [one for one in (data, combine, init, listed) if one]
    return Variant(", ".join(chosen), listed if methods is None else methods, **rest)


FOURS = ("preferences.responses=4", "FOURS")
MEMBERS = ("reward_model.members=3",)
NOISE = "{gold_labels: {flip: 0.25}}"
VOTES = "strength"
JUDGE = (  # of the toy world, as in docs/run-files/judge.yaml
    '{judge_labels: {template: "{prompt} {second} {first}", lead: overall, '
    'answers: [" great", " awful"]}}'
)
VARIANTS = {
    DEFAULT: variant("", DEFAULTS, against="", quickstart=True),
    # combine_data
    "take_last_data": variant("", "take_last_data", data="take_last_data", quickstart=True),
    "sample_data, random": variant("", "sample_data", data="sample_data"),
    "sample_data, coverage": variant("", "sample_data", data="{sample_data: {mode: coverage}}"),
    # combine_rm
    "take_last_rm": variant("", "take_last_rm", combine="take_last_rm"),
    "ensemble": variant("", "ensemble", combine="ensemble", quickstart=True),
    "weight_average": variant("", "weight_average", combine="weight_average"),
    "uwo": variant("", "uwo", combine="uwo"),
    "reward_fusion with another run's first RM": variant(
        "", "reward_fusion", combine="{reward_fusion: {models: [OTHER]}}"
    ),
    # init_policy, train_policy
    "take_last_policy": variant("", "take_last_policy", init="take_last_policy"),
    "liti, eta .5": variant("", "liti", init="liti", quickstart=True),
    "ema_anchor": variant("ema_anchor"),
    "slerp_runs, 2 runs of half length": variant("slerp_runs", overrides=("HALF",)),
    "warp, 2 runs of half length": variant("warp", init="", overrides=("HALF",), quickstart=True),
    # uncertainty
    "3 members": variant("", "", combine="take_last_rm", overrides=MEMBERS),
    "3 members, sharpe": variant(
        "sharpe", combine="take_last_rm", against="3 members", overrides=MEMBERS, quickstart=True
    ),
    "3 members, sharpe, equal mean penalty": variant(
        "sharpe",
        combine="take_last_rm",
        against="3 members",
        overrides=(*MEMBERS, "kl.coefficient=0.125"),
    ),
    "reward_heads": variant("reward_heads"),
    "brme": variant("brme", quickstart=True),
    "brme, sharpe": variant("brme, sharpe", "sharpe", against="brme"),
    # reward-model losses
    "simcse": variant("simcse", quickstart=True),
    "swav": variant("swav"),
    "centre": variant("centre"),
    "lm_regulariser": variant("lm_regulariser"),
    "4 responses a prompt": variant("", "", overrides=FOURS),
    "4 responses a prompt, k_wise": variant(
        "k_wise", against="4 responses a prompt", overrides=FOURS
    ),
    "metarm": variant("metarm", quickstart=True),
    "take_first_data": variant("", "take_first_data", data="take_first_data"),
    "take_first_data, metarm": variant(
        "metarm", "take_first_data, metarm", data="take_first_data", against="take_first_data"
    ),
    # preference data
    NOISY: variant(NOISE, "gold_labels"),
    f"{NOISY}, flip": variant(f"{VOTES}, flip, {NOISE}", "strength flip", against=NOISY),
    f"{NOISY}, soft_labels": variant(
        f"{VOTES}, soft_labels, {NOISE}", "strength soft_labels", against=NOISY
    ),
    f"{NOISY}, margin": variant(f"{VOTES}, margin, {NOISE}", "strength margin", against=NOISY),
    f"{NOISY}, flip and margin": variant(
        f"{VOTES}, flip, margin, {NOISE}", "strength flip margin", against=NOISY
    ),
    # policy optimisation
    "rloo": variant("rloo", quickstart=True),
    "grpo": variant("grpo", quickstart=True),
    "reinforce": variant("reinforce"),
    "rejection_sampling, per prompt": variant("rejection_sampling"),
    "rejection_sampling, overall": variant(
        "{rejection_sampling: {select: overall}}", "rejection_sampling"
    ),
    "adaptive_kl": variant("adaptive_kl"),
    "ptx": variant('{ptx: {data: "{world}/corpus.jsonl", prompt: prompt}}', "ptx"),
    # labels
    "judge_labels, the SFT policy as judge": variant(JUDGE, "judge_labels"),
    # evaluation only
    "default, more measured": variant("best_of_n, win_rate, agreement"),
}


@dataclass(frozen=True)
class Job:
    """One run of the study."""

    world: str
    name: str
    seed: int
    out: Path
    more: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> Path:
        plain = "".join(c if c.isalnum() or c in "._" else "-" for c in self.name)
        return self.out / f"{plain}-{self.seed}"

    def overrides(self) -> list[str]:
        """As ``--set`` takes them."""
        from ostinato import load_config

        made, config = VARIANTS[self.name], load_config(self.world)
        other = Job(self.world, DEFAULT, self.seed + 1, self.out).folder  # finished before
        plugins = made.plugins.replace("OTHER", f"{other}/iteration-1/reward_model")
        found = [f"plugins=[{plugins}]", f"seed={self.seed}", "backend.threads=1"]
        prompts, rollouts = config.prompts.preference, config.rl.rollouts
        counted = {
            "FOURS": f"prompts.preference={prompts // 2}",  # as many responses, in fours
            "HALF": f"rl.rollouts={rollouts // 2}",
        }
        return [*found, *(counted.get(one, one) for one in made.overrides), *self.more]


def run_one(job: Job) -> Path:
    """The run's folder; ``seconds.json`` in it holds the CPU time it took, start-up left out."""
    import ostinato

    done = job.folder / "seconds.json"
    if not done.exists():
        started = time.process_time()
        ostinato.run(job.world, job.folder, job.overrides())
        done.write_text(json.dumps(time.process_time() - started), encoding="utf-8")
        print(f"{job.name}, seed {job.seed}: done", flush=True)
    return job.folder


def rows_of(job: Job) -> dict[str, object]:
    """The line of the CSV: the last iteration's summary, and what plugins measured."""
    last = rows(job.folder, "iteration")[-1]
    made = VARIANTS[job.name]
    more = {key: round(value, 4) for key, value in last.items() if "/" in key}
    return {
        "run": job.name,
        "methods": made.methods.replace(",", ""),
        "against": made.against,
        "seed": job.seed,
        **{key: round(last[key], 4) for key in MEASURES},
        "seconds": round(json.loads((job.folder / "seconds.json").read_text()), 1),
        "more": json.dumps(more) if more else "",
    }


def write(found: list[dict[str, object]], target: Path) -> None:
    """The CSV."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", choices=("toy", "quickstart"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/method-study"))
    parser.add_argument("--only", nargs="*", help="variants (default: all of the world's)")
    parser.add_argument("--csv", type=Path, help="default: docs/measured/WORLD.csv")
    parser.add_argument("--set", action="append", default=[], help="overrides for every run")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = args.only or [n for n, v in VARIANTS.items() if args.world == "toy" or v.quickstart]
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(args.world, name, seed, args.out, tuple(args.set))
        for name in names
        for seed in range(args.seeds)
    ]
    jobs.insert(0, Job(args.world, DEFAULT, args.seeds, args.out, tuple(args.set)))  # an OTHER
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        waiting = [(job, pool.submit(run_one, job)) for job in jobs]
        found, failed = [], []
        for job, done in waiting:
            try:
                done.result()
                found += [rows_of(job)] if job.seed < args.seeds else []
            except Exception as error:  # the others still count
                failed.append(f"{job.name}, seed {job.seed}: {error}")
    if found:
        write(found, args.csv or ROOT / "docs" / "measured" / f"{args.world}.csv")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
