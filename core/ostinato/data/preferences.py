"""Collect response pairs from the policy, label them, and keep them as Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset

from ostinato.contract.answers import wrong
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.data.identity import DRAWN, SIDES, response_id
from ostinato.models.generation import stop_token
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples


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


def own_responses(policy: Policy, prompts: PromptSet, ctx: Context, purpose: str) -> Samples:
    """K responses of the policy to each prompt, as the run file draws the responses of pairs."""
    top_p = ctx.config.generation.preference_top_p
    return ctx.sample(policy, prompts, purpose, ctx.config.preferences.responses, top_p)


def draw_responses(policy: Policy, prompts: PromptSet, plugins: Plugins, ctx: Context) -> Samples:
    """What is compared: the policy's own responses, or those that the hook's owner answers.

    The magnitude is the share of responses that are not the policy's own of the same place.
    """
    own = own_responses(policy, prompts, ctx, "preferences")
    hook, owner = "draw_responses", plugins.owners.get("draw_responses")
    if owner is None:
        return own
    given = prompts.take(range(len(prompts)))  # its lists are not the run's
    answer = plugins.call(owner, hook, policy=policy, prompts=given, ctx=ctx)
    stop = stop_token(policy.tokenizer, ctx.config.generation)
    if fault := _misfit(answer, own, ctx.config.preferences.responses, stop):
        raise wrong(owner, hook, f"answered {fault}")
    plugins.acted(owner, hook, float((~answer.equal(own)).double().mean()))
    made: Samples = replace(answer, texts=own.texts)
    return made


def _misfit(answer: Any, own: Samples, k: int, stop: int) -> str | None:
    """What keeps samples from being K responses to each prompt, in order; or None."""
    wanted = f"expected {k} for each of the {len(own) // k} prompts, side by side"
    if not isinstance(answer, Samples):
        return f"a {type(answer).__name__}, expected ostinato.Samples"
    if len(answer) != len(own):
        return f"{len(answer)} responses, {wanted}"
    rows = zip(*answer.tokens, own.tokens[0], answer.finished.tolist(), strict=True)
    for row, (prompt, response, known, finished) in enumerate(rows):
        if prompt != known:
            return f"in row {row} a response to another prompt, {wanted}"
        if not response:
            return f"in row {row} a response without a token"
        if (response[-1] == stop) != finished:
            said = "is finished" if finished else "is not finished"
            return f"in row {row} a response that {said} and ends with token {response[-1]}"
    return None


def comparisons_of(samples: Samples, prompts: PromptSet, ctx: Context) -> Dataset:
    """Every two of the K responses to a prompt, which stand side by side (Wolf, Alg. 1).

    Columns: group, prompt_id, iteration, prompt, prompt_ids, and for ``first`` and ``second`` the
    text, _ids (the policy's tokens, stop token included), _finished, _id and _gold (or null).
    """
    k = len(samples) // len(prompts)
    raw = ctx.gold_scores(samples)  # in fp32: rounded, one pair in a hundred would be tied
    prompt_rows, response_rows = samples.tokens
    of_response: dict[str, list[Any]] = {
        "": samples.responses,
        "_ids": response_rows,
        "_finished": samples.finished.tolist(),
        "_id": [response_id(ctx.iteration, p, n) for p in prompts.ids for n in range(k)],
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
            for side, at in zip(DRAWN, pair, strict=True):
                row |= {side + name: values[at] for name, values in of_response.items()}
            rows.append(row)
    return Dataset.from_list(rows)


def select_comparisons(
    comparisons: Dataset, reward_models: Sequence[Reward], plugins: Plugins, ctx: Context
) -> Dataset:
    """The comparisons that are worth a label, after every active selection in order.

    The magnitude is the number of rows that went.
    """

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(f"{side}_id") for side in DRAWN)

    def check(name: str, before: Dataset, after: Dataset) -> float:
        hook = "select_comparisons"
        if not isinstance(after, Dataset) or not len(after):
            raise wrong(name, hook, "answered no rows, expected some of those that it was given")
        given = {key(row): row for row in before.to_list()}
        for place, row in enumerate(after.to_list()):
            if given.pop(key(row), None) != row:
                raise wrong(name, hook, f"answered row {place}, which it was not given, or twice")
        return float(len(given))

    given = {"reward_models": list(reward_models), "ctx": ctx}
    return plugins.chain("select_comparisons", "comparisons", comparisons, check, **given)


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
