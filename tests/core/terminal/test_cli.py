"""The command line: what it prints, where it writes, and how it leaves."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from distributions import write_distribution
from ostinato.config.yaml_files import parsed
from ostinato.terminal.cli import app

SMALL = {
    "iterations": 1,
    "reward_model.updates": 2,
    "prompts.preference": 16,
    "prompts.held_out": 4,
    "prompts.evaluation": 8,
    "rl.rollouts": 2,
    "rl.rollout_size": 8,
    "rl.minibatch": 8,
    "evaluation.every": 1,
    "backend.threads": 1,
}
Install = Callable[[str], None]


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def small(*arguments: str, **settings: Any) -> Result:
    sets = [f"--set={key}={value}" for key, value in {**SMALL, **settings}.items()]
    return command("run", "toy", *arguments, *sets)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a plugin ``third`` of a package ``third_party`` whose class body is given."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(body: str) -> None:
        source = f"from ostinato import Pause, hookimpl\n\n\nclass Third:\n{body}"
        write_distribution(site, "third_party", source, {"third": "Third"})

    yield install
    sys.modules.pop("third_party", None)


def python(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source, *arguments], capture_output=True, text=True, timeout=120
    )


WITHOUT_TORCH = """
import sys
from ostinato.terminal.cli import app
try:
    app(sys.argv[1:], prog_name="ostinato")
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    made = python(WITHOUT_TORCH, *arguments)
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""


