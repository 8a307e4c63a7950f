"""Collect response pairs from the policy, label them, and keep them as Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset

from ostinato.contract.answers import wrong
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Preferences:
    """The comparisons of one iteration."""

    train: Dataset
    held_out: Dataset | None = None  # only measure accuracy
    meta: Dataset | None = None  # of :func:`collect_meta`, for plugins that need them

    def save(self, folder: Path) -> None:
        for name, data in self.__dict__.items():
            if data is not None:
                write_arrow(data, folder / f"{name}.arrow")

    @classmethod
    def load(cls, folder: Path) -> Preferences:
        files = {name: folder / f"{name}.arrow" for name in ("train", "held_out", "meta")}
        return cls(**{n: Dataset.from_file(str(f)) for n, f in files.items() if f.exists()})


def write_arrow(data: Dataset, path: Path) -> None:
    """An Arrow stream file with the same bytes for the same rows."""
    table = data.with_format("arrow")[:] if len(data) else data.data.table
    table = table.combine_chunks().replace_schema_metadata(None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def save_data(data: Dataset, folder: Path) -> None:
    write_arrow(data, folder / "data.arrow")


def load_data(folder: Path) -> Dataset:
    return Dataset.from_file(str(folder / "data.arrow"))


def prompts_for(prompts: PromptSet, ctx: Context) -> tuple[PromptSet, PromptSet]:
    """(training, held-out) preference prompts of an iteration: the same each time, unless fresh."""
    settings = ctx.config.prompts
    held, rest = settings.held_out, len(prompts) - settings.held_out
    order = list(range(rest))
    if settings.fresh:
        order = torch.randperm(rest, generator=ctx.generator("fresh prompts")).tolist()
    return prompts.take(order[: settings.preference]), prompts.take(range(rest, rest + held))


def collect(policy: Policy, prompts: PromptSet, ctx: Context, purpose: str) -> Dataset:
    """Responses of ``policy`` to each prompt, every pair of them a comparison (Wolf, Alg. 1).

    Columns: group, prompt_id, iteration, prompt, prompt_ids, and for ``first`` and ``second`` the
    text, _ids (the policy's tokens, stop token included), _finished, _index and _gold (or null).
    """
    k = ctx.config.preferences.responses
    samples = ctx.sample(policy, prompts, purpose, k, ctx.config.generation.preference_top_p)
    raw = ctx.gold_scores(samples)  # in fp32: rounded, one pair in a hundred would be tied
    prompt_rows, response_rows = samples.tokens
    of_response: dict[str, list[Any]] = {
        "": samples.responses,
        "_ids": response_rows,
        "_finished": samples.finished.tolist(),
        "_index": [*range(k)] * len(prompts),
        "_gold": [None] * len(samples) if raw is None else raw.tolist(),
    }
    rows = []
    for group, prompt_id in enumerate(prompts.ids):
        for pair in combinations(range(group * k, (group + 1) * k), 2):
            row: dict[str, Any] = {
                "group": group,
                "prompt_id": prompt_id,
                "iteration": ctx.iteration,
                "prompt": prompts.texts[group],
                "prompt_ids": prompt_rows[group * k],
            }
            for side, at in zip(("first", "second"), pair, strict=True):
                row |= {side + name: values[at] for name, values in of_response.items()}
            rows.append(row)
    return Dataset.from_list(rows)


def collect_meta(policy: Policy, prompts: PromptSet, responses: int, ctx: Context) -> Dataset:
    """``responses`` unlabelled responses of the current policy to each prompt, a row a prompt."""
    samples = ctx.sample(policy, prompts, "meta responses", responses)
    prompt_rows, response_rows = samples.tokens
    finished = samples.finished.tolist()
    spans = [slice(i * responses, (i + 1) * responses) for i in range(len(prompts))]
    return Dataset.from_dict(
        {
            "prompt": prompts.texts,
            "prompt_ids": [prompt_rows[s.start] for s in spans],
            "responses": [samples.responses[s] for s in spans],
            "response_ids": [response_rows[s] for s in spans],
            "finished": [finished[s] for s in spans],
        }
    )


def label(comparisons: Dataset, plugins: Plugins, ctx: Context) -> Dataset:
    """Comparisons with ``chosen`` and ``rejected`` for first and second, as the labeller prefers.

    Adds label = P(chosen preferred) in [.5, 1], margin 0 and weight 1.
    """
    answered = plugins.one("label", comparisons=comparisons, ctx=ctx, measure=len)
    preferred = [float(p) for p in answered]
    owner = plugins.owners["label"]
    if len(preferred) != len(comparisons):
        counts = f"{len(preferred)} labels for {len(comparisons)} comparisons"
        raise wrong(owner, "label", f"answered {counts}")
    if not all(0.0 <= p <= 1.0 for p in preferred):
        raise wrong(owner, "label", "answered a number outside [0, 1]")
    rows = []
    for row, p in zip(comparisons, preferred, strict=True):
        sides = ("first", "second") if p >= 0.5 else ("second", "first")
        made = {key: value for key, value in row.items() if not key.startswith(sides)}
        for new, old in zip(SIDES, sides, strict=True):
            made |= {key.replace(old, new, 1): row[key] for key in row if key.startswith(old)}
        rows.append(made | {"label": max(p, 1 - p), "margin": 0.0, "weight": 1.0})
    return Dataset.from_list(rows)


def swapped(data: Dataset, where: Sequence[bool]) -> Dataset:
    """The data with chosen and rejected exchanged (all columns named so) ``where`` true."""
    table = data.to_dict()
    for column in [c for c in table if c.startswith("chosen")]:
        other = column.replace("chosen", "rejected", 1)
        pairs = list(zip(table[column], table[other], where, strict=True))
        table[column] = [b if flip else a for a, b, flip in pairs]
        table[other] = [a if flip else b for a, b, flip in pairs]
    return Dataset.from_dict(table, features=data.features)


def combine_data(datasets: Sequence[Dataset], plugins: Plugins, ctx: Context) -> Dataset:
    """D_k, checked to be a non-empty set of comparisons."""
    data = plugins.one("combine_data", datasets=list(datasets), ctx=ctx, measure=len)
    owner = plugins.owners["combine_data"]
    if not isinstance(data, Dataset) or not len(data):
        raise wrong(owner, "combine_data", "answered no rows")
    missing = sorted(set(datasets[-1].column_names) - set(data.column_names))
    if missing:
        raise wrong(owner, "combine_data", f"lost the column {', '.join(missing)}")
    return data


def refine_data(data: Dataset, plugins: Plugins, ctx: Context) -> Dataset:
    """D_k after every active refinement, in the run file's order."""

    def check(name: str, before: Dataset, after: Dataset) -> float:
        hook, columns = "refine_data", set(before.column_names)
        if not isinstance(after, Dataset) or not 0 < len(after) <= len(before):
            raise wrong(name, hook, f"should answer 1..{len(before)} rows")
        if lost := sorted(columns - set(after.column_names)):
            raise wrong(name, hook, f"lost the column {lost[0]}")
        declared = getattr(plugins[name].instance, "provides", ())
        if added := sorted(set(after.column_names) - columns - set(declared)):
            fault = f"added column '{added[0]}', which the plugin does not declare in `provides`"
            raise wrong(name, hook, fault)
        for column in ("label", "margin", "weight"):
            if not bool(torch.tensor(after[column][:]).isfinite().all()):
                raise wrong(name, hook, f"made {column} not finite")
        if not any(after["weight"]):
            raise wrong(name, hook, "made every weight 0")
        if set(after.column_names) != columns or len(after) != len(before):
            return float(len(after))
        watched = ("chosen_ids", "label", "margin", "weight")
        pairs = zip(*(zip(before[c], after[c], strict=True) for c in watched), strict=True)
        return float(sum(any(a != b for a, b in row) for row in pairs))

    return plugins.chain("refine_data", "data", data, check, ctx=ctx)
