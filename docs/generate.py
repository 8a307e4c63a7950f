"""Fill in the generated parts of the documentation from the code that they describe.

``python docs/generate.py`` rewrites what stands between ``<!-- generated: NAME ARGUMENT -->`` and
``<!-- /generated -->`` in every page; a test fails while a page and the code disagree.
"""

from __future__ import annotations

import csv
import importlib.util
import inspect
import json
import re
import statistics
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ostinato.config.sections import RunConfig
from ostinato.contract import hookspecs
from ostinato.contract.activation import declared
from ostinato.contract.discovery import default_owners, discover, hooks_of, summary_of
from ostinato.contract.hookspecs import KINDS

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n)(.*?)(<!-- /generated -->)", re.DOTALL)
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
PACKAGE = "ostinato"


def main() -> None:
    """Rewrite every page in place, and the picture of the core."""
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(DOCS.parent)} rewritten")
    ARCHITECTURE.draw()


def pages() -> list[Path]:
    """Every page, and the READMEs of the repository and of contrib."""
    root = DOCS.parent
    return [
        root / "README.md",
        *sorted(root.glob("contrib/*/README.md")),
        *sorted(DOCS.rglob("*.md")),
    ]


def filled(text: str) -> str:
    """A page with its generated parts made anew."""

    def block(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        return f"{found[1]}\n{MAKERS[name](*arguments).strip()}\n\n{found[4]}"

    return BLOCK.sub(block, text)


def built_ins() -> list[str]:
    """The names of the plugins that come with the package."""
    found = discover()
    return [n for n, claims in found.items() if any(c.distribution == PACKAGE for c in claims)]


def plugin_class(name: str) -> type[Any]:
    """A built-in plugin's class."""
    return next(c for c in discover()[name] if c.distribution == PACKAGE).load()


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in r) + " |" for r in lines
    )


# Settings


def settings(plugin: str) -> str:
    """The settings of one plugin, from its Config."""
    schema = getattr(plugin_class(plugin), "Config", None)
    return setting_table(schema) if schema is not None else "This plugin has no settings."


def run_file() -> str:
    """Every key of a run file, section by section."""
    sections = [(name, section_of(f)) for name, f in RunConfig.model_fields.items()]
    parts = ["### Top level", setting_table(RunConfig)]
    for name, schema in sections:
        if schema is not None:
            parts += [f"### {name}", inspect.cleandoc(schema.__doc__ or ""), setting_table(schema)]
    return "\n\n".join(parts)


def setting_table(schema: type[BaseModel]) -> str:
    """key, type, default and description of each setting; nested sections as dotted keys."""
    return table(["key", "type", "default", "description"], list(setting_rows(schema)))


