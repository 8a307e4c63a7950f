"""Kill a run at random moments, resume it, and compare it with one that was never stopped.

    python tests/kill_runs.py --kills 50          # kill -9, each in a process of its own
    python tests/kill_runs.py --exhaustive        # an exception at every write, in this process

The final metrics (timings aside) and every file of the run must be the same, byte for byte. Prints
one line a kill; exit status 1 if any run ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from distributions import STATEFUL, write_distribution
from ostinato.config.yaml_files import parsed

# Every kind of state: votes in the cache, dropout, displacement, a policy of its own, a plugin's.
MICRO = [
    "iterations=2",
    "plugins=[concat, worst_case, liti, strength, flip, simcse, metarm, drift]",
    "plugins.strength.models=2",
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=4",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "evaluation.every=2",
    "checkpoint_every=1",
]
# The same for kills in real time, with enough computing that most moments lie inside it.
SMALL = [
    *MICRO,
    "reward_model.updates=8",
    "prompts.preference=48",
    "rl.rollouts=10",
    "rl.rollout_size=16",
    "rl.minibatch=16",
]


class Crash(BaseException):
    """Stands for the end of the process."""


def run(out: Path, overrides: Sequence[str], site: Path | None = None) -> None:
    """One toy run into ``out``; ``site`` holds installed packages."""
    import ostinato

    if site is not None:
        sys.path.insert(0, str(site))
    ostinato.run("toy", out, list(overrides))


def outcome(out: Path) -> dict[str, Any]:
    """All that a finished run leaves, timings and what depends on them aside, by file."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if name == "metrics.jsonl":
            for number, line in enumerate(path.read_text().splitlines()):
                row = {key: value for key, value in json.loads(line).items() if key != "seconds"}
                found[f"{name} line {number + 1}"] = row
        elif name == "run.yaml":
            facts = parsed(path.read_text())
            found[name] = {key: value for key, value in facts.items() if key != "git"}
        elif path.name == "done.json":
            done = json.loads(path.read_text())
            found[name] = {key: value for key, value in done.items() if key != "metrics"}
        elif name != "lock":
            found[name] = path.read_bytes()
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same in two outcomes."""
    return sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))


@contextmanager
def crash_at(number: int) -> Iterator[list[str]]:
    """Inside, write number ``number`` (from 0) fails; answers the list of writes so far.

    Each row of the metrics is two writes (the file ends in half a row; it ends in a whole one),
    each artefact and checkpoint three (nothing is there; it lies beside its place; it is there).
    """
    from ostinato.runs.directory import RunDirectory
    from ostinato.runs.metrics import Metrics

    seen: list[str] = []
    write_row, write_folder = Metrics.write, RunDirectory._write

    def point(name: str, before: Callable[[], None] = lambda: None) -> None:
        seen.append(name)
        if len(seen) - 1 == number:
            before()
            raise Crash(name)

    def row(self: Metrics, values: dict[str, Any]) -> None:
        if self._captured is None:
            with self.path.open("ab") as file:
                file.truncate(self.position)
            half = json.dumps(values)[: len(json.dumps(values)) // 2]
            point(f"half of a {values['kind']} row", lambda: append(self.path, half))
        write_row(self, values)
        if self._captured is None:
            point(f"a {values['kind']} row")

    def folder(self: RunDirectory, place: Path, save: Callable[[Path], None], **extra: Any) -> None:
        name = str(place.relative_to(self.path))
        point(f"before {name}")

        def save_and_stop(new: Path) -> None:
            save(new)
            point(f"beside {name}")

        write_folder(self, place, save_and_stop, **extra)
        point(f"after {name}")

    with (
        mock.patch.object(Metrics, "write", row),
        mock.patch.object(RunDirectory, "_write", folder),
    ):
        yield seen


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def crash_and_resume(out: Path, overrides: Sequence[str], number: int) -> str:
    """Run until write ``number`` fails, then to the end; answers where it stopped."""
    with crash_at(number) as seen:
        try:
            run(out, overrides)
        except Crash as crash:
            where = str(crash)
        else:
            raise ValueError(f"the run makes only {len(seen)} writes")
    run(out, overrides)
    return where


def exhaustive(folder: Path, overrides: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(where it crashed, what differs) for every write of a run."""
    with crash_at(-1) as writes:
        run(folder / "whole", overrides)
    expected = outcome(folder / "whole")
    for number in range(len(writes)):
        where = crash_and_resume(folder / "crashed", overrides, number)
        yield f"write {number} ({where})", differing(outcome(folder / "crashed"), expected)
        shutil.rmtree(folder / "crashed")


def kills(
    folder: Path, overrides: Sequence[str], count: int, seed: int
) -> Iterator[tuple[str, list[str]]]:
    """(when it was killed, what differs) for random moments of a run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ostinato.loop", "kill_runs"])
    draw = random.Random(seed)

    def start(out: Path, limit: float | None) -> tuple[float, int | None]:
        started = time.perf_counter()
        process = context.Process(target=run, args=(out, overrides, folder))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
        process.join()
        return time.perf_counter() - started, process.exitcode

    start(folder / "warm", None)  # the first one waits for the imports
    length, status = start(folder / "whole", None)
    if status:
        raise SystemExit("the uninterrupted run failed")
    expected = outcome(folder / "whole")
    print(f"uninterrupted: {length:.1f} s, {len(expected)} files and rows", flush=True)
    out = folder / "killed"
    for number in range(count):
        moments: list[str] = []
        while len(moments) < 1 + (number % 3 == 2):  # every third is killed twice
            seconds, status = start(out, draw.uniform(0, length))
            if status:
                moments.append(f"{seconds:.2f} s")
            else:  # it had ended, on a machine that is less busy now: this was no kill
                length = min(length, seconds)
                moments.clear()
                shutil.rmtree(out)
        _, status = start(out, None)
        wrong = differing(outcome(out), expected) if status == 0 else [f"exit status {status}"]
        yield f"killed after {' and '.join(moments)}", wrong
        shutil.rmtree(out)


def main() -> int:
    """Exit status 1 if any resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of every run")
    parser.add_argument("--exhaustive", action="store_true", help="crash at every write instead")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value, as after --set")
    asked = parser.parse_args()
    size = MICRO if asked.exhaustive else SMALL
    overrides = [*size, f"backend.threads={asked.threads}", *asked.overrides]
    right = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_distribution(folder, "drift_plugin", STATEFUL, {"drift": "Drift"})
        if asked.exhaustive:
            sys.path.insert(0, str(folder))
            found = exhaustive(folder, overrides)
        else:
            found = kills(folder, overrides, asked.kills, asked.seed)
        for what, wrong in found:
            total += 1
            right += not wrong
            print(f"{what}: " + (f"DIFFERS in {', '.join(wrong[:5])}" if wrong else "the same"))
            sys.stdout.flush()
    print(f"{right}/{total} resumed to the same result")
    return int(right < total)


if __name__ == "__main__":
    sys.exit(main())
