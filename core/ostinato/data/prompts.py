"""Prompts: read them, put them into their template, split them by hash into disjoint sets."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import string
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ostinato.config.errors import UserError, closest
from ostinato.config.sections import PromptsSection, Shares
from ostinato.models.loading import first_line, prompt_tokens
from ostinato.models.prompts import PromptSet

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ASSISTANT = "<|prompter|>{instruction}<|endoftext|><|assistant|>"
NAMED = {  # without and with a column `input`
    "alpaca": (ALPACA, ALPACA_WITH_INPUT),
    "open-assistant": (ASSISTANT, ASSISTANT.replace("{instruction}", "{instruction}\n{input}")),
}
WIDEST = 1000  # characters that a template may pad a column to
TEXTS = {".jsonl", ".json", ".csv", ".txt"}


@dataclass(frozen=True)
class PromptSplits:
    """Disjoint prompts, by what they are for."""

    preference: PromptSet
    rl: PromptSet
    evaluation: PromptSet

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.preference.tokens + self.rl.tokens + self.evaluation.tokens))

    @cached_property
    def _places(self) -> dict[str, tuple[PromptSet, int]]:
        splits = (self.preference, self.rl, self.evaluation)
        return {text: (split, i) for split in splits for i, text in enumerate(split.texts)}

    def columns(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        """What the prompts file says of prompts in its further columns. UserError of others."""
        places = self._places
        if unknown := [text for text in texts if text not in places]:
            said = f"no row of the prompts file is the prompt '{' '.join(unknown[0].split())[:60]}'"
            raise UserError(f"{said}, so it has none of the columns that are asked for")
        found = [places[text] for text in texts]
        return {name: [p.columns[name][i] for p, i in found] for name in self.rl.columns}


def read_rows(data: str, split: str, key: str) -> list[dict[str, Any]]:
    """Rows of a text file, an Arrow or Parquet file, a saved `datasets` folder, or a hub data set.

    A line of a ``.txt`` file is the ``prompt`` of a row; text files may be compressed (``.gz``).
    """
    path = Path(data)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("it is no regular file")  # a pipe would be waited for
        kind = Path(data.removesuffix(".gz")).suffix
        rows = _read_text(path, kind, key) if kind in TEXTS else _read_dataset(path, data, split)
    except FileNotFoundError:  # a missing file, or `datasets`' word for a missing hub data set
        absent = "is neither a file or folder here nor a data set on the hub"
        raise UserError(f"{key}: '{data}' {absent}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{key}: '{data}' is not valid JSON at line {error.lineno}") from None
    except UserError:
        raise
    except Exception as error:  # pyarrow, the hub and `datasets` each raise errors of their own
        said = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{key}: '{data}' cannot be read: {said}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise UserError(f"{key}: '{data}' should hold at least one row, each a mapping")
    return rows


def _read_text(path: Path, kind: str, key: str) -> Any:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        text = file.read()
    if kind == ".json":
        return json.loads(text)
    if kind == ".csv":
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
        if any(None in row for row in rows):
            raise ValueError("a row has more cells than the first line has names")
        return rows
    found: list[Any] = []
    # not splitlines(): it breaks at U+2028 and U+0085 too, which JSON strings may hold as they are
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                found.append({"prompt": line} if kind == ".txt" else json.loads(line))
        except json.JSONDecodeError:
            raise UserError(f"{key}: '{path}' is not valid JSON at line {number}") from None
    return found


def _read_dataset(path: Path, name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    kinds = {".arrow": datasets.Dataset.from_file, ".parquet": datasets.Dataset.from_parquet}
    if path.suffix in kinds:
        path.stat()  # raises FileNotFoundError
        made = kinds[path.suffix](name)
    elif path.is_dir():
        made = datasets.load_from_disk(str(path))
        if isinstance(made, datasets.DatasetDict):
            if split not in made:
                raise ValueError(f"no split '{split}'{closest(split, made)}")
            made = made[split]
    elif path.is_file():
        raise ValueError(f"expected one of {', '.join(sorted(TEXTS))}, .parquet and .arrow")
    else:
        made = datasets.load_dataset(name, split=split)
    return list(made.to_list())


class _Filled(string.Formatter):
    """A template over the columns of a row, whose values must be text or numbers."""

    def __init__(self, field: str, where: str) -> None:
        self.field = field  # the column that {prompt} stands for
        self.where = where

    def get_value(self, key: int | str, args: Any, row: Any) -> Any:
        if key == "prompt":
            require(row, self.field, self.where)
            return row[self.field]
        return row[key]

    def get_field(self, name: str, args: Any, row: Any) -> Any:
        value, first = super().get_field(name, args, row)
        check_text(value, self.field if name == "prompt" else name, self.where)
        return value, first

    def format_field(self, value: Any, form: str) -> str:
        if any(int(number) > WIDEST for number in re.findall(r"\d+", form)):
            raise ValueError(f"'{form}' asks for more than {WIDEST} characters")
        return str(super().format_field(value, form))


def render(row: Mapping[str, Any], template: str, field: str, where: str) -> str:
    """A row as the policy's prompt; ``{prompt}`` in the template is the column ``field``.

    ``where`` names the data in the UserError that a column without text raises.
    """
    if template in NAMED:
        require(row, "instruction", where)
        template = NAMED[template][bool(row.get("input"))]
    try:
        return _Filled(field, where).vformat(template, (), row)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        fault = f"{error}; their columns are {', '.join(row)}"
        said = f"prompts.template: '{template}' does not fit the rows of {where}"
        raise UserError(f"{said}: {fault}") from None


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """What stands in a column; UserError where that is no text."""
    require(row, column, where)
    check_text(row[column], column, where)
    return str(row[column])


def check_text(value: Any, column: str, where: str) -> None:
    """UserError for what is neither text nor a number."""
    if isinstance(value, str):
        found = "half a surrogate pair" if re.search("[\ud800-\udfff]", value) else ""
    elif value is None:
        found = "nothing"
    else:
        found = "" if type(value) in {int, float} else f"a {type(value).__name__}"
    if found:
        hint = "; conversations are not read" if isinstance(value, list | dict) else ""
        raise UserError(f"a row of {where} has {found} in its column '{column}', not text{hint}")


def require(row: Mapping[str, Any], column: str, where: str) -> None:
    """UserError where a row has no such column."""
    if column not in row:
        raise UserError(f"a row of {where} has no column '{column}'{closest(column, row)}")


def split_of(text: str, shares: Shares) -> str:
    """preference, rl or evaluation: by the prompt's own hash, whatever else is in the data."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < shares.preference:
        return "preference"
    return "rl" if place < shares.preference + shares.rl else "evaluation"


