"""Labels that people give, in files that the run waits for."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ostinato import Context, Pause, UserError, hookimpl
from ostinato.measures import pairwise_accuracy

TEXTS = ("prompt", "first", "second")
WORDS = {"first": 1.0, "second": 0.0, "tie": 0.5}
EXPECTED = '"first", "second", "tie" or a number in [0, 1], P(first preferred)'


class FileLabels:
    """Let people label: export the comparisons, stop, and go on when the labels are back."""

    paper = "Lambert 2025, section 6; BRME, appendix A (people say good, same or bad)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        folder: str | None = Field(
            None,
            description="where comparisons are exported, as iteration-1.jsonl and so on; labels/ "
            "in the run's folder when left out",
        )
        labels: str | None = Field(
            None,
            description="file that the labels come back in, with {iteration} in its name; the "
            "exported file itself when left out",
        )

        @field_validator("labels")
        @classmethod
        def _one_an_iteration(cls, value: str | None) -> str | None:
            if value is not None and "{iteration}" not in value:
                raise ValueError("expected {iteration} in it: each iteration has its own labels")
            return value

    config: Config

    @hookimpl
    def label(self, comparisons: Dataset, ctx: Context) -> list[float]:
        """P(first preferred) as the file says it.

        Raises Pause while labels are missing, UserError where the file is damaged.
        """
        rows = comparisons.select_columns(list(TEXTS)).to_list()
        ids = [identity(ctx.iteration, n, row) for n, row in enumerate(rows, start=1)]
        folder = (
            ctx.directory / "labels" if self.config.folder is None else Path(self.config.folder)
        )
        exported = folder.expanduser() / f"iteration-{ctx.iteration}.jsonl"
        if not os.path.lexists(exported):  # else somebody may be at work in it
            export(exported, rows, ids)
        place = (self.config.labels or str(exported)).replace("{iteration}", str(ctx.iteration))
        path = Path(place).expanduser()
        if not path.exists() and path != exported:
            raise Pause(
                f"{path}: is not there yet; label the {len(rows)} comparisons of iteration "
                f"{ctx.iteration} in {exported} (set each label to {EXPECTED}), save them as that "
                "file, and start the run again"
            )
        found = read(path, dict(zip(ids, rows, strict=True)))
        _wait_for_all(path, ids, found, ctx.iteration)
        made = torch.tensor([found[i][1] for i in ids], dtype=torch.float64)
        ctx.log(**_measures(made, comparisons))
        return made.tolist()


def identity(iteration: int, number: int, row: Mapping[str, str]) -> str:
    """A comparison's id: where it stands, and a digest of its texts, which tells changed ones."""
    texts = json.dumps([row[key] for key in TEXTS])
    return f"{iteration}-{number}-{hashlib.sha256(texts.encode()).hexdigest()[:8]}"


def export(path: Path, rows: Sequence[Mapping[str, str]], ids: Sequence[str]) -> None:
    """Write the comparisons without labels: the whole file appears at once, or nothing does."""
    lines = [_line({"id": i, **row, "label": None}) for i, row in zip(ids, rows, strict=True)]
    new = path.with_name(f".making-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _line(row: Mapping[str, Any]) -> str:
    """JSON that people can read, in one line to every editor."""
    text = json.dumps(row, ensure_ascii=False)
    return text if len(text.splitlines()) == 1 else json.dumps(row)


def read(path: Path, known: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[int, float | None]]:
    """{id: (line, P(first preferred), or None while it is missing)} of a file of labels.

    Raises UserError that names file, line and key.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    found: dict[str, tuple[int, float | None]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        row = _parsed(line, where)
        name = _known_id(row, known, where)
        if name in found:
            raise UserError(f"{where}: id: '{name}' stands in line {found[name][0]} already")
        for key in TEXTS:
            if row.get(key, known[name][key]) != known[name][key]:
                raise UserError(f"{where}: {key}: was changed since the run wrote it; restore it")
        found[name] = (number, _label(row, where))
    return found


def _parsed(line: str, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{where}: {key}: stands twice")
        return dict(pairs)

    try:
        row = json.loads(line, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON, one object in one line: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is a {type(row).__name__}, expected a JSON object")
    for key in ("id", "label"):
        if key not in row:
            raise UserError(f"{where}: {key}: is missing{_near(key, row)}")
    return row


def _known_id(row: Mapping[str, Any], known: Mapping[str, Mapping[str, str]], where: str) -> str:
    name = str(row["id"])
    if name in known:
        return name
    digest = name.rpartition("-")[2]
    if all(key in row for key in TEXTS) and identity(0, 0, row).endswith(f"-{digest}"):
        raise UserError(  # the row is whole, so this run did not write it
            f"{where}: id: '{name}' is none of the run's comparisons; the file is of another run"
        )
    hint = _near(name, known) or "; restore the one that the run wrote"
    raise UserError(f"{where}: id: '{name}' is none of the run's{hint}")


def _near(name: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _label(row: Mapping[str, Any], where: str) -> float | None:
    value = row["label"]
    if value is None:
        return None
    if isinstance(value, str) and value in WORDS:
        return WORDS[value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value <= 1:
        return float(value)
    raise UserError(f"{where}: label: expected {EXPECTED}, got {json.dumps(value)[:60]}")


def _wait_for_all(
    path: Path, ids: Sequence[str], found: Mapping[str, tuple[int, float | None]], iteration: int
) -> None:
    """Raise Pause unless every comparison has its label."""
    missing = [name for name in ids if found.get(name, (0, None))[1] is None]
    if not missing:
        return
    lines = [found[name][0] for name in missing if name in found]
    first = f"in line {min(lines)}" if lines else f"'{missing[0]}', which has no line there"
    raise Pause(
        f"{path}: {len(missing)} of the {len(ids)} comparisons of iteration {iteration} wait for "
        f"a label, the first {first}; set each label to {EXPECTED}, and start the run again"
    )


def _measures(made: torch.Tensor, comparisons: Dataset) -> dict[str, float]:
    found = {"ties": float((made == 0.5).double().mean())}
    gold = comparisons["first_gold"][:], comparisons["second_gold"][:]
    if None not in gold[0]:
        found["gold_agreement"] = pairwise_accuracy(made, 1 - made, *map(torch.tensor, gold))
    return {f"file_labels/{key}": x for key, x in found.items() if math.isfinite(x)}
