"""The run file: paths, overrides, worlds, and every error at once in one sentence each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from distributions import write_distribution
from ostinato.config.errors import UserError
from ostinato.config.reading import load_config, merged
from ostinato.config.sections import RunConfig, seconds

RANDOM = {"random": {"model_type": "gpt_neox"}}
LEAST: dict[str, Any] = {"policy": RANDOM, "reward_model": RANDOM, "prompts": {"data": "p.jsonl"}}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a run file."""

    def made(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return made


def complaints(source: Any, *overrides: str) -> list[str]:
    """What loading says, a line each."""
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    return str(caught.value).splitlines()


def test_numbers_as_people_write_them(write: Write) -> None:
    path = write(
        """
        world: toy
        kl: {coefficient: 1e-4}
        rl: {lr: 3E-06, lr_final: 0, eps: .5e-5, betas: [9e-1, 0.99]}
        reward_model: {lr: 1e+0, tokenizer: "1e5"}
        """
    )
    config = load_config(path)
    assert config.kl.coefficient == 1e-4
    assert (config.rl.lr, config.rl.lr_final, config.rl.eps) == (3e-6, 0.0, 5e-6)
    assert config.rl.betas == (0.9, 0.99)
    assert config.reward_model.lr == 1.0
    assert config.reward_model.tokenizer == "1e5"  # quoted: it is text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: true", "seed: expected a number, got true"),
        ("checkpoint_every: true", "checkpoint_every: expected a number, got true"),
        ("rl: {lr: False}", "rl.lr: expected a number, got false"),
        ("rl: {rollouts: on}", "rl.rollouts: input should be a valid integer, got 'on'"),
        ("rl: {betas: [false, 0.99]}", "rl.betas: expected a number, got [false, 0.99]"),
        ("prompts: {shares: {rl: true}}", "prompts.shares.rl: expected a number, got true"),
    ],
)
def test_a_truth_value_is_no_number(write: Write, text: str, said: str) -> None:
    path = write(f"world: toy\n{text}\n")
    assert complaints(path) == [f"{path}: {said}"]


def test_truth_values_are_taken_where_they_belong(write: Write) -> None:
    assert load_config(write("world: toy\nprompts: {fresh: yes}")).prompts.fresh is True


def test_on_is_a_word(write: Write) -> None:
    path = write("world: toy\nplugins: [strength, {soft_labels: {on: strongest}}]\n")
    entry = {"soft_labels": {"on": "strongest"}}
    assert load_config(path).plugins == ["strength", entry]
    set_here = load_config("toy", ["plugins=[strength, soft_labels]", "plugins.soft_labels.on=on"])
    assert set_here.plugins[1] == {"soft_labels": {"on": "on"}}
    assert complaints(write("world: toy\nrl: {on: 1, on: 2}\n"))[0].endswith("stands twice")


def test_folders_that_a_plugin_lists_are_relative_to_the_run_file(write: Write) -> None:
    path = write("world: toy\nplugins: [{any: {models: [./a, here, org/name]}}]\n")
    (path.parent / "here").mkdir()
    found = load_config(path).plugins[0]["any"]["models"]  # type: ignore[index]
    assert found == [str(path.parent / "a"), str(path.parent / "here"), "org/name"]


def test_a_world_lies_under_the_run_file_and_the_overrides_above_it(write: Write) -> None:
    plain = load_config("toy")
    assert Path(plain.prompts.data).is_file()
    assert Path(plain.policy.model or "").is_dir()
    assert "{world}" not in str(plain.model_dump())
    path = write("{world: toy, rl: {rollouts: 7, epochs: 3}, plugins: [concat]}")
    config = load_config(path, ["rl.epochs=1", "kl.coefficient=1e-4"])
    assert (config.rl.rollouts, config.rl.epochs, config.rl.minibatch) == (7, 1, 64)
    assert config.kl.coefficient == 1e-4
    assert config.plugins == ["concat"]
    assert load_config("toy") == plain  # nothing was changed on the way
    assert load_config(LEAST, ["world=toy", "rl.rollouts=5"]).prompts.data == "p.jsonl"


