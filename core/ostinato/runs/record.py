"""run.yaml: what a run writes down of itself, and how another one differs from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from subprocess import DEVNULL, SubprocessError, check_output
from typing import Any

from ostinato.config.reading import flat
from ostinato.config.records import FORMAT
from ostinato.config.sections import RunConfig
from ostinato.config.worlds import portable, world_folder
from ostinato.contract.plugins import Plugins

MAY_CHANGE = ("iterations", "backend", "checkpoint_every")
STACK = ("ostinato", "torch", "transformers", "accelerate", "datasets", "trl", "numpy")


def record(config: RunConfig, plugins: Plugins) -> dict[str, Any]:
    """What run.yaml says; paths into the world stand there wherever it is installed."""
    chosen = settled(config, plugins)
    if config.world is not None:
        chosen = portable(chosen, config._folder or world_folder(config.world, "run"))
    facts = {"owners": plugins.owners, "versions": stack_versions(), "git": git_state()}
    return {"format": FORMAT, **chosen, **facts}


def settled(config: RunConfig, plugins: Plugins) -> dict[str, Any]:
    """The config and the active plugins, with all settings."""
    active = [
        {"name": a.name, **a.found.record, "hooks": a.hooks, "settings": a.settings}
        for a in plugins.active
    ]
    return {"config": config.model_dump(mode="json"), "plugins": active}


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """What keeps a run from going on under another config, one difference each."""
    before, now = theirs["config"]["iterations"], mine["config"]["iterations"]
    fewer = [f"iterations was {before}, is {now}, and may only grow"] if now < before else []
    return changes(theirs, mine) + fewer


def changes(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """The decisive settings that differ, and the files."""
    old, new = decisive(theirs), decisive(mine)
    changed = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    was = {p["name"]: p for p in theirs["plugins"]}
    return changed + [
        f"the file of plugin '{p['name']}', {p.get('file') or was[p['name']]['file']}, has changed"
        for p in acting(mine)
        if was.get(p["name"], p).get("sha256") != p.get("sha256")
    ]


def decisive(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of run.yaml that must stay: not iterations, backend, nor plugins that only watch."""
    plugins = acting(record)
    config = {key: v for key, v in record["config"].items() if key not in MAY_CHANGE}
    config["plugins"] = {p["name"]: p["settings"] for p in plugins}
    config["order of plugins"] = [p["name"] for p in plugins]
    return flat(config)


def acting(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The plugins that have a part in the run's numbers."""
    return [p for p in record["plugins"] if p["hooks"] != ["observe"]]


def other_files(config: RunConfig, plugins: Plugins) -> Iterator[str]:
    """The files of plugins that are not what they were when a run, now replayed, was made."""
    was = {p["name"]: p for p in config._replayed["plugins"]} if config._replayed else {}
    for one in plugins.active:
        old, new = was.get(one.name, {}), one.found.record
        if "file" in new and old.get("file") == new["file"] and old.get("sha256") != new["sha256"]:
            yield (
                f"plugin '{one.name}': {new['file']} has changed since that run was made; restore "
                "it, or write a run file of your own"
            )


def since(config: RunConfig, plugins: Plugins) -> tuple[list[str], list[str]]:
    """Settings, and versions, that are not what they were when a run, now replayed, was made."""
    if config._replayed is None:
        return [], []
    now = settled(config, plugins)
    old, new = _versions(config._replayed), _versions({**now, "versions": stack_versions()})
    versions = [f"{n} {old[n]} (here {new[n]})" for n in old if new.get(n, old[n]) != old[n]]
    then = config._replayed["config"]["iterations"]
    fewer_or_more = [f"iterations was {then}, is {config.iterations}"]
    return changes(config._replayed, now) + fewer_or_more * (config.iterations != then), versions


def _versions(facts: Mapping[str, Any]) -> dict[str, str]:
    """Of the distributions of plugins, and of the stack."""
    of_plugins = {p.get("distribution", ""): p.get("version", "") for p in facts["plugins"]}
    return {**of_plugins, **facts["versions"]}


def stack_versions() -> dict[str, str]:
    found = {}
    for name in STACK:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_state() -> str | None:
    """Commit of the folder that the run was started in, with ``+`` if it had changes."""

    def git(*command: str) -> str:
        return check_output(["git", *command], stderr=DEVNULL, text=True, timeout=5).strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, SubprocessError):
        return None