def split_prompts(settings: PromptsSection) -> dict[str, PromptSet]:
    """Distinct prompts by split, not yet tokenized; of equal ones the first row counts."""
    rows = read_rows(settings.data, settings.split, "prompts.data")
    where = f"prompts.data '{settings.data}'"
    columns = dict.fromkeys(name for row in rows for name in row)
    made: dict[str, PromptSet] = {}
    for name in ("preference", "rl", "evaluation"):
        made[name] = PromptSet([], [], [], {column: [] for column in columns})
    seen = set()
    for i, row in enumerate(rows):
        text = render(row, settings.template, settings.field, where)
        if text not in seen:
            seen.add(text)
            split = made[split_of(text, settings.shares)]
            split.ids.append(i)
            split.texts.append(text)
            split.tokens.append([])
            for column in columns:
                split.columns[column].append(row.get(column))
    _check_enough(made, settings, "distinct ones")
    return made


def _check_enough(found: Mapping[str, Sized], settings: PromptsSection, kind: str) -> None:
    pairs, total = settings.preference + settings.held_out, sum(map(len, found.values()))
    for name, n in (("preference", pairs), ("rl", 1), ("evaluation", settings.evaluation)):
        if len(found[name]) < n:
            given = f"{settings.data} gives {len(found[name])} {name} prompts of {total} {kind}"
            hint = f"change prompts.{name}, prompts.shares or the data"
            raise UserError(f"prompts: {given}, but {n} are asked for; {hint}")


def load_prompts(settings: PromptsSection, tokenizer: Any) -> PromptSplits:
    """The three prompt sets, tokenized for the policy; prompts over ``max_tokens`` are left out.

    Raises UserError where a split then holds fewer than the settings ask for.
    """
    made: dict[str, PromptSet] = {}
    for name, found in split_prompts(settings).items():
        whole = replace(found, tokens=prompt_tokens(tokenizer, found.texts))
        lengths = enumerate(map(len, whole.tokens))
        made[name] = whole.take(i for i, length in lengths if 0 < length <= settings.max_tokens)
    _check_enough(made, settings, f"of at most {settings.max_tokens} tokens")
    made["evaluation"] = made["evaluation"].first(settings.evaluation)
    return PromptSplits(**made)
