"""The distributions of contrib/ as if pip had installed them: their code and entry points."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

CONTRIB = Path(__file__).resolve().parents[1] / "contrib"


def distributions() -> dict[str, Path]:
    """The folder of each by its name."""
    files = sorted(CONTRIB.glob("*/pyproject.toml"))
    return {_project(file.parent)["name"]: file.parent for file in files}


@contextmanager
def installed() -> Iterator[None]:
    """Inside, they are found before any that really are installed."""
    with TemporaryDirectory() as site:
        added = [site]
        for name, folder in distributions().items():
            project = _project(folder)
            facts = Path(site) / f"{name.replace('-', '_')}-{project['version']}.dist-info"
            facts.mkdir()
            head = {"Metadata-Version": "2.1", "Name": name, "Version": project["version"]}
            lines = "".join(f"{key}: {value}\n" for key, value in head.items())
            (facts / "METADATA").write_text(lines, encoding="utf-8")
            points = project["entry-points"]["ostinato"].items()
            lines = "".join(f"{key} = {value}\n" for key, value in points)
            (facts / "entry_points.txt").write_text(f"[ostinato]\n{lines}", encoding="utf-8")
            added.append(str(folder / "src"))
        sys.path[:0] = added
        try:
            yield
        finally:
            for entry in added:
                sys.path.remove(entry)


def _project(folder: Path) -> dict:
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]
