"""The run directory: whole or not at all, no other config, every fault a sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ostinato
from ostinato import UserError
from ostinato.config.yaml_files import dumped, parsed
from ostinato.contract.plugins import activate
from ostinato.runs import disk
from ostinato.runs.directory import RunDirectory
from run_kit import TOY, keep, opened, plugins, read, text


def test_an_artefact_is_made_once_and_loaded_after(out: Path) -> None:
    first = opened(out)
    assert not first.resumed
    assert keep(first, "a", "made") == "made"
    second = opened(out)
    assert second.resumed
    assert keep(second, "a", "made again") == "made"


def test_a_failed_save_leaves_nothing(out: Path) -> None:
    directory = opened(out)

    def save(value: str, folder: Path) -> None:
        text(value)(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        directory.artefact("a", lambda: "x", save, read)
    assert [p.name for p in out.iterdir() if p.is_dir()] == []
    assert keep(directory, "a", "y") == "y"


def test_what_a_killed_process_left_beside_is_swept(out: Path) -> None:
    opened(out)
    for left in ("iteration-1/.making-policy/inner", ".making-sft", "x.checkpoints/.making-p-3"):
        (out / left).mkdir(parents=True)
        (out / left / "model.safetensors").touch()
    assert keep(opened(out), "iteration-1/policy", "new") == "new"
    assert list(out.rglob(".making-*")) == []


def test_a_process_killed_before_run_yaml_was_whole_can_start_again(out: Path) -> None:
    out.mkdir()
    (out / "lock").touch()
    (out / ".making-run.yaml").write_text("conf")
    assert not opened(out).resumed
    assert not (out / ".making-run.yaml").exists()


@pytest.mark.parametrize("harm", ["missing", "truncated", "changed", "done", "no done"])
def test_a_damaged_artefact_is_named(harm: str, out: Path) -> None:
    first = opened(out)
    keep(first, "iteration-1/data", "a long text")
    folder = out / "iteration-1" / "data"
    bad = folder / ("done.json" if "done" in harm else "text.txt")
    if harm in {"missing", "no done"}:
        bad.unlink()
    elif harm == "truncated":
        bad.write_text("a long")
    elif harm == "changed":
        bad.write_text("a lung text")
    else:
        bad.write_text(bad.read_text()[:30])
    with pytest.raises(UserError) as caught:
        keep(opened(out), "iteration-1/data", "x")
    assert str(caught.value) == (
        f"{bad}: is missing, truncated or changed since the run wrote it; restore it, or delete "
        f"{folder} and what was made after it to compute it again"
    )


def test_a_stage_that_went_missing_in_the_middle_is_named_and_nothing_is_lost(out: Path) -> None:
    first = opened(out)
    names = [f"iteration-{k}/{stage}" for k in (1, 2) for stage in ("data", "policy")]
    for name in names:
        first.metrics.write({"kind": name})
        keep(first, name, name)
    before = (out / "metrics.jsonl").read_text()
    first.close()
    shutil.rmtree(out / "iteration-1" / "policy")
    second = opened(out)
    assert keep(second, names[0], "x") == names[0]
    with pytest.raises(UserError) as caught:
        keep(second, names[1], "x")
    assert str(caught.value) == (
        f"{out}/iteration-1/policy: is missing, but what was made after it is there; restore it, "
        "or delete iteration-2/data, iteration-2/policy too, to compute all of it again"
    )
    second.close()
    assert (out / "metrics.jsonl").read_text() == before
    shutil.rmtree(out / "iteration-2")
    third = opened(out)
    assert [keep(third, name, "again") for name in names[:2]] == [names[0], "again"]


def test_caches_and_checkpoints_are_not_later_than_their_stage(out: Path) -> None:
    first = opened(out)
    first.cached("iteration-1/cache-strength", lambda: "x", lambda v, f: text(v)(f), read)
    first.save_checkpoint("iteration-1/policy", "main", 3, {"w": torch.zeros(1)}, {})
    first.close()
    assert keep(opened(out), "iteration-1/data", "made") == "made"


def test_a_cached_result_comes_back_with_its_rows_and_state(out: Path) -> None:
    made = []

    def make(directory: RunDirectory) -> str:
        made.append(1)
        directory.metrics.write({"kind": "vote"})
        return "votes"

    for _ in range(2):
        directory = opened(out)
        directory.metrics.write({"kind": "before"})
        got = directory.cached("c", lambda: make(directory), lambda v, f: text(v)(f), read)  # noqa: B023
        assert got == "votes"
        assert directory.metrics.rows() == [{"kind": "before"}, {"kind": "vote"}]
    assert made == [1]


# Whose folder it is


def test_another_config_shows_the_difference(out: Path) -> None:
    keep(opened(out, "rl.lr=1e-3", active=plugins("strength", "flip")), "sft", "finished")
    with pytest.raises(UserError) as caught:
        opened(out, "rl.lr=1e-4", "seed=3", "gold=null", active=plugins("strength", "flip"))
    said = str(caught.value)
    assert said.startswith(f"{out}: holds a run of another config: ")
    assert "rl.lr was 0.001, is 0.0001" in said
    assert "seed was 0, is 3" in said
    assert "gold.function was 'ostinato_worlds.toy:gold', is None" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(UserError, match="order of plugins was"):
        opened(out, "rl.lr=1e-3", active=plugins("take_last_data", "strength", "flip"))


def test_settings_of_plugins_count_with_their_defaults(out: Path) -> None:
    keep(opened(out, active=activate([("ppo", {})], "run.yaml")), "sft", "finished")
    opened(out, active=activate([("ppo", {"clip": 0.2})], "run.yaml"))
    with pytest.raises(UserError, match=r"plugins\.ppo\.clip was 0\.2, is 0\.3"):
        opened(out, active=activate([("ppo", {"clip": 0.3})], "run.yaml"))


def test_iterations_may_grow_and_the_backend_change(out: Path) -> None:
    keep(opened(out, "iterations=2", "backend.threads=1"), "sft", "finished")
    assert opened(out, "iterations=3", "backend.threads=2", "checkpoint_every=5 min").resumed
    with pytest.raises(UserError, match="iterations was 3, is 2, and may only grow"):
        opened(out, "iterations=2")


def test_a_run_that_finished_nothing_gives_way_to_another_config(out: Path) -> None:
    opened(out, "rl.lr=1e-3")
    opened(out, "rl.lr=1e-4")
    assert "lr: 0.0001" in (out / "run.yaml").read_text()


def test_a_damaged_record(out: Path) -> None:
    opened(out)
    for damage in ("config: {", "format: 2\nconfig: 3", "", "- a"):
        (out / "run.yaml").write_text(damage)
        with pytest.raises(UserError, match="yaml: is damaged"):
            opened(out)


@pytest.mark.parametrize("edition", [None, 1, 3, "2", [2]])
def test_a_folder_of_another_edition_is_left_alone(edition: Any, out: Path) -> None:
    """The first one wrote no `format`."""
    keep(opened(out), "sft", "finished")
    record = parsed((out / "run.yaml").read_text())
    assert record.pop("format") == 2
    if edition is not None:
        record["format"] = edition
    (out / "run.yaml").write_text(dumped(record))
    with pytest.raises(UserError) as caught:
        opened(out)
    assert str(caught.value) == (
        f"{out}: holds a run of another edition of Ostinato; choose another folder"
    )
    assert parsed((out / "run.yaml").read_text()) == record


def test_a_file_in_the_folders_place(out: Path) -> None:
    out.write_text("")
    with pytest.raises(UserError, match="is a file, expected a folder for the run"):
        opened(out)
    with pytest.raises(UserError, match="run/inner: cannot be written: Not a directory"):
        opened(out / "inner")


def test_a_folder_of_something_else_is_left_alone(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run; choose another folder"):
        opened(out)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


# What is in the folder


def test_no_pickle_is_written_or_read(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {p.suffix for p in whole.rglob("*") if p.is_file()} - {""}
    assert kinds == {".yaml", ".jsonl", ".json", ".arrow", ".safetensors"}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    ostinato.run("toy", whole, TOY)  # all loads
    ostinato.run("toy", tmp_path / "new", TOY)
    core = Path(ostinato.__file__).parent
    for path in core.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "torch.load" not in source, path
        assert "import pickle" not in source, path


def test_every_file_but_the_record_is_under_a_checksum(whole: Path) -> None:
    loose = {"run.yaml", "metrics.jsonl", "lock"}
    for path in (p for p in whole.rglob("*") if p.is_file() and p.name not in loose):
        folder = next(f for f in path.parents if (f / "done.json").exists())
        done = json.loads((folder / "done.json").read_text())
        name = str(path.relative_to(folder))
        assert name == "done.json" or done["files"][name] == disk.checksum(path)
