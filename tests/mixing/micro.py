"""A micro world: two whole iterations of any mixture in a second or two, and proof of who acted."""

from __future__ import annotations

import json
import runpy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ostinato
from contrib_path import distributions, installed
from mixing.completion import Mixing
from ostinato.config.errors import Pause
from ostinato.config.reading import load_config, merged
from ostinato.config.sections import RunConfig
from ostinato.contract.activation import Active, activate_one
from ostinato.contract.discovery import discover
from ostinato.contract.hookspecs import KINDS
from ostinato.contract.plugins import UNASKED, Plugins
from ostinato.engine.session import at_odds
from ostinato.testing import micro
from ostinato_worlds.toy import PROMPTS

WORLD: dict[str, Any] = {
    "world": "toy",
    "iterations": 2,
    "reward_model": {"updates": 2, "batch": 8, "warmup": 0},
    # of 32 pairs three are left where three methods select: enough for one that wants three prompts
    "prompts": {"preference": 32, "held_out": 4, "evaluation": 4},
    "generation": {"max_new_tokens": 10},
    "rl": {"rollouts": 2, "rollout_size": 8, "minibatch": 8, "epochs": 1},
    "evaluation": {"every": 2, "samples": 0},
}

# What a plugin needs to run here, or to do something on so few prompts; {folder} is a scratch one.
# Those of contrib/ stand in the tests of each distribution: see `cases`.
SETTINGS: dict[str, dict[str, Any]] = {
    "best_of_n": {"n": [2]},
    "brme": {"heads": 2},
    "critique": {  # the SFT policy reviews the prompt once more
        "principles": ["good"],
        "critique": None,
        "revision": "{response} {prompt}",
        "max_new_tokens": 24,
    },
    "function_reward": {"functions": ["{folder}/rules.py:length", "{folder}/rules.py:words"]},
    "flip": {"lowest": 0.25},  # some labels are flipped, whatever the votes say
    "judge_labels": {  # the SFT policy judges, in words that it knows
        "template": "{first} {second} :",
        "lead": "the soup is",
        "answers": [" good", " bad"],
    },
    "length_penalty": {"free": 4},
    "metarm": {"responses": 2},
    "orm": {"function": "{folder}/rules.py:right"},
    "prm": {"function": "{folder}/rules.py:steps", "separator": "the", "reduce": "mean"},
    "ptx": {"data": "{folder}/corpus.jsonl", "batch": 4},
    "rcfd": {"data": "{folder}/shown.jsonl"},
    "reward_fusion": {"models": ["{folder}/reward_model"]},
    "reward_heads": {"heads": 2},
    "soft_labels": {"on": "strongest", "share": 0.25},  # likewise some are softened
    "strength": {"models": 2},
    "swav": {"prototypes": 4},
}
# What it needs of the rest of the run file.
RUN: dict[str, dict[str, Any]] = {
    "k_wise": {"preferences": {"responses": 3}},
    "per_prompt_balance": {"preferences": {"responses": 3}},  # of two, each prompt has one pair
}
RULES = """
def length(completions):
    return [len(text) / 20 for text in completions]


def words(completions, **kwargs):
    return [len(set(text.split())) / 5 for text in completions]


def right(completions):
    return [float("not" not in text) for text in completions]


def steps(completions):
    return [["not" not in step for step in text.split("the")] for text in completions]
"""
# plugin.hook whose magnitude may be 0, and why.
MAY_BE_ZERO = {
    "advpo.wrap_reward": "it learns there, and reward_transform acts on it",
    "curriculum.reward_transform": "it learns there, and choose_prompts acts on it",
    "dapo.filter_rollout": "it drops groups of one reward, which there may not be",
    "take_last_rm.combine_rm": "the change against R~_k, which it takes as it is",
    "from_sft.init_policy": "the distance from the SFT policy, which it starts from",
}
# plugin.hook whose magnitude may be 0 in iteration 1, which has the SFT policy and one reward model
AT_FIRST = (".init_policy", ".combine_rm", "ocrm.refine_data")
# plugin.hook, and beside whom there may be nothing to do: docs/mixing.md says why
WITHOUT_EFFECT = {
    ".combine_rm": "take_first_data",
    "ocrm.refine_data": "take_last_data",
    "per_prompt_balance.refine_data": "thompson_duels",
    "pf_ppo.filter_rollout": "rejection_sampling",
}


def mixing() -> Mixing:
    """Every plugin of ours that is there, built-in or of contrib/, as it is set in this world."""
    ours = {"ostinato", *distributions()}
    with installed(), TemporaryDirectory() as name:
        found, folder = discover().items(), Path(name)
        names = [n for n, claims in found if any(c.distribution in ours for c in claims)]
        write_files(folder)
        (folder / "reward_model").mkdir()
        pool = {n: activate_one(n, settings_of(n, folder), "micro") for n in names}
    return Mixing(pool, refused)


def refused(whole: Sequence[Active], source: Mapping[str, Any] | None = None) -> Iterable[str]:
    """What `ostinato check` says of plugins in a run file that their declarations do not say.

    ``source`` is the run file's rest, with which they run in this world if left out.
    """
    owners = {hook: a.name for a in whole for hook in a.hooks if KINDS[hook] == "one"}
    text = json.dumps(source or merged(WORLD, sections_of(whole)))
    return at_odds(_config(text), Plugins(list(whole), owners))