def test_help_is_quick() -> None:
    spent = []
    for _ in range(3):  # processor time, so that a busy machine does not matter
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(WITHOUT_TORCH, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.4


@pytest.mark.parametrize("name", ["run", "check"])
def test_an_error_of_the_file_needs_no_torch(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("world: toy\niteration: 3\n")
    made = python(WITHOUT_TORCH, name, str(file))
    assert made.returncode == 2
    assert made.stderr == f"{file}: iteration: unknown key; did you mean 'iterations'?\n"


BESIDE = """\
import torch


class Length:
    def score(self, prompts, responses, finished):
        return torch.tensor([float(len(response)) for response in responses])


gold = Length
"""


@pytest.mark.slow
def test_a_gold_function_may_lie_beside_the_run_file(tmp_path: Path) -> None:
    """From another working directory, as a command: only the file's folder leads to it."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "my_gold.py").write_text(BESIDE)
    (home / "run.yaml").write_text("world: toy\ngold: {model: null, function: 'my_gold.py:gold'}\n")
    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    for arguments in (["check"], ["run", "--out", "out", *sets]):
        made = subprocess.run(
            [sys.executable, "-m", "ostinato", arguments[0], "../home/run.yaml", *arguments[1:]],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert made.returncode == 0, made.stderr
    metrics = elsewhere / "out" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert any(row["kind"] == "iteration" and row["gold_sft_std"] is not None for row in rows)


def test_a_file_beside_the_run_file_is_loaded_alone(tmp_path: Path) -> None:
    """Its neighbours are no modules: neither what torch looks for nor what it asks for itself."""
    trap = "from pathlib import Path\n(Path(__file__).parent / 'trap').touch()\n"
    for name in ("triton", "zstandard", "json", "neighbour"):
        (tmp_path / f"{name}.py").write_text(trap)
    made = (
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Settings:\n    a: int = 0\n\n\n"
    )
    (tmp_path / "my_gold.py").write_text(made + BESIDE)
    (tmp_path / "asks.py").write_text("import neighbour\n")
    run = tmp_path / "run.yaml"
    run.write_text("world: toy\ngold: {model: null, function: 'my_gold.py:gold'}\n")
    source = "import sys; from ostinato.terminal.cli import app; app(['check', sys.argv[1]], "
    source += "standalone_mode=False); import importlib.util as i; print(sys.argv[1] in sys.path, "
    source += "[bool(i.find_spec(n)) for n in ('my_gold', 'neighbour')])"
    done = python(source, str(run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False [False, False]"
    run.write_text("world: toy\ngold: {model: null, function: './asks.py:gold'}\n")
    said = command("check", str(run))
    assert said.stderr == (
        f"{run}: gold.function: '{tmp_path / 'asks.py'}:gold' cannot be imported: "
        "ModuleNotFoundError: No module named 'neighbour' (line 1)\n"
    )
    run.write_text("world: toy\ngold: {model: null, function: 'json:gold'}\n")
    said = command("check", str(run))
    assert "AttributeError: module 'json' has no attribute 'gold'" in said.stderr
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (
            "def score(self, prompt, response): return 0.0",
            "failed: TypeError: Gold.score() takes 3 positional arguments but 4 were given; "
            "expected score(prompts, responses, finished), lists of text, text and truth values, "
            "to answer a tensor with a number a response",
        ),
        ("def score(self, *_): return [0.0]", "is a list; expected score(prompts, responses, "),
        ("def score(self, *_): raise SystemExit(0)", "failed: SystemExit: 0"),
    ],
)
def test_check_asks_the_gold_function(tmp_path: Path, score: str, said: str) -> None:
    (tmp_path / "my_gold.py").write_text(f"class Gold:\n    {score}\n")
    run = tmp_path / "run.yaml"
    run.write_text("world: toy\ngold: {model: null, function: 'my_gold.py:Gold'}\n")
    made = command("check", str(run))
    assert made.exit_code == 2
    gold = tmp_path / "my_gold.py"
    assert made.stderr.startswith(f"{run}: gold.function: the score of {gold}:Gold() {said}")
    assert made.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["[/b].yaml", "\x1b[31m[red]:smile:.yaml"])
@pytest.mark.slow
def test_a_path_is_neither_markup_nor_a_control_code(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("world: toy\n")
    shown = name.replace("\x1b", "␛")
    checked = command("check", str(file))
    assert checked.exit_code == 0
    assert checked.stdout.endswith(f"{shown} is valid; no model was loaded.\n")
    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    made = command("run", str(file), "--out", str(tmp_path / f"out {name}"), *sets)
    assert made.exit_code == 0, made.stderr
    told = command("report", str(tmp_path / f"out {name}"))
    for output in (checked.output, made.output, told.output):
        assert shown in output
        assert "\x1b" not in output
    missing = command("run", str(tmp_path / f"no {name}"))
    assert missing.exit_code == 2
    assert f"no {shown}: no such run file" in missing.stderr


def test_what_a_file_says_is_no_control_code(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text('world: "\\e]0;title\\a\\x9b2J"\n')
    made = command("check", str(file))
    assert made.exit_code == 2
    assert made.stderr == f"{file}: world: no world '␛]0;title␇\ufffd2J' is installed" + (
        "; valid names are quickstart, sums, toy\n"
    )


def test_a_run_yaml_of_aliases_is_told_at_once(tmp_path: Path) -> None:
    lines = ["config: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    made = command("report", str(tmp_path))
    assert made.exit_code == 2
    assert (
        made.stderr == f"{tmp_path / 'run.yaml'}: not valid YAML: holds more than 10,000 values\n"
    )


def test_a_usage_error_is_2() -> None:
    assert command("run").exit_code == 2
    assert command("rnu", "toy").exit_code == 2


def test_version() -> None:
    assert command("--version").stdout == "ostinato 0.1.0\n"


@pytest.mark.slow
def test_run_resume_and_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = small("--seed", "7")
    assert first.exit_code == 0, first.stderr
    assert "\x1b" not in first.stdout
    assert "results in        runs/toy-seed7 (a new run)" in first.stdout
    folder = tmp_path / "runs" / "toy-seed7"
    assert parsed((folder / "run.yaml").read_text())["config"]["seed"] == 7
    assert "<svg" in (folder / "report.html").read_text()

    again = small("--seed", "7")
    assert again.exit_code == 0, again.stderr
    assert "(goes on with the run there)" in again.stdout
    assert (
        again.stdout.split("== Finished")[1].splitlines()[1:]
        == (first.stdout.split("== Finished")[1].splitlines()[1:])
    )

    other = small("--seed", "7", **{"rl.lr": 0.5})
    assert other.exit_code == 2
    assert other.stderr.splitlines() == [
        "runs/toy-seed7: holds a run of another config: rl.lr was 0.001, is 0.5; "
        "choose another folder"
    ]

    table = command("report", "runs/toy-seed7")
    assert table.exit_code == 0, table.stderr
    assert "written: runs/toy-seed7/report.html" in table.stdout


BROKEN = '    @hookimpl\n    def kl_coefficient(self):\n        raise KeyError("no such beta")\n'


@pytest.mark.slow
def test_an_error_in_a_plugin_names_it(plugin: Install, tmp_path: Path) -> None:
    plugin(BROKEN)
    out = tmp_path / "run"
    made = small("--out", str(out), plugins="[third]")
    assert made.exit_code == 1
    assert made.stderr == (
        "An error in plugin 'third', hook 'kl_coefficient' (third_party.py, line 7): "
        "KeyError: 'no such beta'. "
        f"The traceback is in {out / 'error.txt'}; the run is kept.\n"
    )
    assert "Traceback" in (out / "error.txt").read_text()
    assert "third_party.py" in (out / "error.txt").read_text()
    again = small("--out", str(out), "--debug", plugins="[third]")
    assert isinstance(again.exception, KeyError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ("KeyboardInterrupt", 130, "Interrupted: the run is kept; the same command goes on.\n"),
        (
            "Pause('label pairs.jsonl, please')",
            3,
            "label pairs.jsonl, please\nThe run is kept; the same command goes on with it.\n",
        ),
        (
            "SystemExit(0)",
            1,
            "An error in plugin 'third', hook 'label' (third_party.py, line 7): SystemExit: 0. "
            "The traceback is in {out}/error.txt; the run is kept.\n",
        ),
    ],
)
def test_leaving_early(
    plugin: Install, tmp_path: Path, error: str, status: int, words: str
) -> None:
    plugin(f"    @hookimpl\n    def label(self):\n        raise {error}\n")
    made = small("--out", str(tmp_path / "run"), plugins="[third]")
    assert made.exit_code == status
    assert made.stderr == words.format(out=tmp_path / "run")


def test_check_shows_the_owners() -> None:
    made = command(
        "check", "toy", "--set", "plugins=[ensemble, sharpe]", "--set=reward_model.members=2"
    )
    assert made.exit_code == 0, made.stderr
    lines = [" ".join(line.split()) for line in made.stdout.splitlines()]
    assert "combine_rm ensemble" in lines
    assert "reward_transform sharpe" in lines
    assert "combine_data concat (default)" in lines
    assert lines[-1] == "toy is valid; no model was loaded."


def test_a_broken_package_disturbs_nothing(plugin: Install) -> None:
    plugin("    import no_such_module\n")
    listed = json.loads(command("plugins", "--json").stdout)
    assert all(
        list(entry) == ["name", "group", "hooks", "distribution", "version", "summary"]
        for entry in listed
    )
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["liti"]["hooks"] == ["init_policy"]
    assert by_name["third"]["hooks"] == []
    assert "cannot be imported" in by_name["third"]["summary"]
    assert "No module named 'no_such_module'" in by_name["third"]["summary"]
    assert command("check", "toy").exit_code == 0
    alone = command("plugins", "third")
    assert alone.exit_code == 2
    assert alone.stderr.count("\n") == 1


def test_one_plugin() -> None:
    shown = command("plugins", "ppo")
    assert shown.exit_code == 0
    for text in ("policy_algorithm", "value_clip", "float | None", "0.2", "Paper: Wolf 2025"):
        assert text in shown.stdout
    [entry] = json.loads(command("plugins", "ppo", "--json").stdout)
    assert entry["name"] == "ppo"
    missing = command("plugins", "ppoo")
    assert missing.exit_code == 2
    assert missing.stderr == "plugins: no plugin 'ppoo' is installed; did you mean 'ppo'?\n"
