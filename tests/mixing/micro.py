"""A micro world: two whole iterations of any mixture in a second or two, and proof of who acted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ostinato
from mixing.completion import Mixing
from ostinato.config.errors import Pause
from ostinato.config.reading import merged
from ostinato.contract.discovery import discover
from ostinato.contract.hookspecs import KINDS
from ostinato.contract.plugins import UNASKED, Plugins
from ostinato_worlds.toy import PROMPTS

WORLD: dict[str, Any] = {
    "world": "toy",
    "iterations": 2,
    "reward_model": {"updates": 2, "batch": 8, "warmup": 0},
    "prompts": {"preference": 8, "held_out": 4, "evaluation": 4},
    "generation": {"max_new_tokens": 10},
    "rl": {"rollouts": 2, "rollout_size": 8, "minibatch": 8, "epochs": 1},
    "evaluation": {"every": 2, "samples": 0},
}

# What a plugin needs to run here, or to do something on eight prompts; {folder} is a scratch one.
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
    "metarm": {"responses": 2},
    "orm": {"function": "{folder}/rules.py:right"},
    "prm": {"function": "{folder}/rules.py:steps", "separator": "the", "reduce": "mean"},
    "ptx": {"data": "{folder}/corpus.jsonl", "batch": 4},
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
    "take_last_rm.combine_rm": "the change against R~_k, which it takes as it is",
    "from_sft.init_policy": "the distance from the SFT policy, which it starts from",
}


def mixing() -> Mixing:
    """The built-in plugins."""
    found = discover().items()
    return Mixing(name for name, claims in found if any(c.built_in for c in claims))


def run_file(mixing: Mixing, listed: Sequence[str], folder: Path) -> dict[str, Any]:
    """The run file of a mixture."""
    plugins: list[Any] = [{n: settings_of(n, folder)} if n in SETTINGS else n for n in listed]
    source = merged(WORLD, {"plugins": plugins})
    for name in listed:
        source = merged(source, RUN.get(name, {}))
    whole = [mixing.pool[name] for name in listed]
    heads = max([getattr(a.instance, "heads", 1) for a in whole], default=1)
    members = max([a.needs.get("members", 1) for a in whole], default=1)
    return merged(source, {"reward_model": {"members": 1 if heads >= members else members}})


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """A plugin's settings; ``folder`` is where the files lie that they name."""
    settings: dict[str, Any] = _placed(SETTINGS.get(name, {}), folder)
    return settings


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {k: _placed(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_placed(v, folder) for v in value]
    return value.replace("{folder}", str(folder)) if isinstance(value, str) else value


def furnish(folder: Path) -> None:
    """Put there what the settings name: a corpus, rules, and a reward model of another run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.py").write_text(RULES, encoding="utf-8")
    made = ostinato.run(WORLD | {"iterations": 1, "seed": 1, "plugins": []}, folder / "furniture")
    (made.directory / "iteration-1" / "reward_model").rename(folder / "reward_model")
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[:20]
    lines = (json.dumps({"text": json.loads(line)["prompt"]}) for line in prompts)
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")


def complaints(mixing: Mixing, listed: Sequence[str], folder: Path, out: Path) -> list[str]:
    """Run a mixture into ``out``; whom the run does not prove to have acted, and how.

    ``folder`` is furnished: see :func:`furnish`.
    """
    source = run_file(mixing, listed, folder)
    for _ in range(1 + WORLD["iterations"]):
        try:
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
            # only the SFT policy and one reward model are there
            first_start = k == 1 and key.endswith((".init_policy", ".combine_rm"))
            if (key, k) not in seen:
                found.append(f"{key} left no action in iteration {k}")
            elif seen[key, k] == 0 and key not in MAY_BE_ZERO and not first_start:
                found.append(f"{key} did nothing in iteration {k}")
    ends = [row for row in rows if row["kind"] == "iteration"]
    if len(ends) != WORLD["iterations"]:
        found.append(f"the run has {len(ends)} finished iterations")
    return found
