"""The order of the pages: what is named here first, then whatever else docs/ holds, by name."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ORDER = (
    *("index", "quickstart", "concepts", "run-files", "run-directory"),
    *("sums", "tutorial", "testing-plugins", "publish", "contract", "hooks", "plugins"),
    *("mixing", "measured", "scales", "stress", "experiments", "methods-and-contract"),
    *("wolf-scale", "performance", "architecture", "reference"),
)
TITLES = {"hooks": "Hooks", "plugins": "Methods"}
README = re.compile(r"((?:\.\./)*)\.\./contrib/([\w-]+)/README\.md")  # as a page links to it


def on_config(config: Any) -> None:
    root = Path(config.docs_dir)
    config.nav = entries(root, root)
    config.nav += [{"Distributions": [uri for uri, _ in readmes(root)]}]


def on_files(files: Any, config: Any) -> None:
    """The READMEs of the distributions of contrib/ are pages too."""
    for uri, path in readmes(Path(config.docs_dir)):
        files.append(File.generated(config, uri, abs_src_path=str(path)))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to such a README, which is right in the repository, is one to its page."""
    return README.sub(r"\1contrib/\2.md", markdown)


def readmes(root: Path) -> list[tuple[str, Path]]:
    """The page of each distribution, and the file that it is made of."""
    found = sorted((root.parent / "contrib").glob("*/README.md"))
    return [(f"contrib/{path.parent.name}.md", path) for path in found]


def entries(folder: Path, root: Path) -> list[str | dict[str, Any]]:
    """Pages by path, folders that hold pages as a section each."""
    found = (p for p in folder.iterdir() if p.suffix == ".md" or any(p.rglob("*.md")))
    return [
        {TITLES.get(path.name, path.name.capitalize()): entries(path, root)}
        if path.is_dir()
        else path.relative_to(root).as_posix()
        for path in sorted(found, key=rank)
    ]


def rank(path: Path) -> tuple[int, str]:
    return (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.name)
