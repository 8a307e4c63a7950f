"""metrics.jsonl: cut back to what is known to be good, never written over, never filled up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostinato import UserError
from ostinato.config.errors import NonFiniteError
from ostinato.runs.metrics import Metrics
from run_kit import keep, opened


def test_rows_behind_the_last_artefact_are_cut_off(out: Path) -> None:
    first = opened(out)
    first.metrics.write({"kind": "a"})
    keep(first, "a", "x")
    first.metrics.write({"kind": "lost"})
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ha')
    second = opened(out)
    keep(second, "a", "y")
    assert second.metrics.rows() == [{"kind": "a"}]
    second.metrics.write({"kind": "b"})
    assert (out / "metrics.jsonl").read_text() == '{"kind": "a"}\n{"kind": "b"}\n'


@pytest.mark.parametrize("harm", ["missing", "shorter", "changed"])
def test_damaged_metrics_are_named(harm: str, out: Path) -> None:
    first = opened(out)
    first.metrics.write({"kind": "a", "gold": 1})
    keep(first, "a", "x")
    path = out / "metrics.jsonl"
    if harm == "missing":
        path.unlink()
    else:
        good = path.read_text()
        path.write_text(good[:-3] if harm == "shorter" else good.replace("1", "2"))
    with pytest.raises(UserError) as caught:
        keep(opened(out), "a", "x")
    assert str(caught.value).startswith(f"{path}: is missing, truncated or changed since")


def test_a_number_that_json_has_not_is_named(tmp_path: Path) -> None:
    row = {"kind": "eval", "iteration": 2, "step": 3, "parts": [{"x": 1.0}, {"x": float("inf")}]}
    with pytest.raises(NonFiniteError) as caught:
        Metrics(tmp_path / "m.jsonl").write(row)
    assert str(caught.value) == "'parts.1.x' of a 'eval' row is not finite at iteration 2, step 3"


def test_half_a_row_on_a_full_disk(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(out)
    metrics.write({"a": 1})
    with out.open("a") as file:
        file.write('{"b"')  # what a write that failed half way leaves
    metrics.write({"b": 2})
    assert out.read_text() == '{"a": 1}\n{"b": 2}\n'


@pytest.mark.parametrize("left", ["", '{"a": 1}\n'])
def test_a_file_that_is_cut_under_the_process_is_not_filled_up(left: str, out: Path) -> None:
    metrics = Metrics(out)
    metrics.write({"a": 1})
    metrics.write({"b": 2})
    out.write_text(left)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            metrics.write({"c": 3})
        assert str(caught.value) == (
            f"{out}: is missing, truncated or changed since the run wrote it; restore it, or start "
            "again in another folder"
        )
    assert out.read_text() == left
