"""docs/contract.md says of the contract what the contract does."""

from __future__ import annotations

import re
from pathlib import Path

import ostinato
from ostinato.contract.activation import activate_one
from ostinato.contract.hookspecs import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "contract.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_it_names_the_edition_that_there_is(blocks):
    assert f'`ostinato.CONTRACT`, at present `"{ostinato.CONTRACT}"`' in TEXT
    ((_, code),) = blocks(PAGE, "python")
    assert f'contract = "{ostinato.CONTRACT}"' in code
    assert f'Say `contract = "{ostinato.CONTRACT}"` in the class' in TEXT


def test_its_plugin_is_taken_where_it_has_a_hook(blocks, tmp_path):
    ((_, code),) = blocks(PAGE, "python")
    hook = "    @ostinato.hookimpl\n    def kl_coefficient(self, kl):\n        return 0.0\n"
    (tmp_path / "cap.py").write_text(f"import ostinato\n\n\n{code}\n{hook}")
    made = activate_one(f"{tmp_path}/cap.py:Cap", {}, "here")
    assert (made.name, made.hooks) == ("Cap", ["kl_coefficient"])


def test_what_it_calls_public_of_a_class_is_read_by_the_core():
    listed = re.search(r"reads of a plugin's class\*\*: (.*?), and whatever", TEXT, re.S)
    core = Path(ostinato.__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in core.rglob("*.py"))
    names = re.findall(r"`(\w+)`", listed[1])
    assert len(names) == 9
    for name in names:
        assert re.search(rf'(?:"{name}"|instance\.{name}\b|, "{name}", )', source), name


def test_nothing_leaves_that_it_does_not_list():
    """The page says so, and no hook of the contract is marked."""
    marked = [
        hook
        for hook in KINDS
        for spec in [getattr(ostinato.contract.hookspecs, hook).ostinato_spec]
        if spec["warn_on_impl"] or spec["warn_on_impl_args"]
    ]
    assert (marked == []) == ("Nothing is leaving at present." in TEXT)
