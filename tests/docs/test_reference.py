"""docs/reference.md lists each public class with fields, shapes and methods."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass

import pytest

import ostinato

CLASSES = {
    name: made
    for name in ostinato.__all__
    if inspect.isclass(made := getattr(ostinato, name)) and not issubclass(made, Exception)
}
BATCHES = ("PreferenceBatch", "RewardBatch", "Rollout", "PolicyOutputs", "RMOutputs", "Scores")


@pytest.fixture(scope="module")
def section(docs):
    """What the page says of a class."""
    page = (docs / "reference.md").read_text(encoding="utf-8")
    return lambda name: page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"RunConfig"}))
def test_every_public_attribute_is_listed(name, section):
    made, said = CLASSES[name], section(name)
    own = [n for n, member in vars(made).items() if inspect.isfunction(member)]
    own += [f.name for f in fields(made)] if is_dataclass(made) else []
    for attribute in own:
        if not attribute.startswith("_"):
            assert re.search(rf"^\| `{attribute}[`(]", said, re.M), attribute


@pytest.mark.parametrize("name", [*BATCHES, "Samples"])
def test_every_tensor_has_a_shape(name, section):
    rows = re.findall(r"^\| `(\w+)` \| `Tensor[^`]*` \| (.*) \|$", section(name), re.M)
    assert rows
    for field, said in rows:
        assert re.match(r"\([A-Za-z]+,", said), (field, said)


def test_functions_are_listed_with_their_arguments(docs):
    page = (docs / "reference.md").read_text(encoding="utf-8")
    assert "| `slerp(base: State, a: State, b: State, t: float) -> dict[str, Tensor]` |" in page
    for name in ostinato.__all__:
        if inspect.isfunction(getattr(ostinato, name)) and name != "hookimpl":
            assert f"\n| `{name}(" in page, name