def setting_rows(schema: type[BaseModel], prefix: str = "") -> Iterator[list[str]]:
    """One row a setting."""
    for name, field in schema.model_fields.items():
        inner = section_of(field)
        if inner is None:
            kind, default = type_text(field), default_text(field)
            yield [f"`{prefix}{name}`", kind, default, field.description or ""]
        elif schema is RunConfig:
            yield [f"`{name}`", "section", section_default(field), f"see [{name}](#{name})"]
        else:
            yield from setting_rows(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section of its own."""
    choices = [field.annotation, *typing.get_args(field.annotation)]
    return next((c for c in choices if inspect.isclass(c) and issubclass(c, BaseModel)), None)


def section_default(field: FieldInfo) -> str:
    """What a section is when the run file leaves it out."""
    return "`null`" if field.get_default(call_default_factory=False) is None else "its defaults"


def type_text(field: FieldInfo) -> str:
    """The type in words, with the bounds."""
    return ", ".join([words(field.annotation), *bounds(field)])


def bounds(field: FieldInfo) -> list[str]:
    """What a number must be, as ≥ 1."""
    return [
        f"{sign} {getattr(rule, key):g}"
        for rule in field.metadata
        for key, sign in BOUNDS.items()
        if getattr(rule, key, None) is not None
    ]


def words(kind: Any) -> str:
    """A type annotation in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in NAMES:
        return NAMES[kind]
    if origin is typing.Literal:
        return " or ".join(f"`{a}`" for a in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(words(a) for a in arguments)
    if origin is typing.Annotated:
        return ", ".join([words(arguments[0]), *bounds(arguments[1])])
    if origin is list:
        return f"list of {words(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} {words(arguments[0])}s"
    return "mapping" if origin is dict or kind is dict else "any"


def default_text(field: FieldInfo) -> str:
    """The default as YAML would have it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    text = str(list(value) if isinstance(value, tuple | list) else value).replace("\n", "\\n")
    return f"`{text}`"  # in one line of the table


# Hooks and plugins


def hook(name: str) -> str:
    """The facts of one hook: kind, default, signature, who answers it."""
    spec = getattr(hookspecs, name)
    parameters = ", ".join(inspect.signature(spec).parameters)
    default = default_owners().get(name)
    users = [p for p in built_ins() if name in hooks_of(plugin_class(p))]
    links = ", ".join(f"[{p}](../plugins/{p}.md)" for p in users) or "none"
    rows = [
        ["kind", f"[{KINDS[name]}](index.md#the-four-kinds)"],
        ["signature", f"`{name}({parameters})`"],
        ["default owner", f"[{default}](../plugins/{default}.md)" if default else "none"],
        ["built-ins that answer it", links],
    ]
    return table(rows[0], rows[1:])


def hooks() -> str:
    """One row a hook, in the order of the contract."""
    rows = [
        [f"[`{name}`]({name}.md)", kind, first_sentence(getattr(hookspecs, name).__doc__)]
        for name, kind in KINDS.items()
    ]
    return table(["hook", "kind", "what it is for"], rows)


def first_sentence(doc: str) -> str:
    """A hook's first sentence, without its kind."""
    whole = " ".join(inspect.cleandoc(doc).split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.:]) (?=[A-Z])", whole.partition(": ")[2])[0]
    return (sentence[:1].upper() + sentence[1:]).replace("``", "`")


def plugin(name: str) -> str:
    """The facts of one plugin: what it does, hooks, needs, columns, source."""
    made = plugin_class(name)
    active = declared(name).instance
    rows = [
        ["hooks", ", ".join(f"[`{h}`](../hooks/{h}.md)" for h in hooks_of(made))],
        ["paper", getattr(made, "paper", "")],
        ["needs", ", ".join(f"`{k}: {v}`" for k, v in getattr(active, "needs", {}).items())],
        ["provides", ", ".join(f"`{c}`" for c in getattr(active, "provides", ()))],
        ["consumes", ", ".join(f"`{c}`" for c in getattr(active, "consumes", ()))],
        ["source", f"`plugins/{made.__module__.replace('.', '/')}.py`"],
    ]
    told = [row for row in rows if row[1]]
    return f"{summary_of(made)}\n\n" + table(told[0], told[1:])


def plugins() -> str:
    """One row a built-in."""
    rows = [
        [
            f"[`{name}`]({name}.md)",
            ", ".join(f"[`{h}`](../hooks/{h}.md)" for h in hooks_of(plugin_class(name))),
            summary_of(plugin_class(name)),
        ]
        for name in built_ins()
    ]
    return table(["plugin", "hooks", "what it does"], rows)


def readme_plugins() -> str:
    """The built-ins by hook."""
    answers = {name: hooks_of(plugin_class(name)) for name in built_ins()}
    rows = [
        [
            f"[`{hook}`](docs/hooks/{hook}.md)",
            ", ".join(f"[`{n}`](docs/plugins/{n}.md)" for n in users),
        ]
        for hook in KINDS
        if (users := [name for name, hooks in answers.items() if hook in hooks])
    ]
    return table(["hook", "methods"], rows)


# Measurements

MEASURES = {  # column of docs/measured/WORLD.csv, where it has it -> (heading, format)
    "gold_sft_std": ("gold", "+.2f"),
    "peak_gold": ("peak gold", "+.2f"),
    "gold_wins": ("gold wins", ".2f"),
    "gap": ("gap", "+.2f"),
    "gap_latest": ("gap, latest RM", "+.2f"),
    "gap_training_std": ("gap (training std)", "+.2f"),
    "gap_latest_training_std": ("latest RM (training std)", "+.2f"),
    "mmd": ("MMD²", ".2f"),
    "kl": ("KL", ".2f"),
    "accuracy": ("RM accuracy", ".2f"),
    "seconds": ("CPU s", ".0f"),
}
WORLDS = ("toy", "quickstart")


def study(world: str) -> dict[str, list[dict[str, str]]]:
    """The runs of a study by variant, one a seed; empty where the world was not measured."""
    file = DOCS / "measured" / f"{world}.csv"
    runs: dict[str, list[dict[str, str]]] = {}
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                runs.setdefault(row["run"], []).append(row)
    return runs


def study_rows(runs: dict[str, list[dict[str, str]]]) -> str:
    """A table with a row a variant: mean ± standard deviation (ddof 1) over its seeds."""
    there = {key: MEASURES[key] for key in MEASURES if all(key in s[0] for s in runs.values())}
    head = ["run", *(heading for heading, _ in there.values())]
    rows = []
    for name, seeds in runs.items():
        cells = [spread([r[key] for r in seeds], form) for key, (_, form) in there.items()]
        rows.append([name, *cells])
    return table(head, rows)


def seed_count(runs: dict[str, list[dict[str, str]]]) -> str:
    """``5 seeds``, or how few and how many."""
    counts = sorted({len(seeds) for seeds in runs.values()})
    return f"{' to '.join(map(str, counts[:1] + counts[1:][-1:]))} seeds"


def spread(values: list[str], form: str) -> str:
    """Mean ± standard deviation on one line; an en dash where a run has no value."""
    if not all(values):
        return "–"
    numbers = [float(value) for value in values]
    mean = format(statistics.fmean(numbers), form)
    if len(numbers) == 1:
        return mean
    return f"{mean}&nbsp;±&nbsp;{statistics.stdev(numbers):{form.removeprefix('+')}}"


def ranking(world: str) -> str:
    """Every variant of a world's study, by falling final gold."""
    runs = study(world)
    if not runs:
        return "Not measured yet."

    def gold(name: str) -> float:
        return statistics.fmean(float(row["gold_sft_std"]) for row in runs[name])

    ranked = {name: runs[name] for name in sorted(runs, key=gold, reverse=True)}
    return f"Mean ± standard deviation over {seed_count(runs)}.\n\n{study_rows(ranked)}"


def measured(plugin: str) -> str:
    """The runs with a plugin, each world's below the runs that they are compared with."""
    parts = []
    for world in WORLDS:
        runs = study(world)
        own = [name for name, seeds in runs.items() if plugin in seeds[0]["methods"].split()]
        against = dict.fromkeys(runs[name][0]["against"] for name in own)
        shown = dict.fromkeys([*(name for name in against if name), *own])
        if shown:
            chosen = {name: runs[name] for name in shown}
            title = f"On `world: {world}`, mean ± std over {seed_count(chosen)}"
            parts.append(f"{title} ([all methods](../measured.md)):\n\n{study_rows(chosen)}")
        parts += [more for name in own if (more := own_metrics(plugin, runs[name]))]
    return "\n\n".join(parts) or "Not measured yet."


def own_metrics(plugin: str, seeds: list[dict[str, str]]) -> str:
    """What a plugin logged itself at the last evaluation of a variant's runs."""
    found = [json.loads(row["more"] or "{}") for row in seeds]
    keys = [key for key in found[0] if key.startswith(f"{plugin}/")]
    cells = [[f"`{k}`", spread([str(one.get(k, "")) for one in found], ".3f")] for k in keys]
    return table(["metric", "last evaluation"], cells) if cells else ""


def source(path: str, kind: str) -> str:
    """A file of the repository, whole."""
    text = (DOCS.parent / path).read_text(encoding="utf-8").strip()
    return f"```{kind}\n{text}\n```"


def _beside(name: str) -> types.ModuleType:
    """Another file of docs/, from wherever this one is run."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ARCHITECTURE = _beside("architecture")
MAKERS: dict[str, Callable[..., str]] = {
    **ARCHITECTURE.MAKERS,
    **_beside("mixing_tables").MAKERS,
    **_beside("reference").MAKERS,
    **_beside("stress_tables").MAKERS,
    "hook": hook,
    "hooks": hooks,
    "measured": measured,
    "plugin": plugin,
    "plugins": plugins,
    "ranking": ranking,
    "readme-plugins": readme_plugins,
    "run-file": run_file,
    "settings": settings,
    "source": source,
}

if __name__ == "__main__":
    main()