@cache
def _config(source: str) -> RunConfig:
    return load_config(json.loads(source))


@cache
def cases() -> Mapping[str, Mapping[str, Any]]:
    """How each plugin of contrib/ is tried by its own tests, by name: settings, run, ..."""
    found: dict[str, Mapping[str, Any]] = {}
    with installed():
        for folder in distributions().values():
            file = folder / "tests" / "test_conformance.py"
            if file.is_file():
                known = runpy.run_path(str(file))["CASES"].items()
                found |= {micro.name_of(plugin): case for plugin, case in known}
    return found


def run_file(mixing: Mixing, listed: Sequence[str], folder: Path) -> dict[str, Any]:
    """The run file of a mixture."""
    sections = sections_of([mixing.pool[name] for name in listed])
    return merged(WORLD, {**sections, "plugins": [{n: settings_of(n, folder)} for n in listed]})


def sections_of(whole: Sequence[Active]) -> dict[str, Any]:
    """What plugins need of the rest of the run file."""
    made: dict[str, Any] = {}
    for name in (a.name for a in whole):
        made = merged(made, RUN.get(name) or cases().get(name, {}).get("run", {}))
    heads = max([getattr(a.instance, "heads", 1) for a in whole], default=1)
    members = max([a.needs.get("members", 1) for a in whole], default=1)
    return made if heads >= members else merged(made, {"reward_model": {"members": members}})


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """A plugin's settings; ``folder`` is where the files lie that they name."""
    known = SETTINGS.get(name) or cases().get(name, {}).get("settings", {})
    settings: dict[str, Any] = _placed(known, folder)
    return settings


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {k: _placed(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_placed(v, folder) for v in value]
    return value.replace("{folder}", str(folder)) if isinstance(value, str) else value


def furnish(folder: Path) -> None:
    """Put there what the settings name: files, and a reward model of another run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder)
    made = ostinato.run(WORLD | {"iterations": 1, "seed": 1, "plugins": []}, folder / "furniture")
    (made.directory / "iteration-1" / "reward_model").rename(folder / "reward_model")


def write_files(folder: Path) -> None:
    """Rules, a corpus, and a demonstration for each prompt."""
    (folder / "rules.py").write_text(RULES, encoding="utf-8")
    prompts = [json.loads(row)["prompt"] for row in PROMPTS.read_text("utf-8").splitlines()]
    shown = ({"prompt": prompt, "completion": "it was good ."} for prompt in prompts)
    for name, rows in (("corpus", [{"text": p} for p in prompts[:20]]), ("shown", shown)):
        lines = "\n".join(map(json.dumps, rows))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def complaints(mixing: Mixing, listed: Sequence[str], folder: Path, out: Path) -> list[str]:
    """Run a mixture into ``out``; whom the run does not prove to have acted, and how.

    ``folder`` is furnished: see :func:`furnish`.
    """
    source = run_file(mixing, listed, folder)
    for _ in range(1 + WORLD["iterations"]):
        try:
            with installed():
                run = ostinato.run(source, out)
        except Pause:
            answer_people(out)
        else:
            return proof(mixing, listed, run.metrics)
    return ["the run pauses, though all its labels have come back"]


def answer_people(run: Path) -> None:
    """Do what a person does in a pause: write a label into each line that waits for one.

    A kill leaves the whole file or none of it, as a person's editor does.
    """
    for file in (run / "labels").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["label"] = "first" if len(row["first"]) >= len(row["second"]) else "second"
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        file.with_suffix(".new").write_text(lines, encoding="utf-8")
        file.with_suffix(".new").replace(file)


def proof(mixing: Mixing, listed: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with the ``actions`` of a run: each plugin acts in each iteration, in each of
    its hooks, and nobody acts who is neither listed nor the default of a hook."""
    seen: dict[tuple[str, int], float] = defaultdict(float)
    for row in rows:
        for key, magnitude in row.get("actions", {}).items():
            place = key, row["iteration"]
            seen[place] = max(seen[place], abs(magnitude))
    whole = mixing.completed(listed)[0]
    owners = {hook: a.name for a in whole for hook in a.hooks if KINDS[hook] == "one"}
    idle = {"observe"} | (set() if Plugins(whole, owners).learn_rewards else UNASKED)
    hooks = {f"{a.name}.{hook}" for a in whole for hook in a.hooks if hook not in idle}
    found = [
        f"{key} acted, and is neither listed nor a default" for key, _ in seen if key not in hooks
    ]
    for key in sorted(hooks):
        for k in range(1, WORLD["iterations"] + 1):
            if (key, k) not in seen:
                found.append(f"{key} left no action in iteration {k}")
            elif seen[key, k] == 0 and not excused(key, k, {a.name for a in whole}):
                found.append(f"{key} did nothing in iteration {k}")
    ends = [row for row in rows if row["kind"] == "iteration"]
    if len(ends) != WORLD["iterations"]:
        found.append(f"the run has {len(ends)} finished iterations")
    return found


def excused(key: str, iteration: int, names: set[str]) -> bool:
    """Whether a hook may have nothing to do."""
    idle = any(key.endswith(hook) and other in names for hook, other in WITHOUT_EFFECT.items())
    return key in MAY_BE_ZERO or idle or (iteration == 1 and key.endswith(AT_FIRST))
