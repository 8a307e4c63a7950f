"""What the tests of the documentation share: pages, their code blocks, packages on the path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^([ ]*)```(\w+)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
TINY = (
    "iterations=2",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "reward_model.updates=3",
    "reward_model.batch=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "evaluation.every=2",
)


@pytest.fixture(scope="session")
def docs() -> Path:
    return ROOT / "docs"


@pytest.fixture(scope="session")
def blocks() -> Callable[[Path, str], list[tuple[str, str]]]:
    """(title, code) of every fenced block of one language in a page."""

    def find(page: Path, language: str) -> list[tuple[str, str]]:
        text = page.read_text(encoding="utf-8")
        titles = re.compile(r'title="([^"]+)"')
        return [
            (m[1] if (m := titles.search(found[3])) else "", found[4])
            for found in BLOCK.finditer(text)
            if found[2] == language
        ]

    return find


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides that make a toy run as small as it can be."""
    return TINY


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str, Mapping[str, str]], None]:
    """Put a module on the path with the metadata that pip would have written for its plugins."""
    patch = pytest.MonkeyPatch()

    def install(module: str, code: str, entry_points: Mapping[str, str]) -> None:
        folder = tmp_path_factory.mktemp(module)
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
        facts = folder / f"{module}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{target}" for name, target in entry_points.items()]
        (facts / "entry_points.txt").write_text("\n".join(["[ostinato]", *lines, ""]))
        patch.syspath_prepend(str(folder))

    yield install
    patch.undo()
