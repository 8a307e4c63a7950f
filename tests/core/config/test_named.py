"""What a run file names in modules and in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostinato import load_config
from ostinato.config.errors import UserError
from ostinato.config.named import InFile, beside, load_named

LEAST = {
    "policy": {"random": {"model_type": "gpt2"}},
    "reward_model": {"random": {"model_type": "gpt2"}},
    "prompts": {"data": "p.jsonl"},
}


def refused(path: str) -> str:
    with pytest.raises(UserError) as caught:
        load_named(path, "here")
    return str(caught.value)


def test_a_module_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("x = 3\n")
    assert load_named("math:pi", "here") == pytest.approx(3.14159, abs=1e-5)
    assert load_named("mine.py:x", "here") == 3
    assert load_named(f"{tmp_path}/mine.py:x", "here") == 3


def test_what_is_wrong_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def score():\n    pass\n\n\nlist = [1]\n")
    assert refused("math.pi") == "here: 'math.pi' should be module:name or file.py:name"
    assert refused("mien.py:x") == (f"here: no file '{tmp_path}/mien.py'; did you mean 'mine.py'?")
    assert refused("mine.py:scroe") == (
        "here: 'mine.py:scroe' cannot be imported: AttributeError: the file has no 'scroe'; did "
        "you mean 'score'?"
    )
    assert refused("no_such_module:x").endswith("No module named 'no_such_module'")


def test_one_content_is_run_once_and_another_anew(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("made = object()\n")
    first = InFile.read(f"{file}:made", "here")
    again = InFile.read(f"{file}:made", "here")
    assert first.load() is again.load()
    file.write_text("made = 'more'\n")
    assert InFile.read(f"{file}:made", "here").load() == "more"
    assert first.load() is again.load()
    assert first.sha256 != InFile.read(f"{file}:made", "here").sha256


def test_only_files_have_a_place(tmp_path: Path) -> None:
    assert beside("module:name", tmp_path) == "module:name"
    assert beside("concat", tmp_path) == "concat"
    assert beside("./mine.py:f", tmp_path) == f"{tmp_path.resolve()}/mine.py:f"
    assert beside("/else/mine.py:f", tmp_path) == "/else/mine.py:f"
    assert beside("~/mine.py:f", tmp_path) == f"{Path.home().resolve()}/mine.py:f"


def test_functions_in_settings_are_relative_to_the_run_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = "world: toy\ngold: {model: null, function: 'mine.py:gold'}\n"
    text += "plugins: [{any: {functions: [./mine.py:f, 'package.module:g'], note: 'mine.py:f'}}]\n"
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(tmp_path / "run.yaml")
    assert config.gold is not None
    assert config.gold.function == f"{tmp_path}/mine.py:gold"
    ((_, settings),) = config.wanted_plugins
    assert settings["functions"] == [f"{tmp_path}/mine.py:f", "package.module:g"]
    assert settings["note"] == "mine.py:f"
    config = load_config({**LEAST, "gold": {"function": "mine.py:gold"}})
    assert config.gold is not None
    assert config.gold.function == f"{tmp_path}/elsewhere/mine.py:gold"


def test_what_was_given_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {**LEAST, "gold": {"function": "mine.py:gold"}, "plugins": ["./mine.py:Cap"]}
    config = load_config(given, ["plugins.Cap.bound=3"])
    assert config.plugins == [{f"{tmp_path}/mine.py:Cap": {"bound": 3}}]
    assert given["gold"] == {"function": "mine.py:gold"}
    assert given["plugins"] == ["./mine.py:Cap"]
