"""The example on each hook's page works: all sixteen are plugins of one toy run, and each acts."""

from __future__ import annotations

import re

import pytest

import ostinato
from ostinato.contract.discovery import hooks_of
from ostinato.contract.hookspecs import KINDS


@pytest.fixture(scope="module")
def example_code(docs, blocks):
    """The one Python block of each hook's page."""
    found = {hook: blocks(docs / "hooks" / f"{hook}.md", "python") for hook in KINDS}
    assert {hook: len(code) for hook, code in found.items()} == dict.fromkeys(KINDS, 1)
    return {hook: code[0][1] for hook, code in found.items()}


@pytest.fixture(scope="module")
def example_run(example_code, installed, tiny, tmp_path_factory):
    names = {hook: re.search(r"^class (\w+)", code, re.M)[1] for hook, code in example_code.items()}
    code = "\n\n".join(example_code.values())
    installed("hook_examples", code, {f"example_{hook}": name for hook, name in names.items()})
    listed = ", ".join(f"example_{hook}" for hook in KINDS)
    overrides = [*tiny, f"plugins=[{listed}]"]
    return ostinato.run("toy", tmp_path_factory.mktemp("examples") / "run", overrides)


@pytest.mark.parametrize("hook", KINDS)
def test_page_shows_a_plugin_of_its_hook(hook, example_code):
    made = {}
    exec(compile(example_code[hook], f"docs/hooks/{hook}.md", "exec"), made)
    classes = [c for c in made.values() if isinstance(c, type) and hooks_of(c)]
    assert [hooks_of(c) for c in classes] == [[hook]]
    assert classes[0].__doc__


@pytest.mark.parametrize("hook", [h for h, kind in KINDS.items() if kind != "all"])
def test_example_acts(hook, example_run):
    key = f"example_{hook}.{hook}"
    seen = [row["actions"][key] for row in example_run.metrics if key in row.get("actions", {})]
    if hook == "evaluate":
        seen = [
            row["example_evaluate/repeated"] for row in example_run.metrics if row["kind"] == "eval"
        ]
    assert seen
    assert any(value != 0 for value in seen)


def test_observe_example_prints_each_evaluation(example_code, tiny, tmp_path, capsys, example_run):
    ostinato.run("toy", tmp_path / "run", [*tiny, "iterations=1", "plugins=[example_observe]"])
    printed = re.findall(
        r"^iteration 1, rollout (\d+): KL -?\d+\.\d\d$", capsys.readouterr().out, re.M
    )
    assert printed == ["0", "2"]