def test_merging_goes_mapping_by_mapping_and_replaces_lists() -> None:
    below = {"a": {"b": 1, "c": 2}, "l": [1, 2], "x": {"y": 1}}
    above = {"a": {"b": 3}, "l": [4], "x": None, "new": {"z": 0}}
    assert merged(below, above) == {
        "a": {"b": 3, "c": 2},
        "l": [4],
        "x": None,
        "new": {"z": 0},
    }
    assert below["a"] == {"b": 1, "c": 2}


def test_settings_of_listed_plugins_by_override() -> None:
    config = load_config(
        {**LEAST, "plugins": ["concat", "strength", {"flip": {"threshold": 0.1}}]},
        ["plugins.strength.models=3", "plugins.flip.lowest=0.2", "plugins.strength.epochs=2e0"],
    )
    assert config.wanted_plugins == [
        ("concat", {}),
        ("strength", {"models": 3, "epochs": 2.0}),
        ("flip", {"threshold": 0.1, "lowest": 0.2}),
    ]
    config = load_config(
        LEAST, ["plugins.flip.threshold=1", "plugins=[concat, {flip: {lowest: 1e-1}}, strength]"]
    )
    assert config.wanted_plugins[1] == ("flip", {"lowest": 0.1, "threshold": 1})
    assert complaints({**LEAST, "plugins": ["strength"]}, "plugins.strenght.models=3") == [
        "--set plugins.strenght.models: the run lists no plugin 'strenght'; "
        "did you mean 'strength'?"
    ]


@pytest.mark.parametrize("text", ["rl.rollouts", "=3", "rl..rollouts=3", ".rl=3"])
def test_an_override_that_is_none(text: str) -> None:
    assert complaints("toy", text) == [f"--set {text}: expected key=value, such as rl.rollouts=10"]


def test_an_override_into_a_list_that_is_none() -> None:
    said = complaints({**LEAST, "plugins": [3]}, "plugins.flip.threshold=3")
    assert said == ["run: plugins: 3 should be a name, or one name with its settings"]


def test_an_override_that_is_no_yaml() -> None:
    assert complaints("toy", "plugins=[a") == ["--set plugins=[a: the value is not valid YAML"]


def test_paths_are_relative_to_the_run_file(write: Write, monkeypatch: Any) -> None:
    path = write(
        """
        policy: {model: models/policy}
        reward_model: {model: org/name, tokenizer: ./missing}
        gold: {model: ~/gold}
        prompts: {data: prompts.jsonl}
        sft: {data: ../elsewhere.jsonl}
        """
    )
    folder = path.parent
    (folder / "models" / "policy").mkdir(parents=True)
    (folder / "prompts.jsonl").touch()
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")
    monkeypatch.setenv("HOME", str(folder))
    config = load_config("../run.yaml")
    assert config.policy.model == str(folder / "models" / "policy")
    assert config.reward_model.model == "org/name"  # a hub name: nothing lies there
    assert config.reward_model.tokenizer == str(folder / "missing")
    assert config.prompts.data == str(folder / "prompts.jsonl")
    assert config.gold is not None
    assert config.gold.model == str(folder / "gold")
    assert config.sft is not None
    assert config.sft.data == str(folder.parent / "elsewhere.jsonl")


def test_paths_in_the_settings_of_plugins_are_relative_to_the_run_file_too(write: Write) -> None:
    path = write(
        """
        world: toy
        plugins: [flip, {one: {data: texts.jsonl, model: org/name, mode: texts.jsonl}}, {two: null}]
        """
    )
    (path.parent / "texts.jsonl").touch()
    _, (name, settings), two = load_config(path).wanted_plugins
    here = str(path.parent / "texts.jsonl")
    assert (name, two) == ("one", ("two", {}))
    assert settings == {"data": here, "model": "org/name", "mode": "texts.jsonl"}


def test_so_are_paths_in_a_section_of_their_settings(write: Write) -> None:
    path = write(
        "{world: toy, plugins: [{one: {against: ./run, judge: {model: ~/lm, lead: ./run}}}]}"
    )
    ((_, settings),) = load_config(path).wanted_plugins
    home = str((Path.home() / "lm").resolve())
    judge = {"model": home, "lead": "./run"}
    assert settings == {"against": str(path.parent / "run"), "judge": judge}


