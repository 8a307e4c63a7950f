"""Run every legal pair of methods, contrib's too, and 30 larger random sets, on the micro world.

    python tests/mixing/run_all.py --jobs 2             # minutes; exit status 1 if anything fails
    python tests/mixing/run_all.py --jobs 2 --write     # and write docs/measured/mixing.csv

Prints one line a run, then what was covered. One thread a run; seconds of each are the CPU's.
The distributions of contrib/ are taken from the checkout: none has to be installed.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from contrib_path import installed  # noqa: E402
from mixing import covering, micro  # noqa: E402
from mixing.completion import Mixing  # noqa: E402
from ostinato.config.errors import UserError  # noqa: E402
from ostinato.config.reading import load_config  # noqa: E402
from ostinato.engine.session import check  # noqa: E402

TABLE = ROOT / "docs" / "measured" / "mixing.csv"
COLUMNS = ("kind", "listed", "active", "seconds", "fault")


@dataclass(frozen=True)
class Job:
    """One run to make; ``folder`` holds what its settings name."""

    kind: str
    listed: list[str]
    folder: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    options = parser.parse_args()
    mixing, started = micro.mixing(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        micro.furnish(folder)
        refused = list(wrongly_refused(mixing, folder))
        for line in refused:
            print(line)
        jobs = [Job("covering array", row, folder) for row in covering.covering_array(mixing)]
        jobs += [Job("random", row, folder) for row in covering.random_sets(mixing, 30)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ostinato.loop", "mixing.micro"])
        with ProcessPoolExecutor(options.jobs, context, initializer=strict) as pool:
            rows = []
            for row in pool.map(one, jobs):
                rows.append(row)
                print(f"{row['seconds']:>5} s  {row['fault'] or 'ok'}  {row['listed']}", flush=True)
    passed = [row["active"].split() for row in rows if not row["fault"]]
    covered = {pair for names in passed for pair in covering.pairs_of(names)}
    legal = covering.legal_pairs(mixing)
    failures = sum(bool(row["fault"]) for row in rows)
    print(
        f"{len(legal & covered)} of {len(legal)} legal pairs ran together; {len(rows)} runs, "
        f"{failures} failures; {len(mixing.pairs()) - len(legal)} pairs refused, {len(refused)} "
        f"of them wrongly; {time.perf_counter() - started:.0f} s"
    )
    if options.write:
        TABLE.parent.mkdir(exist_ok=True)
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return int(bool(failures or refused or legal - covered))


def strict() -> None:
    """As in the tests, a warning is an error."""
    warnings.simplefilter("error")


def one(job: Job) -> dict[str, str]:
    """Make a run; a row of the table, with the seconds of CPU that it took."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        mixing = micro.mixing()
        try:
            fault = "; ".join(micro.complaints(mixing, job.listed, job.folder, Path(name) / "run"))
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            fault = f"{type(error).__name__}: {error}".splitlines()[0]
    return {
        "kind": job.kind,
        "listed": " ".join(job.listed),
        "active": " ".join(covering.active(mixing, job.listed)),
        "seconds": f"{time.process_time() - started:.1f}",
        "fault": fault,
    }


def wrongly_refused(mixing: Mixing, folder: Path) -> Iterator[str]:
    """Illegal pairs that `ostinato check` takes, or refuses in other words than it should."""
    for pair, why in mixing.pairs().items():
        if not why:
            continue
        try:
            source = micro.run_file(mixing, mixing.listed(pair), folder)
            with installed():
                check(load_config(source), "run.yaml")
        except UserError as error:
            if str(error).splitlines() != [f"run.yaml: {sentence}" for sentence in why]:
                yield f"{pair}: refused with {error}"
        else:
            yield f"{pair}: not refused, though {why}"


if __name__ == "__main__":
    raise SystemExit(main())
