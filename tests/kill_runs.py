"""Kill a run at random moments, resume it, and compare it with one that was never stopped.

    python tests/kill_runs.py --kills 50          # kill -9, each in a process of its own
    python tests/kill_runs.py --exhaustive        # an exception at every write, in this process

The kills are spread over mixtures of methods, and over rollouts and minibatches of 1, 2, 3 and 5
responses. The final metrics (timings aside) and every file of the run must be the same, byte for
byte. Prints one line a kill; exit status 1 if any run ended otherwise.
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
from mixing.micro import answer_people, furnish
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
# (responses a rollout, a minibatch): sums over few rows round by how memory is aligned
SIZES = [(1, 1), (2, 2), (3, 3), (5, 5), (2, 1), (3, 1), (5, 1)]
# What each mixture lists; {k} is a group of one prompt's responses, {folder} holds its furniture.
MIXTURES = {
    "all kinds of state": "[concat, worst_case, liti, {strength: {models: 2}}, flip, simcse, "
    "{metarm: {responses: 2}}, drift]",
    "warp": "[concat, warp]",
    "brme with sharpe": "[take_last_data, {brme: {heads: 2}}, sharpe]",
    "simcse with metarm": "[concat, simcse, {metarm: {responses: 2}}]",
    "strength with flip": "[concat, {strength: {models: 2}}, {flip: {lowest: 0.25}}]",
    "file_labels": "[concat, file_labels, ensemble]",
    "adaptive_kl with grpo": "[concat, {adaptive_kl: {horizon: 20}}, {grpo: {responses: {k}}}]",
    "reward_fusion": "[concat, {reward_fusion: {models: ['{folder}/reward_model']}}]",
    "rejection_sampling": "[concat, {rejection_sampling: {responses: {k}}}, ema_anchor]",
}
GROUPED = ("grpo", "rejection_sampling")


def legal(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """The size, or the next one where a group needs two responses."""
    groups = any(plugin in MIXTURES[name] for plugin in GROUPED)
    return (2, size[1]) if groups and size[0] == 1 else size


def mixture(name: str, size: tuple[int, int], folder: Path) -> list[str]:
    """The overrides of a mixture of methods, with rollouts and minibatches of these sizes."""
    rollout, minibatch = legal(name, size)
    listed = MIXTURES[name].replace("{k}", str(rollout)).replace("{folder}", str(folder))
    return [
        *(o for o in MICRO if not o.startswith(("plugins", "rl.rollout_size", "rl.minibatch"))),
        f"plugins={listed}",
        f"rl.rollout_size={rollout}",
        f"rl.minibatch={minibatch}",
        f"reward_model.batch={rollout}",
    ]


# For kills in real time, with enough computing that most moments lie inside it.
LONGER = ["reward_model.updates=6", "rl.rollouts=6"]


class Crash(BaseException):
    """Stands for the end of the process."""


def run(out: Path, overrides: Sequence[str], site: Path | None = None) -> None:
    """One toy run into ``out``; ``site`` holds installed packages."""
    import ostinato

    if site is not None:
        sys.path.insert(0, str(site))
    for _ in range(3):  # people are asked once an iteration
        try:
            ostinato.run("toy", out, list(overrides))
            return
        except ostinato.Pause:
            answer_people(out)
    raise AssertionError("the run pauses, though all its labels have come back")


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
            found[name] = {k: v for k, v in done.items() if k not in ("metrics", "sha256")}
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
    """(what was killed and when, what differs) for random moments of a run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ostinato.loop", "kill_runs"])
    draw = random.Random(seed)
    names = draw.sample(sorted(MIXTURES), len(MIXTURES))
    sizes = draw.sample(SIZES, len(SIZES))

    def start(out: Path, settings: Sequence[str], limit: float | None) -> tuple[float, int | None]:
        started = time.perf_counter()
        process = context.Process(target=run, args=(out, settings, folder))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
        process.join()
        return time.perf_counter() - started, process.exitcode

    for number in range(count):  # 9 mixtures and 7 sizes: 63 kills before one comes again
        name = names[number % len(names)]
        size = legal(name, sizes[number % len(sizes)])
        settings = [*mixture(name, size, folder), *LONGER, *overrides]
        if number == 0:
            start(folder / "warm", settings, None)  # the first one waits for the imports
        whole, out = folder / "whole", folder / "killed"
        length, status = start(whole, settings, None)
        if status:
            raise SystemExit(f"the uninterrupted run of {name} {size} failed")
        expected = outcome(whole)
        moments: list[str] = []
        while len(moments) < 1 + (number % 3 == 2):  # every third is killed twice
            seconds, status = start(out, settings, draw.uniform(0, length))
            if status:
                moments.append(f"{seconds:.2f} s")
            else:  # it had ended, on a machine that is less busy now: this was no kill
                length = min(length, seconds)
                moments.clear()
                shutil.rmtree(out)
        _, status = start(out, settings, None)
        wrong = differing(outcome(out), expected) if status == 0 else [f"exit status {status}"]
        when = f"killed after {' and '.join(moments)} of {length:.2f} s"
        yield f"{number + 1}: {name}, {size[0]} in {size[1]}s, {when}", wrong
        shutil.rmtree(out)
        shutil.rmtree(whole)


def main() -> int:
    """Exit status 1 if any resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of every run")
    parser.add_argument("--exhaustive", action="store_true", help="crash at every write instead")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value, as after --set")
    asked = parser.parse_args()
    overrides = [f"backend.threads={asked.threads}", *asked.overrides]
    right = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_distribution(folder, "drift_plugin", STATEFUL, {"drift": "Drift"})
        if asked.exhaustive:
            sys.path.insert(0, str(folder))
            found = exhaustive(folder, [*MICRO, *overrides])
        else:
            furnish(folder)
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