def test_the_folder_of_the_world_is_known_to_the_settings_of_plugins() -> None:
    changes = ["plugins=[{one: {data: '{world}/prompts.jsonl'}}]", "plugins.one.other='{world}/x'"]
    ((_, settings),) = load_config("toy", changes).wanted_plugins
    prompts = load_config("toy").prompts.data
    assert settings == {"data": prompts, "other": prompts.replace("prompts.jsonl", "x")}


MALFORMED = {
    "unknown section": ({"rll": {}}, ["run: rll: unknown key; did you mean 'rl'?"]),
    "unknown key": (
        {"rl": {"rollout": 3}},
        ["run: rl.rollout: unknown key; did you mean 'rollouts'?"],
    ),
    "unknown nested key": (
        {"rl": {"unfinished": {"mood": "replace"}}},
        ["run: rl.unfinished.mood: unknown key; did you mean 'mode'?"],
    ),
    "unknown key of an optional section": (
        {"gold": {"function": "a:b", "bach": 3}},
        ["run: gold.bach: unknown key; did you mean 'batch'?"],
    ),
    "wrong type": (
        {"seed": "many"},
        ["run: seed: input should be a valid integer, got 'many'"],
    ),
    "out of range": (
        {"iterations": 0},
        ["run: iterations: input should be greater than or equal to 1, got 0"],
    ),
    "not a number": ({"kl": {"coefficient": float("nan")}}, ["run: kl.coefficient: "]),
    "no choice": (
        {"rl": {"schedule": "cos"}},
        ["run: rl.schedule: input should be 'cosine', 'linear' or 'constant', got 'cos'"],
    ),
    "a section that is none": ({"rl": 3}, ["run: rl: expected a mapping, got 3"]),
    "no multiple": (
        {"rl": {"rollout_size": 10, "minibatch": 4}},
        ["run: rl: rollout_size 10 is no multiple of minibatch 4"],
    ),
    "epochs and updates": (
        {"reward_model": {**RANDOM, "epochs": 1, "updates": 3}},
        ["run: reward_model: give epochs or updates, not both"],
    ),
    "shares": (
        {"prompts": {"data": "x", "shares": {"rl": 0.9}}},
        ["run: prompts.shares: the shares add up to 1.5, expected 1"],
    ),
    "restricted sampling": (
        {"generation": {"top_p": 0.9}},
        ["run: generation.top_p: unknown key; did you mean 'preference_top_p'?"],
    ),
    "no gold": ({"gold": {}}, ["run: gold: give exactly one of model"]),
    "random without a type": (
        {"policy": {"random": {"hidden_size": 3}}},
        ["run: policy: random needs a model_type, such as gpt_neox"],
    ),
    "plugins as text": ({"plugins": "concat"}, ["run: plugins: expected a list, got 'concat'"]),
    "a plugin that is a number": (
        {"plugins": [3]},
        ["run: plugins: 3 should be a name, or one name with its settings"],
    ),
    "two plugins in one entry": (
        {"plugins": [{"concat": None, "ppo": None}]},
        ["run: plugins: {'concat': None, 'ppo': None} should be a name, or one name"],
    ),
    "settings that are none": (
        {"plugins": [{"ppo": 0.2}]},
        ["run: plugins: {'ppo': 0.2}: settings of a plugin should be a mapping"],
    ),
    "everything at once": (
        {"seed": -1, "policy": {}, "prompts": {}, "rl": {"lrr": 1}, "sft": {"epochs": 0}},
        [
            "run: seed: input should be greater than or equal to 0, got -1",
            "run: policy: has neither model nor random, and no world supplies one",
            "run: prompts.data: is missing",
            "run: rl.lrr: unknown key; did you mean 'lr'?",
            "run: sft.data: is missing",
            "run: sft.epochs: input should be greater than 0, got 0",
        ],
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_run_is_a_sentence_an_error(fault: str) -> None:
    settings, expected = MALFORMED[fault]
    said = complaints({**LEAST, **settings})
    assert len(said) == len(expected)
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(start)


def test_sections_that_are_left_out_are_missed_with_all_else() -> None:
    assert complaints({"sed": 0}) == [
        "run: policy: has neither model nor random, and no world supplies one",
        "run: prompts.data: is missing",
        "run: sed: unknown key; did you mean 'seed'?",
    ]


FILES = {
    "no YAML": ("rl: {rollouts: 3", "not valid YAML at line "),
    "a key that stands twice": (
        "rl: {lr: 1}\nseed: 2\nrl: {epochs: 1}\n",
        "not valid YAML at line 3: key 'rl' stands twice",
    ),
    "a list": ("- rl\n", "expected a mapping of settings, got a list"),
    "nothing": ("", "expected a mapping of settings, got nothing"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_no_run_file(fault: str, write: Write) -> None:
    text, expected = FILES[fault]
    (said,) = complaints(write(text))
    assert said.startswith(f"{write(text)}: {expected}")


def test_a_file_that_is_not_there(write: Write) -> None:
    path = write("seed: 0")
    (said,) = complaints(path.with_name("ran.yaml"))
    assert said == f"{path.with_name('ran.yaml')}: no such run file; did you mean 'run.yaml'?"
    assert complaints("quickstrat") == ["quickstrat: no such run file; did you mean 'quickstart'?"]
    assert "is a folder" in complaints(path.parent)[0]
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not text in UTF-8" in complaints(path)[0]


def test_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaints({"world": "tooy"}) == [
        "run: world: no world 'tooy' is installed; did you mean 'toy'?"
    ]
    assert "run: world: input should be a valid string, got 3" in complaints({"world": 3})
    for name in ("earth", "mars"):
        write_distribution(
            tmp_path, f"{name}_pack", "", {"planet": "", name: ""}, "ostinato.worlds"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    said = complaints({"world": "planet"})[0]
    assert said.startswith("run: world 'planet' is claimed by ")
    assert "earth_pack" in said
    assert "mars_pack" in said
    assert complaints({"world": "earth"})[0].startswith(
        f"{tmp_path / 'world.yaml'}: no such run file"
    )
    (tmp_path / "mars_pack.py").unlink()
    assert complaints({"world": "mars"}) == ["run: world: 'mars_pack' of 'mars' cannot be found"]
    (tmp_path / "world.yaml").write_text(
        "policy: {model: '{world}/p'}\nreward_model: {random: {model_type: gpt2}}\n"
        "prompts: {data: 'a {world} {x}'}\nplugins: [{flip: {note: '{world}'}}]\n"
    )
    config = load_config({"world": "earth"})
    assert config.policy.model == f"{tmp_path}/p"
    assert config.prompts.data == f"a {tmp_path} {{x}}"
    assert config.wanted_plugins == [("flip", {"note": str(tmp_path)})]


def test_a_folder_does_not_hide_a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    assert load_config("toy").world == "toy"
    (tmp_path / "sums").write_text("world: toy\nseed: 7\n")
    assert load_config("sums").seed == 7


def test_a_config_survives_its_record() -> None:
    config = load_config(
        "toy", ["rl.lr=1e-7", "rl.betas=[0.1, 0.2]", "plugins=[{flip: {a: 1e-9}}]"]
    )
    dumped = config.model_dump(mode="json")
    assert RunConfig.model_validate(dumped).model_dump() == config.model_dump()


def test_reading_a_run_file_imports_no_torch() -> None:
    program = (
        "import sys, ostinato.config.reading, ostinato.contract.plugins\n"
        "ostinato.config.reading.load_config('toy', ['plugins=[concat]'])\n"
        "try: ostinato.config.reading.load_config('toy', ['seed=x'])\n"
        "except ostinato.UserError: pass\n"
        "ostinato.contract.discovery.discover(), ostinato.contract.discovery.default_owners()\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("90 s", 90), ("5 min", 300), ("1 h", 3600), ("1.5h", 5400), (" 2 min ", 120)],
)
def test_a_time_between_checkpoints(given: str, expected: float) -> None:
    assert load_config("toy", [f"checkpoint_every='{given}'"]).checkpoint_every == given
    assert seconds(given) == expected


@pytest.mark.parametrize("given", [0, -1, 2.5, "'0 s'", "'5'", "5 mins", "min", "-5 min", "[1]"])
def test_what_is_no_number_of_rollouts_and_no_time(given: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_config("toy", [f"checkpoint_every={given}"])
    said = "checkpoint_every: expected a number of rollouts, such as 4, or a time, such as '5 min'"
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
