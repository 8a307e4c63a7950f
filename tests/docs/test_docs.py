"""The documentation is complete, current and true: pages, links, run files, generated parts."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import ostinato
from ostinato.config.reading import load_config
from ostinato.config.yaml_files import parsed
from ostinato.contract.hookspecs import KINDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"(?<!`)\[(?:[^\]]|\n)*?\]\(([^)\s]+)\)")


def names(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_generated_parts_are_current(page, generator):
    text = page.read_text(encoding="utf-8")
    assert generator.filled(text) == text, "run: python docs/generate.py"


def test_a_stale_part_would_be_seen(generator):
    page = (DOCS / "plugins" / "flip.md").read_text(encoding="utf-8")
    stale = page.replace("| `threshold` |", "| `threshhold` |")
    assert stale != page
    assert generator.filled(stale) == page


@pytest.mark.parametrize("hook", KINDS)
def test_hook_has_a_page_that_says_everything(hook):
    text = (DOCS / "hooks" / f"{hook}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {hook}\n")
    assert f"<!-- generated: hook {hook} -->" in text
    for part in ("**Called**", "**Answer", "```python"):
        assert part in text


def test_no_page_of_a_hook_that_is_gone():
    assert {p.stem for p in (DOCS / "hooks").glob("*.md")} == {*KINDS, "index"}


def test_every_built_in_has_a_page_and_a_test(generator):
    built_ins = set(generator.built_ins())
    assert {p.stem for p in (DOCS / "plugins").glob("*.md")} == {*built_ins, "index"}
    tests = [p.read_text(encoding="utf-8") for p in (ROOT / "tests" / "plugins").rglob("test_*.py")]
    classes = {name: generator.plugin_class(name).__name__ for name in built_ins}
    tested = {n for n, c in classes.items() if any(re.search(rf"\b({n}|{c})\b", t) for t in tests)}
    assert built_ins - tested == set()


def test_plugin_pages_have_every_section(generator):
    for name in generator.built_ins():
        text = (DOCS / "plugins" / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {name}\n")
        heads = re.findall(r"^## (.+)$", text, re.M)
        assert heads == [
            "Settings",
            "What it logs",
            "Details that matter",
            "How it differs from the paper",
            "Measured",
        ], name


def test_reference_has_every_public_name():
    text = (DOCS / "reference.md").read_text(encoding="utf-8").partition("\n## Measures\n")[0]
    tables = text.partition("\n## Functions\n")[2]
    named = re.findall(r"^### (\w+)$", text, re.M)
    named += re.findall(r"^\| `(\w+)[`(]", tables, re.M) + re.findall(r"^`(\w+)`: ", tables, re.M)
    assert sorted(named) == sorted(ostinato.__all__)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_modules_and_files_of_the_core_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    for file in re.findall(r"`(?:core/)?(ostinato/[\w/]+\.py)`", text):
        assert (ROOT / "core" / file).exists(), file
    for name in {*re.findall(r"`(ostinato\.[\w.]+)`", text)} - entry_points().groups:
        pkgutil.resolve_name(name)


def anchors(page):
    """Anchors of a page's headings, as mkdocs makes them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"[^\w\s-]", "", head).strip().lower() for head in heads]
    return {re.sub(r"[-\s]+", "-", head) for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_inside_the_repository_resolve(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_run_files_are_valid_and_python_compiles(page, blocks, tmp_path):
    for _, code in blocks(page, "yaml"):
        settings = parsed(code)
        assert isinstance(settings, dict)
        if settings.keys() & {"world", "policy"}:
            file = tmp_path / "run.yaml"
            file.write_text(code, encoding="utf-8")
            load_config(file)
        else:  # a part of a run file
            load_config({"world": "toy", **settings})
    for _, code in blocks(page, "python"):
        compile(code, str(page), "exec")


def test_quoted_settings_exist():
    """Dotted keys that the prose names are keys of a run file."""
    known = set(re.findall(r"^\| `([\w.]+)` \|", (DOCS / "run-files.md").read_text(), re.M))
    text = (DOCS / "run-files.md").read_text(encoding="utf-8")
    sections = re.split(r"^### (\w+)$", text, flags=re.M)
    keys = set()
    for name, body in zip(sections[1::2], sections[2::2], strict=True):
        keys |= {f"{name}.{key}" for key in re.findall(r"^\| `([\w.]+)` \|", body, re.M)}
    roots = {key.split(".")[0] for key in keys} & known
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for quoted in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:: [^`]*)?`", prose):
            if quoted.split(".")[0] in roots and not quoted.endswith(".py"):
                whole = {quoted, *(key for key in keys if key.startswith(f"{quoted}."))}
                assert whole & keys, f"{page.name}: {quoted}"
