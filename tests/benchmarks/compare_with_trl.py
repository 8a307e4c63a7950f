"""Alternate both sides of the PPO speed comparison and print paired ratios.

    python compare_with_trl.py --trl-python PATH --ours-python PATH --rounds 5

Every round runs each side once, in its own process, one after the other; the side
that goes first changes every round.  The ratio is TRL's seconds per step over
Ostinato's in the same round: above 1, Ostinato is faster.  No round is dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import common  # noqa: E402


def run_side(side, python, script, setting, options, extra):
    command = [
        python,
        str(script),
        "--setting",
        setting,
        "--steps",
        str(options.steps),
        "--threads",
        str(options.threads),
        *extra,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    if done.returncode:
        sys.exit(f"the {side} side failed with status {done.returncode}:\n{done.stderr[-4000:]}")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    try:
        (line,) = lines
        result = json.loads(line)
    except ValueError:
        sys.exit(f"the {side} side must print one JSON line, printed:\n{done.stdout[-4000:]}")
    for key, want in (("side", side), ("setting", setting), ("threads", options.threads)):
        if result.get(key) != want:
            sys.exit(f"the {side} side reports {key} {result.get(key)!r}, not {want!r}")
    if len(result["all"]) != options.steps:
        sys.exit(f"the {side} side timed {len(result['all'])} steps, not {options.steps}")
    common.check_work(result["work"], options.steps)
    return result


def compare(setting, options):
    sides = {
        "trl": (options.trl_python, options.trl_script, ["--gc", options.trl_gc]),
        "ostinato": (options.ours_python, options.ours_script, []),
    }
    rounds = []
    print(
        f"setting {setting}: {options.steps} timed steps, {options.threads} threads, "
        f"TRL gc {options.trl_gc}",
        flush=True,
    )
    print(
        f"{'round':>5}  {'first':<8}  {'TRL s/step':>10}  {'ours s/step':>11}  "
        f"{'ratio':>6}  {'ratio of fastest':>16}  {'load':>5}",
        flush=True,
    )
    for number in range(options.rounds):
        order = ["trl", "ostinato"] if number % 2 == 0 else ["ostinato", "trl"]
        load = os.getloadavg()[0]
        results = {
            side: run_side(side, *sides[side][:2], setting, options, sides[side][2])
            for side in order
        }
        trl, ours = results["trl"], results["ostinato"]
        if trl["versions"]["torch"] != ours["versions"]["torch"]:
            sys.exit(
                "the sides run different torch builds: "
                f"{trl['versions']['torch']} and {ours['versions']['torch']}"
            )
        ratio = trl["seconds_per_step"] / ours["seconds_per_step"]
        fastest = min(trl["all"]) / min(ours["all"])
        rounds.append(
            {
                "first": order[0],
                "ratio": ratio,
                "ratio_of_fastest": fastest,
                "load": load,
                "trl": trl,
                "ostinato": ours,
            }
        )
        print(
            f"{number + 1:>5}  {order[0]:<8}  {trl['seconds_per_step']:>10.4f}  "
            f"{ours['seconds_per_step']:>11.4f}  {ratio:>6.3f}  {fastest:>16.3f}  {load:>5.2f}",
            flush=True,
        )
    ratios = [r["ratio"] for r in rounds]
    fastest = [r["ratio_of_fastest"] for r in rounds]
    medians = {
        side: statistics.median(r[side]["seconds_per_step"] for r in rounds) for side in sides
    }
    print(f"median  TRL {medians['trl']:.4f} s/step, ours {medians['ostinato']:.4f} s/step")
    print(
        f"ratio   min {min(ratios):.3f}, median {statistics.median(ratios):.3f}, "
        f"max {max(ratios):.3f}"
    )
    print(
        f"ratio of fastest steps   min {min(fastest):.3f}, "
        f"median {statistics.median(fastest):.3f}, max {max(fastest):.3f}\n",
        flush=True,
    )
    return {
        "setting": setting,
        "medians": medians,
        "trl_gc": options.trl_gc,
        "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl-python", required=True, help="a Python that has TRL")
    parser.add_argument("--ours-python", required=True, help="a Python that has Ostinato")
    parser.add_argument("--trl-script", type=Path, default=HERE / "trl_ppo.py")
    parser.add_argument("--ours-script", type=Path, default=HERE / "ostinato_ppo.py")
    parser.add_argument(
        "--settings", nargs="+", choices=sorted(common.SETTINGS), default=sorted(common.SETTINGS)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl-gc", choices=("frozen", "shipped"), default="frozen")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run")
    parser.add_argument("--json", type=Path, help="also write every result here")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    for script in (options.trl_script, options.ours_script):
        if not script.is_file():
            parser.error(f"no such file: {script}")
    results = [compare(setting, options) for setting in options.settings]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
