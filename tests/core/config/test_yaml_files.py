"""YAML 1.2: what is read, what is refused, and how fast."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ostinato.config.errors import UserError
from ostinato.config.yaml_files import YAMLError, dumped, parsed, read_file


def bomb(form: str) -> str:
    """Ten lines; each holds the one before nine times, so the last holds 9**9 values."""
    lines = ["a: &a {x: 1}"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} " + form.format(", ".join([f"*{before}"] * 9)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-.5E-5", -5e-6),
        ("0o17", 15),
        ("0x1F", 31),
        ("on", "on"),
        ("No", "No"),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("2026-13-45", "2026-13-45"),
        ("2026-01-02", "2026-01-02"),
        ("'010'", "010"),
        ("=", "="),
        ("{a: &x {b: 1}, c: *x}", {"a": {"b": 1}, "c": {"b": 1}}),
        ("{a: &x {b: 1, d: 2}, c: {<<: *x, b: 3}}", {"a": {"b": 1, "d": 2}, "c": {"b": 3, "d": 2}}),
    ],
)
def test_what_yaml_1_2_says(text: str, value: Any) -> None:
    assert parsed(text) == value
    assert type(parsed(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 010", "'010' is no number, for it begins with 0"),  # 8 in YAML 1.1, 10 in 1.2
        ("seed: -07", "'-07' is no number"),
        ("a: !!int abc", "'abc' is no int"),
        ("a: !!bool abc", "'abc' is no bool"),
        ("a: !!float abc", "'abc' is no float"),
        ("a: 0x_", "'0x_' is no int"),
        ("a: " + "9" * 5000, f"'{'9' * 40}' is no int"),
        ("a: 0x" + "f" * 5000, f"'0x{'f' * 38}' is no number of 64 bits"),
        ('a: "\\ud800"', r"'\ud800' is no str"),
        ("plugins: &a [*a]", "an alias stands inside itself"),
        ("a: " + "[" * 60 + "]" * 60, "maximum depth of data structure exceeded (51)"),
        ("a: " + "[" * 2000 + "]" * 2000, "maximum depth of data structure exceeded (51)"),
        ("a: " + "{b: " * 2000 + "1" + "}" * 2000, "maximum depth of data structure exceeded (51)"),
        (bomb("[{}]"), "holds more than 10,000 values"),
        (bomb("{{<<: [{}]}}"), "holds more than 10,000 values"),
        ("a: [" + "x, " * 10_001 + "]", "holds more than 10,000 values"),
        ("a: !!set {b, c}", "could not determine a constructor"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: \x1b[31m", "unacceptable character"),
        ("a: 1\na: 2", "key 'a' stands twice"),
        ("on: 1\non: 2", "key 'on' stands twice"),
    ],
)
def test_what_is_refused_in_a_sentence_and_at_once(text: str, said: str, tmp_path: Path) -> None:
    began = time.perf_counter()
    with pytest.raises(YAMLError):
        parsed(text)
    assert time.perf_counter() - began < 3.0
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: not valid YAML")
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_as_it_was() -> None:
    value = {
        "z": [1e-5, 1e22, -3, True, None, [], {}, {"x": {}}],
        "a": ["1e-5", "010", "1:30", "on", "true", "null", "~", "", " x", "-", "#", "a: b", "="],
        "texts": ["two\nlines", "\x1b[31m", "é\u2028\u0085", 'say "a"', "it's", "w " * 300],
    }
    assert parsed(dumped(value)) == value
    assert list(parsed(dumped(value))) == ["z", "a", "texts"]
    assert parsed(dumped(value, flow=True)) == value
    assert dumped(["concat", {"liti": {"eta": 0.3}}], flow=True) == "[concat, {liti: {eta: 0.3}}]\n"


def test_a_pipe_is_no_run_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    asked = "from pathlib import Path; from ostinato.config.yaml_files import read_file; "
    asked += f"read_file(Path({str(tmp_path / 'run.yaml')!r}))"
    made = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60)
    assert "is no regular file, expected a run file" in made.stderr
