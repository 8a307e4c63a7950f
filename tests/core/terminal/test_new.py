"""``ostinato new`` writes distributions that are right as they are written, for every hook."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ostinato.config.errors import UserError
from ostinato.contract.hookspecs import KINDS
from ostinato.terminal.cli import app
from ostinato.terminal.new import imports, write

SEVERAL = ("combine_rm", "reward_transform", "evaluate", "policy_algorithm")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A distribution for each hook, and one for several."""
    folder = tmp_path_factory.mktemp("new")
    for hook in KINDS:
        write(f"my_{hook}", [hook], folder / hook)
    write("my-several", SEVERAL, folder / "several")
    return folder


def run(folder, *command):
    """What a program says, whose exit status is 0."""
    sources = os.pathsep.join(map(str, sorted(folder.glob("*/src"))))
    known = os.environ | {"PYTHONPATH": f"{sources}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=known, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_hook_has_a_template(written):
    for hook in KINDS:
        source = (written / hook / "src" / f"ostinato_my_{hook}" / "__init__.py").read_text()
        (made,) = [n for n in ast.parse(source).body if getattr(n, "name", "").startswith("My")]
        methods = [n for n in made.body if isinstance(n, ast.FunctionDef) and n.decorator_list]
        assert [m.name for m in methods] == [hook]
        assert all(ast.get_docstring(m) for m in methods)


def test_ruff_has_nothing_to_say(written):
    for folder in sorted(written.iterdir()):
        run(folder, "ruff", "check", "--no-cache", "--quiet")
        run(folder, "ruff", "format", "--check", "--no-cache", "--quiet")


@pytest.mark.slow
def test_mypy_has_nothing_to_say(written, tmp_path):
    sources = sorted(str(path) for path in written.glob("*/src"))
    config = written / "several" / "pyproject.toml"
    run(written, "mypy", f"--config-file={config}", f"--cache-dir={tmp_path}", *sources)


@pytest.mark.slow
def test_its_tests_pass(written, tmp_path):
    """All in one process, which imports torch once."""
    folders = [str(path) for path in sorted(written.glob("*/tests"))]
    config = written / "several" / "pyproject.toml"
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}", f"--config-file={config}"]
    said = run(written, "pytest", *options, *folders)
    assert len(folders) == len(KINDS) + 1
    assert re.search(r"^\d+ passed in ", said, re.M)


def test_the_package_names_its_plugin(written):
    project = tomllib.loads((written / "several" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "ostinato-my-several"
    points = project["entry-points"]["ostinato"]
    assert points == {"my_several": "ostinato_my_several:MySeveral"}
    readme = (written / "several" / "README.md").read_text()
    assert "`combine_rm`, `reward_transform`, `policy_algorithm`, `evaluate`" in readme
    assert "| `cost` | `0.1` | reward that each further token costs |" in readme


@pytest.mark.parametrize(
    ("name", "hooks", "said"),
    [
        (
            "Length",
            ["label"],
            "NAME: 'Length' is no name for a package; expected at most 40 lower-case",
        ),
        ("1st", ["label"], "NAME: '1st' is no name for a package"),
        ("class", ["label"], "NAME: 'class' is no name for a package"),
        ("ppo", ["label"], "NAME: 'ppo' is a plugin of ostinato already"),
        ("plugins", ["label"], "NAME: a package 'ostinato_plugins' is installed already"),
        ("mine", ["lable"], "--hook: 'lable' is not a hook of Ostinato; did you mean 'label'?"),
        ("mine", ["x"], "--hook: 'x' is not a hook of Ostinato; hooks are combine_data, "),
    ],
)
def test_a_wrong_name_is_one_sentence(name, hooks, said, tmp_path):
    with pytest.raises(UserError) as caught:
        write(name, hooks, tmp_path / "made")
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "made").exists()


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already; name another folder with --out"):
        write("mine", ["label"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["new", "length-cap", "--hook", "rm_loss"])
    assert done.exit_code == 0, done.output
    assert "cd ostinato-length-cap && pip install -e '.[test]' && pytest" in done.output
    assert Path("ostinato-length-cap/src/ostinato_length_cap/py.typed").is_file()
    done = CliRunner().invoke(app, ["new", "length-cap", "--hook", "rm_los"])
    assert done.exit_code == 2
    assert "did you mean 'rm_loss'?" in done.output


def test_imports_are_those_that_the_code_names():
    code = "def f(x: Tensor, reward: Context) -> Any:\n    return torch.stack([mine(reward), x])"
    assert imports(code, ["mine"]).splitlines() == [
        "from typing import Any",
        "",
        "import torch",
        "from ostinato import Context",
        "from torch import Tensor",
    ]
