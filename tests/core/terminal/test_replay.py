"""``ostinato run RUN/run.yaml``: a recorded run, again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import ostinato
from ostinato.config import reading
from ostinato.config.worlds import world_folder
from ostinato.config.yaml_files import dumped, parsed
from ostinato.terminal.cli import app

TINY = [
    "iterations=1",
    "seed=3",
    "plugins=[concat, {strength: {models: 1}}, {flip: {lowest: 0.25}}]",
    "reward_model.updates=2",
    "reward_model.batch=8",
    "prompts.preference=8",
    "prompts.held_out=4",
    "prompts.evaluation=4",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
]

LEAST = {"seed": 0, "iterations": 1}


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    made = command(*arguments)
    assert made.exit_code == 2, made.output
    assert made.stderr.count("\n") == 1, made.stderr
    return made.stderr.strip()


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "first-seed3"
    ostinato.run("toy", out, TINY)
    return out


@pytest.fixture(name="run")
def _run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, of which tests may damage the record."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def change(run: Path, **facts: Any) -> None:
    record = run / "run.yaml"
    record.write_text(dumped({**parsed(record.read_text()), **facts}))


def test_the_same_run_in_another_folder(run: Path) -> None:
    made = command("run", run / "run.yaml")
    assert made.exit_code == 0, made.output
    again = Path("runs") / "first-replay-seed3"
    assert f"results in        {again} (a new run)" in made.stdout
    assert "\n  changed " not in made.stdout
    assert "\n  warning " not in made.stdout
    assert rows(again) == rows(run)
    first, second = (parsed((folder / "run.yaml").read_text()) for folder in (run, again))
    assert {**first, "git": None} == {**second, "git": None}


def test_into_its_own_folder_it_goes_on(run: Path) -> None:
    made = command("run", run / "run.yaml", "--out", run)
    assert made.exit_code == 0, made.output
    assert "(goes on with the run there)" in made.stdout


def test_what_is_other_than_then_is_told(run: Path) -> None:
    facts = parsed((run / "run.yaml").read_text())
    facts["versions"]["torch"] = "2.0.1"
    facts["versions"]["gone"] = "1.0"
    facts["versions"]["ostinato"] = "0.0.9"
    (ppo,) = (plugin for plugin in facts["plugins"] if plugin["name"] == "ppo")
    ppo["settings"]["clip"] = 0.1  # a default that has changed
    change(run, **facts)
    made = command("check", run / "run.yaml", "--set", "rl.lr=0.5", "--set=iterations=2")
    assert made.exit_code == 0, made.output
    told = " ".join(made.stdout.split())
    assert "changed plugins.ppo.clip was 0.1, is 0.2; rl.lr was 0.001, is 0.5; iterations" in told
    assert "iterations was 1, is 2 warning" in told
    assert "warning that run was made with ostinato 0.0.9 (here 0.1.0), torch 2.0.1 (here " in told
    assert "gone" not in told


def test_the_world_may_be_installed_elsewhere_since(run: Path) -> None:
    """Paths into it are recorded as such, and found again."""
    text = (run / "run.yaml").read_text()
    assert str(world_folder("toy", "test")) not in text
    assert "model: '{world}/policy'" in text
    config = reading.load_config(run / "run.yaml")
    assert config.policy == reading.load_config("toy").policy


def test_a_template_with_a_column_called_world_is_left_as_it_is(run: Path) -> None:
    facts = parsed((run / "run.yaml").read_text())
    facts["config"]["prompts"]["template"] = "in {world}: {prompt}"
    change(run, **facts)
    assert reading.load_config(run / "run.yaml").prompts.template == "in {world}: {prompt}"


def test_names_are_not_taken_for_what_lies_in_the_run_folder(run: Path) -> None:
    facts = parsed((run / "run.yaml").read_text())
    facts["config"]["reward_model"]["model"] = "sft"
    change(run, **facts)
    assert (run / "sft").is_dir()
    assert reading.load_config(run / "run.yaml").reward_model.model == "sft"


def test_a_setting_of_a_plugin_may_change(run: Path) -> None:
    config = reading.load_config(run / "run.yaml", ["plugins.flip.lowest=0.5", "seed=4"])
    assert config.wanted_plugins[2] == ("flip", {"lowest": 0.5})
    assert config.seed == 4


def test_a_plugin_that_is_gone(run: Path) -> None:
    facts = parsed((run / "run.yaml").read_text())
    facts["config"]["plugins"] = ["concatt"]
    change(run, **facts)
    assert refused("check", run / "run.yaml") == (
        f"{run}/run.yaml: no plugin 'concatt' is installed; did you mean 'concat'?"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"format": 1}, "records a run of another edition of Ostinato"),
        ({"format": "2"}, "records a run of another edition of Ostinato"),
        ({"plugins": [{"name": "x", "hooks": []}]}, "is damaged at 'plugins.0.settings', so that"),
        ({"config": 3}, "is damaged at 'config', so that run cannot be replayed; restore it"),
        ({"plugins": None}, "is damaged at 'plugins', so that run cannot be replayed; restore it"),
        ({"plugins": [{"name": "ppo"}]}, "is damaged at 'plugins.0.hooks', so that run cannot"),
        ({"versions": {"torch": 2}}, "is damaged at 'versions.torch', so that run cannot"),
        ({"config": {}}, "is damaged at 'config.seed', so that run cannot be replayed"),
        ({"config": LEAST}, "policy: has neither model nor random, and no world supplies one"),
        (
            {"config": {**LEAST, "world": "mars"}},
            "world: no world 'mars' is installed; valid names are",
        ),
    ],
)
def test_a_damaged_record_is_a_sentence(run: Path, damage: dict[str, Any], said: str) -> None:
    change(run, **damage)
    made = command("check", run / "run.yaml")
    assert made.exit_code == 2
    assert made.stderr.startswith(f"{run}/run.yaml: {said}")
    assert "Traceback" not in made.stderr


def test_a_record_that_was_cut(run: Path) -> None:
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text[: len(text) // 2])
    assert refused("check", run / "run.yaml").startswith(f"{run}/run.yaml: ")
