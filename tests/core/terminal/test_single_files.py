"""Plugins of single files, as a person uses them: each from the command line, with a real file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from distributions import write_distribution
from ostinato.config.yaml_files import parsed
from ostinato.terminal.cli import app

CAP = '''\
"""Methods of mine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

import ostinato


@dataclass
class Bound:
    """What __future__'s annotations are looked up in is the module."""

    value: float


class Cap:
    """Cut rewards at a bound (nobody, 2026)."""

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        bound: float = Field(1.0, description="the highest reward")

    config: Config

    @ostinato.hookimpl
    def reward_transform(self, rewards, ctx):
        """min(score, bound)."""
        bound = Bound(self.config.bound).value
        ctx.log(**{"Cap/over": float((rewards.score > bound).float().mean())})
        return replace(rewards, score=rewards.score.clamp_max(bound))


class Empty:
    """Nothing."""


def function():
    """No class."""
'''
RUN = """\
world: toy
iterations: 1
plugins:
  - concat
  - ./my_methods.py:Cap
reward_model: {updates: 2, batch: 8}
prompts: {preference: 8, held_out: 4, evaluation: 4}
rl: {rollouts: 2, rollout_size: 8, minibatch: 8}
evaluation: {samples: 0}
"""


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with methods and a run file; the command is run from another one."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "my_methods.py").write_text(CAP)
    (home / "run.yaml").write_text(RUN)
    monkeypatch.chdir(elsewhere)
    return home


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """The one sentence with which a command is refused."""
    made = command(*arguments)
    assert made.exit_code == 2, made.output
    assert made.stderr.count("\n") == 1, made.stderr
    return made.stderr.strip()


def checked(home: Path, *sets: str) -> str:
    """The sentence with which ``check`` refuses the run file with these settings."""
    return refused("check", home / "run.yaml", *(f"--set={one}" for one in sets))


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without timings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def over(folder: Path) -> list[float]:
    return [row["Cap/over"] for row in rows(folder) if "Cap/over" in row]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = parsed((folder / "run.yaml").read_text())
    return found


# A run


@pytest.mark.slow
def test_a_file_stands_beside_installed_ones_and_is_kept_to(home: Path) -> None:
    """Run, with a setting, resumed, refused when the file changed, replayed when it is back."""
    out, again = home / "out", home / "again"
    made = command("run", home / "run.yaml", "--out", out, "--set=plugins.Cap.bound=-100")
    assert made.exit_code == 0, made.output
    assert "  reward_transform  Cap\n" in made.stdout
    assert over(out) == [1.0, 1.0]  # every reward is above the bound that --set gave
    actions = [row["actions"] for row in rows(out) if row["kind"] == "policy"]
    assert all(seen["Cap.reward_transform"] > 50 for seen in actions)
    mine = record(out)["plugins"][1]
    assert mine["name"] == "Cap"
    assert mine["file"] == str(home / "my_methods.py")
    assert len(mine["sha256"]) == 64
    assert mine["settings"] == {"bound": -100.0}
    assert f"{home}/my_methods.py" in (out / "report.html").read_text()

    text = (home / "my_methods.py").read_text()
    (home / "my_methods.py").write_text(text + "# another word\n")
    bound = "--set=plugins.Cap.bound=-100"
    said = refused("run", home / "run.yaml", "--out", out, bound)
    assert said == (
        f"{out}: holds a run of another config: the file of plugin 'Cap', {home}/my_methods.py, "
        "has changed; choose another folder"
    )
    assert refused("run", out / "run.yaml", "--out", again) == (
        f"{out}/run.yaml: plugin 'Cap': {home}/my_methods.py has changed since that run was made; "
        "restore it, or write a run file of your own"
    )

    (home / "my_methods.py").write_text(text)
    resumed = command("run", home / "run.yaml", "--out", out, bound)
    assert resumed.exit_code == 0, resumed.output
    assert "(goes on with the run there)" in resumed.stdout
    replayed = command("run", out / "run.yaml", "--out", again)
    assert replayed.exit_code == 0, replayed.output
    assert rows(again) == rows(out)
    assert {**record(again), "git": None} == {**record(out), "git": None}
    assert "warning" not in replayed.stdout


@pytest.mark.slow
def test_a_moved_project_goes_on(home: Path, tmp_path: Path) -> None:
    """The content decides, not where it lies."""
    assert command("run", home / "run.yaml", "--out", tmp_path / "out").exit_code == 0
    moved = shutil.move(home, tmp_path / "moved")
    made = command("run", Path(moved) / "run.yaml", "--out", tmp_path / "out")
    assert made.exit_code == 0, made.output
    assert "(goes on with the run there)" in made.stdout


# Its names


def test_the_path_is_from_the_run_file_and_with_set_from_where_one_stands(home: Path) -> None:
    assert command("check", home / "run.yaml").exit_code == 0
    here = home.parent / "elsewhere" / "my_methods.py"
    listed = "plugins=['./my_methods.py:Cap']"
    assert checked(home, listed) == f"{home}/run.yaml: plugin 'Cap': no file '{here}'"
    here.write_text(CAP)
    assert command("check", home / "run.yaml", "--set", listed).exit_code == 0
    assert command("check", "toy", "--set", "plugins=[my_methods.py:Cap]").exit_code == 0
    settings = "plugins=[concat, {../home/my_methods.py:Cap: {bound: 3}}]"
    assert command("check", "toy", "--set", settings).exit_code == 0


@pytest.mark.parametrize("name", ["json", "torch", "ostinato", "concat"])
def test_a_file_may_have_the_name_of_a_module(home: Path, name: str) -> None:
    (home / f"{name}.py").write_text(CAP)
    text = RUN.replace("my_methods", name)
    (home / "run.yaml").write_text(text)
    made = command("check", home / "run.yaml")
    assert made.exit_code == 0, made.output
    assert json.dumps({}) == "{}"


def test_a_file_sees_what_is_installed_and_not_its_neighbours(home: Path) -> None:
    (home / "neighbour.py").write_text("x = 1\n")
    (home / "my_methods.py").write_text("import torch\nimport neighbour\n")
    assert checked(home) == (
        f"plugin 'Cap' of {home}/my_methods.py cannot be imported: ModuleNotFoundError: No module "
        "named 'neighbour' (line 2)"
    )


def test_nothing_is_written_beside_the_file(home: Path) -> None:
    assert command("check", home / "run.yaml").exit_code == 0
    assert {p.name for p in home.iterdir()} == {"my_methods.py", "run.yaml"}


def test_two_saves_in_one_second_are_two_files(home: Path) -> None:
    """Of one length and, as far as Python's cache of bytecode goes, of one time."""
    assert command("check", home / "run.yaml", "--set=plugins.Cap.bound=2").exit_code == 0
    (home / "my_methods.py").write_text(CAP.replace("bound: float", "bOund: float"))
    assert "unknown key; did you mean 'bOund'?" in checked(home, "plugins.Cap.bound=2")


def test_two_classes_of_a_file_are_of_one_module(home: Path) -> None:
    more = "\n\nclass Sees:\n    needs = {'members': 1 if issubclass(Cap, object) else 2}\n"
    more += "    @ostinato.hookimpl\n    def observe(self, event):\n        assert Cap.seen\n"
    (home / "my_methods.py").write_text(CAP + more + "\n\nCap.seen = []\n")
    listed = f"plugins=[{home}/my_methods.py:Cap, {home}/my_methods.py:Sees]"
    made = command("check", home / "run.yaml", "--set", listed)
    assert made.exit_code == 0, made.output
    assert "observe           Sees" in made.stdout


# What is wrong, in a sentence


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "{home}/my_method.py:Cap",
            "{run}: plugin 'Cap': no file '{home}/my_method.py'; did you mean 'my_methods.py'?",
        ),
        (
            "{home}/my_methods.py:Cup",
            "plugin 'Cup' of {home}/my_methods.py cannot be imported: AttributeError: the file has "
            "no 'Cup'; did you mean 'Cap'?",
        ),
        (
            "{home}/my_methods.py:Empty",
            "plugin 'Empty' of {home}/my_methods.py: it has no hook method",
        ),
        (
            "{home}/my_methods.py:function",
            "plugin 'function' of {home}/my_methods.py: {home}/my_methods.py:function is a "
            "function, expected a class with hook methods",
        ),
        (
            "{home}/my_methods.py",
            "{run}: plugin '{home}/my_methods.py' should be a file and a class in it, such as "
            "./my_methods.py:MyMethod",
        ),
        (
            "{home}/my_methods:Cap",
            "{run}: plugin '{home}/my_methods:Cap' should be a file and a class in it, such as "
            "./my_methods.py:MyMethod",
        ),
        (
            "'{home}/my_methods.py:'",
            "{run}: plugin '{home}/my_methods.py:' should be a file and a class in it, such as "
            "./my_methods.py:MyMethod",
        ),
        ("'{home}/folder.py:Cap'", "{run}: plugin 'Cap': '{home}/folder.py' is no regular file, "),
        (
            r"'C:\Users\me\my_methods.py:Cap'",
            r"{run}: plugin 'Cap': no file '{here}/C:\Users\me\my_methods.py'",
        ),
        ("'{home}/{long}.py:Cap'", "{run}: plugin 'Cap': '{home}/{long}.py' cannot be read: File"),
        (r'"{home}/a\0b.py:Cap"', "{run}: plugin 'Cap': '{home}/a␀b.py' cannot be read: embedded"),
    ],
)
def test_a_wrong_entry_is_a_sentence(home: Path, entry: str, said: str) -> None:
    (home / "folder.py").mkdir()
    names = {"home": home, "run": home / "run.yaml", "long": 300 * "x"}
    names["here"] = home.parent / "elsewhere"

    def named(text: str) -> str:
        for name, value in names.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    assert checked(home, f"plugins=[{named(entry)}]").startswith(named(said))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Cap(:\n    pass\n", "SyntaxError: invalid syntax (my_methods.py, line 1)"),
        ("x = 1\n\ny = z\n", "NameError: name 'z' is not defined (line 3)"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", "ZeroDivisionError: division by zero (line 2)"),
        ("raise SystemExit(0)\n", "SystemExit: 0 (line 1)"),
        ("\0", "source code string cannot contain null bytes"),
        ("'\\xff'.encode('ascii')\n", "UnicodeEncodeError: "),
    ],
)
def test_a_file_that_does_not_run_is_a_sentence(home: Path, source: str, said: str) -> None:
    (home / "my_methods.py").write_text(source)
    found = checked(home)
    assert found.startswith(f"plugin 'Cap' of {home}/my_methods.py cannot be imported: ")
    assert said in found
    (home / "my_methods.py").write_text(CAP)  # mended, in the same process
    assert command("check", home / "run.yaml").exit_code == 0


def test_a_file_that_is_no_text(home: Path) -> None:
    (home / "my_methods.py").write_bytes(b"x = '\xff'\n")
    assert "cannot be imported: SyntaxError: " in checked(home)


def test_wrong_settings(home: Path) -> None:
    run = home / "run.yaml"
    assert checked(home, "plugins.Cap.bonud=3") == (
        f"{run}: plugins.Cap.bonud: unknown key; did you mean 'bound'?"
    )
    assert checked(home, "plugins.Cup.bound=3") == (
        "--set plugins.Cup.bound: the run lists no plugin 'Cup'; did you mean 'Cap'?"
    )


def test_two_of_one_name(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = home / "run.yaml"
    (home / "other.py").write_text(CAP.replace("Cut rewards", "Cut them"))
    assert checked(home, f"plugins=[{home}/my_methods.py:Cap, {home}/other.py:Cap]") == (
        f"{run}: plugins of {home}/my_methods.py and of {home}/other.py are both called 'Cap'; "
        "rename a class"
    )
    assert checked(
        home, f"plugins=[{home}/my_methods.py:Cap, {home}/../home/my_methods.py:Cap]"
    ) == (f"{run}: plugin 'Cap' is listed twice")
    (home / "other.py").write_text(CAP.replace("Cap", "ppo"))  # which is active as a default
    found = checked(home, f"plugins=[{home}/other.py:ppo]")
    assert found == (
        f"{run}: plugins of {home}/other.py and of ostinato 0.1.0 are both called 'ppo'; rename a "
        "class"
    )
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    write_distribution(site, "third", CAP, {"Cap": "Cap"})
    assert checked(home, f"plugins=[Cap, {home}/my_methods.py:Cap]") == (
        f"{run}: plugins of third 1.0 and of {home}/my_methods.py are both called 'Cap'; rename a "
        "class"
    )


# Its page


def test_its_page(home: Path) -> None:
    shown = command("plugins", "../home/my_methods.py:Cap")
    assert shown.exit_code == 0, shown.output
    for text in (f"Cap  {home}/my_methods.py", "reward_transform", "the highest reward"):
        assert text in shown.stdout
    (told,) = json.loads(command("plugins", f"{home}/my_methods.py:Cap", "--json").stdout)
    assert told["name"] == "Cap"
    assert told["group"] == "Reward"
    assert told["file"] == str(home / "my_methods.py")
    assert refused("plugins", "./none.py:Cap").startswith("plugins: plugin 'Cap': no file '")
