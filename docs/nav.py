"""The order of the pages: what is named here first, then whatever else docs/ holds, by name."""

from pathlib import Path
from typing import Any

ORDER = (
    *("index", "quickstart", "concepts", "run-files", "run-directory"),
    *("sums", "tutorial", "testing-plugins", "publish", "contract", "hooks", "plugins"),
    *("mixing", "measured", "scales", "stress", "experiments", "methods-and-contract"),
    *("wolf-scale", "performance", "architecture", "reference"),
)
TITLES = {"hooks": "Hooks", "plugins": "Methods"}


def on_config(config: Any) -> None:
    root = Path(config.docs_dir)
    config.nav = entries(root, root)


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
