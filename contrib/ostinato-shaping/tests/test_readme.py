"""The README's run files name plugins and settings that there are."""

import re
from importlib.metadata import entry_points
from pathlib import Path

import ostinato

README = Path(__file__).parents[1] / "README.md"


def test_every_snippet_can_be_read(tmp_path, monkeypatch):
    (tmp_path / "shown.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    methods = {point.name: point for point in entry_points(group="ostinato")}
    seen = set()
    for i, text in enumerate(snippets):
        file = tmp_path / f"run-{i}.yaml"
        file.write_text(f"world: toy\n{text}")
        for name, settings in ostinato.load_config(file).wanted_plugins:
            seen.add(name)
            if settings:
                assert methods[name].load().Config(**settings)
    own = {point.name for point in methods.values() if point.value.startswith("ostinato_shaping")}
    assert len(own) == 9
    assert own <= seen
    headings = re.findall(r"^## (\w+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) == own
