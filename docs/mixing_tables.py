"""Which methods combine, as tables: made from what the plugins declare, for docs/mixing.md."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from ostinato.contract.activation import Active, declared
from ostinato.contract.discovery import default_owners
from ostinato.contract.hookspecs import KINDS
from ostinato.contract.plugins import columns

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from contrib_path import installed
from mixing import micro
from mixing.completion import Mixing

RUNS = Path(__file__).parent / "measured" / "mixing.csv"
PACKAGE = "ostinato"
SYMBOLS = {"apart": "×", "together": "·", "with more": "+"}
NEEDS = {
    "members": "a reward of at least {} heads or members: `reward_model.members: {}`{heads}",
    "views": "{} dropout views of each response, which the engine makes",
    "dropout": "dropout {} in the reward model; all who need dropout must need the same",
    "meta_responses": "{} further responses a prompt, which the engine samples",
    "lm_head": "the reward model's language-model logits, which the engine keeps",
}


@cache
def pool() -> Mixing:
    """The built-in plugins and those of contrib/, as the runs of tests/mixing set them."""
    return micro.mixing()


@cache
def plain(name: str) -> Active:
    """A plugin with its own defaults."""
    with installed():
        return declared(name)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def links(names: Iterable[str]) -> str:
    """Plugin names as links to their pages; those of contrib/ by distribution, with its README."""
    by_origin: dict[str, list[str]] = {}
    for name in names:
        by_origin.setdefault(pool().pool[name].found.distribution, []).append(name)
    own = [f"[`{name}`](plugins/{name}.md)" for name in by_origin.pop(PACKAGE, [])]
    parts = [", ".join(own)] if own else []
    for origin, those in sorted(by_origin.items()):
        parts.append(", ".join(f"`{name}`" for name in those) + f" of {readme(origin)}")
    return "; ".join(parts)


def readme(distribution: str) -> str:
    """A link to the README of a distribution of contrib/."""
    return f"[{distribution}](../contrib/{distribution}/README.md)"


def origins() -> str:
    """One row a distribution of contrib/."""
    by_origin: dict[str, list[str]] = {}
    for name, one in pool().pool.items():
        by_origin.setdefault(one.found.distribution, []).append(f"`{name}`")
    rows = [[readme(o), ", ".join(by_origin[o])] for o in sorted(by_origin) if o != PACKAGE]
    return table(["distribution", "methods"], rows)


def one_of() -> str:
    """One row a hook with one owner."""
    mixing, defaults = pool(), default_owners()
    rows = []
    for hook in (h for h, kind in KINDS.items() if kind == "one"):
        owners = [name for name, a in mixing.pool.items() if hook in a.hooks]
        usual = f"[`{defaults[hook]}`](plugins/{defaults[hook]}.md)" if hook in defaults else "–"
        rows.append([f"[`{hook}`](hooks/{hook}.md)", links(owners) or "–", usual])
    return table(["hook", "list at most one of", "where none is listed"], rows)


def any_of() -> str:
    """One row a hook that several plugins may answer."""
    mixing = pool()
    order = {"chain": "in the order of the list", "sum": "added up", "all": "all told"}
    rows = []
    for hook in (h for h, kind in KINDS.items() if kind != "one"):
        users = [name for name, a in mixing.pool.items() if hook in a.hooks]
        rows.append([f"[`{hook}`](hooks/{hook}.md)", links(users) or "–", order[KINDS[hook]]])
    return table(["hook", "list any of", "several are"], rows)


def several() -> str:
    """Plugins that own more than one hook, and so exclude more than one group."""
    rows = [
        [links([name]), ", ".join(f"[`{h}`](hooks/{h}.md)" for h in owned)]
        for name, a in pool().pool.items()
        if len(owned := [h for h in a.hooks if KINDS[h] == "one"]) > 1
    ]
    return table(["method", "owns"], rows)


def needs() -> str:
    """One row a plugin that needs others, or something of the run."""
    mixing = pool()
    rows = []
    for name in mixing.pool:
        one = plain(name)
        found = [*_column_needs(mixing, one), *_engine_needs(mixing, one), *_refused(mixing, one)]
        if found:
            rows.append([links([name]), "; ".join(found)])
    return table(["method", "needs"], rows)


def _column_needs(mixing: Mixing, one: Active) -> list[str]:
    """Who must stand beside a plugin for the sake of its columns."""
    found = []
    for column in sorted(columns([one], "consumes")):
        givers = [n for n, a in mixing.pool.items() if column in columns([a], "provides")]
        if givers and one.name not in mixing.defaults.values() and "refine_data" in one.hooks:
            found.append(f"listed before it, who provides `{column}`: {links(givers)}")
    provided = columns([one], "provides")
    readers = [n for n, a in mixing.pool.items() if columns([a], "consumes") & provided]
    if provided:
        names = ", ".join(f"`{column}`" for column in sorted(provided))
        found.append(f"one at least who consumes {names}: {links(readers)}")
    return found


def _engine_needs(mixing: Mixing, one: Active) -> list[str]:
    """What a plugin declares that the engine or the run file must give."""
    headed = [n for n in mixing.pool if getattr(plain(n).instance, "heads", 1) > 1]
    heads = f", or {links(headed)}" if headed else ""
    found = [NEEDS[key].replace("{heads}", heads).format(v, v) for key, v in one.needs.items()]
    if getattr(one.instance, "needs_gold", False):
        found.append("a gold model")
    schema = getattr(type(one.instance), "Config", None)
    fields = schema.model_fields if schema is not None else {}
    return found + [f"its setting `{key}`" for key, f in fields.items() if f.is_required()]


def _refused(mixing: Mixing, one: Active) -> list[str]:
    """What `ostinato check` says of a plugin with its own defaults in a run of the toy world."""
    if "members" in one.needs:  # which is said already
        return []
    whole = [one if a.name == one.name else a for a in mixing.completed([one.name])[0]]
    return [f"without more: *{said}*" for said in micro.refused(whole, {"world": "toy"})]


def apart() -> str:
    """Pairs that exclude each other though they share no hook with one owner."""
    mixing = pool()
    by_pair: dict[str, list[str]] = {}
    for (a, b), why in mixing.pairs().items():
        shared = set(mixing.pool[a].hooks) & set(mixing.pool[b].hooks)
        if why and not any(KINDS[hook] == "one" for hook in shared):
            by_pair.setdefault(f"{links([a])} and {links([b])}", []).extend(why)
    if not by_pair:
        return "There are none."
    return table(
        ["pair", "what `ostinato check` says"], ([k, "; ".join(v)] for k, v in by_pair.items())
    )


def matrix() -> str:
    """Every pair: the row's name against the column's, whose name stands on the diagonal."""
    mixing = pool()
    pairs, lines = mixing.pairs(), []
    for i, name in enumerate(mixing.pool):
        cells = (
            _symbol(mixing, other, name, pairs[other, name]) for other in list(mixing.pool)[:i]
        )
        lines.append(" ".join([*cells, name]))
    return "```text\n" + "\n".join(lines) + "\n```"


def _symbol(mixing: Mixing, one: str, other: str, why: list[str]) -> str:
    if why:
        return SYMBOLS["apart"]
    return SYMBOLS["together" if len(mixing.listed([one, other])) == 2 else "with more"]


def count() -> str:
    """How many pairs there are, and how many may stand together."""
    mixing = pool()
    pairs = mixing.pairs()
    legal = sum(not why for why in pairs.values())
    return (
        f"{len(mixing.pool)} methods make {len(pairs)} pairs; {legal} of them may stand in one "
        f"run, {len(pairs) - legal} may not."
    )


def runs() -> str:
    """What `tests/mixing/run_all.py` found when it was last run in full."""
    if not RUNS.is_file():
        return "Not run yet."
    with RUNS.open(encoding="utf-8", newline="") as lines:
        ran = list(csv.DictReader(lines))
    mixing = pool()
    legal = {pair for pair, why in mixing.pairs().items() if not why}
    covered = {
        pair
        for row in ran
        if not row["fault"]
        for pair in legal
        if set(pair) <= set(row["active"].split())
    }
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in ran):
        own = [row for row in ran if row["kind"] == kind]
        sizes = sorted(len(row["active"].split()) for row in own)
        seconds = sum(float(row["seconds"]) for row in own)
        failed = sum(bool(row["fault"]) for row in own)
        plugins = f"{sizes[0]} to {sizes[-1]}"
        rows.append([kind, str(len(own)), plugins, str(failed), f"{seconds:.0f}"])
    head = ["sets", "runs", "active plugins in each", "failures", "CPU seconds"]
    known = {name for row in ran for name in row["active"].split()}
    late = [name for name in mixing.pool if name not in known]
    return "\n\n".join(
        [
            table(head, rows),
            f"Pairs that ran together: {len(covered)} of the {len(legal)} legal ones."
            + (f" Not run with the others yet: {links(late)}." if late else ""),
        ]
    )


MAKERS: dict[str, Callable[..., str]] = {
    "mixing-any": any_of,
    "mixing-apart": apart,
    "mixing-count": count,
    "mixing-matrix": matrix,
    "mixing-needs": needs,
    "mixing-one": one_of,
    "mixing-origins": origins,
    "mixing-runs": runs,
    "mixing-several": several,
}
