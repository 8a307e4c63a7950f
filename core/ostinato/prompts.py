"""Prompts: read them, put them into their template, split them by hash into disjoint sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.config import PromptsSection, Shares
from ostinato.errors import UserError, closest
from ostinato.models import prompt_tokens

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one split: ``ids`` (position in the data), text, token ids."""

    ids: list[int]
    texts: list[str]
    tokens: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Iterable[int]) -> PromptSet:
        """The prompts at these places."""
        chosen = list(index)
        return PromptSet(
            [self.ids[i] for i in chosen],
            [self.texts[i] for i in chosen],
            [self.tokens[i] for i in chosen],
        )


@dataclass(frozen=True)
class PromptSplits:
    """Disjoint prompts, by what they are for."""

    preference: PromptSet
    rl: PromptSet
    evaluation: PromptSet


def read_rows(data: str, split: str, key: str) -> list[dict[str, Any]]:
    """Rows of a JSON or JSONL file, an Arrow file, a saved `datasets` folder, or a hub data set."""
    path = Path(data)
    try:
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            rows = _read_dataset(path, data, split)
    except FileNotFoundError:
        raise UserError(f"{key}: no file '{data}'") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{key}: '{data}' is not valid JSON at line {error.lineno}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        text = (str(error).splitlines() or [""])[0]
        raise UserError(f"{key}: '{data}' cannot be read: {text}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise UserError(f"{key}: '{data}' should hold at least one row, each a mapping")
    return rows


def _read_dataset(path: Path, name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    if path.suffix in {".arrow", ".parquet"} and not path.exists():
        raise FileNotFoundError(name)
    if path.suffix == ".arrow":
        made = datasets.Dataset.from_file(str(path))
    elif path.is_dir():
        made = datasets.load_from_disk(str(path))
        if isinstance(made, datasets.DatasetDict):
            if split not in made:
                raise ValueError(f"no split '{split}'{closest(split, made)}")
            made = made[split]
    else:
        made = datasets.load_dataset(name, split=split)
    rows: list[dict[str, Any]] = made.to_list()
    return rows


def render(row: Mapping[str, Any], settings: PromptsSection) -> str:
    """A row as the policy's prompt, by the template."""
    template = settings.template
    if template in {"alpaca", "open-assistant"}:
        _require(row, "instruction", settings)
        given = str(row.get("input") or "")
        if template == "alpaca":
            form = ALPACA_WITH_INPUT if given else ALPACA
            return form.format(instruction=row["instruction"], input=given)
        question = "\n".join(filter(None, [str(row["instruction"]), given]))
        return f"<|prompter|>{question}<|endoftext|><|assistant|>"
    try:
        return template.format_map({**row, "prompt": row.get(settings.field)})
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"prompts.template: '{template}' does not fit the rows of {settings.data}: {error}; "
            f"their columns are {', '.join(row)}"
        ) from None


def _require(row: Mapping[str, Any], column: str, settings: PromptsSection) -> None:
    if row.get(column) is None:
        raise UserError(
            f"prompts: rows of {settings.data} have no column '{column}'{closest(column, row)}"
        )


def split_of(text: str, shares: Shares) -> str:
    """preference, rl or evaluation: by the prompt's own hash, whatever else is in the data."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < shares.preference:
        return "preference"
    return "rl" if place < shares.preference + shares.rl else "evaluation"


def split_texts(settings: PromptsSection) -> dict[str, dict[int, str]]:
    """Distinct prompt texts by split, by position in the data."""
    assert settings.data is not None
    rows = read_rows(settings.data, settings.split, "prompts.data")
    if "{prompt}" in settings.template:
        _require(rows[0], settings.field, settings)
    found: dict[str, dict[int, str]] = {"preference": {}, "rl": {}, "evaluation": {}}
    seen = set()
    for i, row in enumerate(rows):
        text = render(row, settings)
        if text not in seen:
            seen.add(text)
            found[split_of(text, settings.shares)][i] = text
    wanted = {
        "preference": settings.preference + settings.held_out,
        "rl": 1,
        "evaluation": settings.evaluation,
    }
    short = {name: n for name, n in wanted.items() if len(found[name]) < n}
    for name, n in short.items():
        raise UserError(
            f"prompts: {settings.data} gives {len(found[name])} distinct {name} prompts of "
            f"{len(seen)}, but {n} are asked for; change prompts.{name}, prompts.shares or the data"
        )
    return found


def load_prompts(settings: PromptsSection, tokenizer: Any) -> PromptSplits:
    """The three prompt sets, tokenized for the policy; prompts over ``max_tokens`` are left out."""
    made = {}
    for name, texts in split_texts(settings).items():
        tokens = prompt_tokens(tokenizer, list(texts.values()))
        kept = [
            (i, text, row)
            for (i, text), row in zip(texts.items(), tokens, strict=True)
            if 0 < len(row) <= settings.max_tokens
        ]
        if not kept:
            raise UserError(
                f"prompts: every {name} prompt is longer than max_tokens {settings.max_tokens}"
            )
        ids, kept_texts, rows = (list(column) for column in zip(*kept, strict=True))
        made[name] = PromptSet(ids, kept_texts, rows)
    made["evaluation"] = made["evaluation"].take(
        range(min(settings.evaluation, len(made["evaluation"])))
    )
    return PromptSplits(**made)
