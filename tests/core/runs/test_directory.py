"""The run directory: whole or not at all, one process, no other config, every fault a sentence."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ostinato
from kill_runs import MICRO, differing, outcome
from ostinato import UserError
from ostinato.config.errors import NonFiniteError
from ostinato.config.reading import load_config
from ostinato.contract.plugins import Plugins, activate
from ostinato.runs import disk
from ostinato.runs.directory import RunDirectory
from ostinato.runs.metrics import Metrics

TOY = [
    *(o for o in MICRO if not o.startswith(("plugins", "iterations"))),
    "iterations=1",
    "plugins=[concat, strength, flip]",
    "plugins.strength.models=1",
    "rl.rollouts=2",
]


def plugins(*names: str) -> Plugins:
    return activate([(name, {}) for name in names], "run.yaml")


OPEN: list[RunDirectory] = []


def opened(path: Path, *overrides: str, active: Plugins | None = None) -> RunDirectory:
    """The run directory of a toy run, after those opened before are let go."""
    release()
    directory = RunDirectory(path, load_config("toy", overrides), active or plugins())
    OPEN.append(directory)
    return directory


def release() -> None:
    while OPEN:
        OPEN.pop().close()


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    release()


def text(value: str) -> Callable[[Path], None]:
    """Saves ``value`` as text.txt."""
    return lambda folder: (folder / "text.txt").write_text(value) and None


def read(folder: Path) -> str:
    return (folder / "text.txt").read_text()


def keep(directory: RunDirectory, name: str, value: str) -> str:
    return directory.artefact(name, lambda: value, lambda v, f: text(v)(f), read)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ostinato.run("toy", out, TOY)
    return out


# Artefacts


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


# Metrics


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


# Checkpoints


def test_the_last_checkpoint_replaces_the_one_before(out: Path) -> None:
    directory = opened(out)
    assert directory.load_checkpoint("s/policy", "p") is None
    for step in (9, 10):
        tensors = {"w": torch.full((2, 3), float(step)).t(), "n": torch.tensor(step)}
        directory.save_checkpoint("s/policy", "p", step, tensors, {"kl": 0.1 * step})
    directory.save_checkpoint("s/policy", "other", 1, {"w": torch.zeros(1)}, {})
    assert sorted(p.name for p in (out / "s/policy.checkpoints").iterdir()) == ["other-1", "p-10"]
    directory = opened(out)
    found = directory.load_checkpoint("s/policy", "p")
    assert found is not None
    step, loaded, facts = found
    assert (step, facts) == (10, {"kl": 1.0})
    assert torch.equal(loaded["w"], torch.full((3, 2), 10.0))
    assert int(loaded["n"]) == 10
    directory.drop_checkpoints("s/policy")
    assert directory.load_checkpoint("s/policy", "p") is None


def test_a_process_killed_while_it_dropped_the_checkpoint_before(out: Path) -> None:
    directory = opened(out)
    directory.save_checkpoint("s", "p", 2, {"w": torch.zeros(1)}, {})
    (out / "s.checkpoints" / "p-1").mkdir()  # half deleted
    found = directory.load_checkpoint("s", "p")
    assert found is not None
    assert found[0] == 2


def test_a_truncated_checkpoint_is_named(out: Path) -> None:
    directory = opened(out)
    directory.save_checkpoint("s", "p", 2, {"w": torch.zeros(100)}, {})
    bad = out / "s.checkpoints" / "p-2" / "tensors.safetensors"
    bad.write_bytes(bad.read_bytes()[:-4])
    with pytest.raises(UserError, match="is missing, truncated or changed") as caught:
        directory.load_checkpoint("s", "p")
    assert str(caught.value).startswith(str(bad))


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
    assert opened(out, "iterations=3", "backend.threads=2").resumed
    with pytest.raises(UserError, match="iterations was 3, is 2, and may only grow"):
        opened(out, "iterations=2")


def test_a_run_that_finished_nothing_gives_way_to_another_config(out: Path) -> None:
    opened(out, "rl.lr=1e-3")
    opened(out, "rl.lr=1e-4")
    assert "lr: 0.0001" in (out / "run.yaml").read_text()


def test_a_damaged_record(out: Path) -> None:
    opened(out)
    for damage in ("config: {", "config: 3", "", "- a"):
        (out / "run.yaml").write_text(damage)
        with pytest.raises(UserError, match="yaml: is damaged"):
            opened(out)


def test_a_second_process_is_turned_away(out: Path) -> None:
    opened(out)
    program = f"from ostinato.terminal.cli import app; app(['run', 'toy', '--out', {str(out)!r}])"
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr == f"{out}: another process is running in this folder\n"


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


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, which only root can have made."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError) as caught:
        opened(small_disk / "run")
    assert str(caught.value) == f"{small_disk / 'run'}: cannot be written: Read-only file system"


def test_a_full_disk_and_then_a_larger_one(small_disk: Path, whole: Path) -> None:
    size, out, said = 400, small_disk / "run", []
    for _ in range(40):
        try:
            ostinato.run("toy", out, TOY)
        except UserError as error:
            said.append(str(error))
            size += 700
            grow = ["mount", "-o", f"remount,size={size}k", str(small_disk)]
            subprocess.run(grow, check=True)
        else:
            break
    assert len(said) > 2
    assert all("the disk is full; free some space and run the same" in line for line in said)
    assert all(line.startswith(str(small_disk)) for line in said)
    assert differing(outcome(out), outcome(whole)) == []


WRITERS = [  # in the order in which a run comes to them
    "ostinato.models.policy.save_model",
    "ostinato.runs.directory.sync",
    "pathlib.Path.rename",
    "ostinato.data.preferences.write_arrow",
    "ostinato.models.reward_model.save_model",
    "ostinato.runs.directory.save_file",
]


def test_every_kind_of_write_may_meet_a_full_disk(
    out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for writer in WRITERS:
        monkeypatch.setattr(writer, fail)
        with pytest.raises(UserError, match="the disk is full; free"):
            ostinato.run("toy", out, TOY)
        monkeypatch.undo()
        assert list(out.rglob(".making-*/*")) == []
    ostinato.run("toy", out, TOY)
    assert differing(outcome(out), outcome(whole)) == []


def test_half_a_row_on_a_full_disk(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(out)
    metrics.write({"a": 1})
    with out.open("a") as file:
        file.write('{"b"')  # what a write that failed half way leaves
    metrics.write({"b": 2})
    assert out.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_words_of_libraries_that_wrap_the_systems_error() -> None:
    wrapped = Exception("Io(Os { code: 28, kind: StorageFull, message: No space left on device })")
    with pytest.raises(UserError, match="f: the disk is full"), disk.disk_errors(Path("f")):
        raise wrapped
    with pytest.raises(ZeroDivisionError), disk.disk_errors(Path("f")):
        raise ZeroDivisionError


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


def test_a_checkpoint_keeps_types_and_shapes(out: Path) -> None:
    tensors = {"step": torch.tensor(3.0), "m": torch.randn(2, 3), "i": torch.tensor([1, 2])}
    directory = opened(out)
    directory.save_checkpoint("s", "p", 1, tensors, {})
    found = directory.load_checkpoint("s", "p")
    assert found is not None
    for key, value in tensors.items():
        assert torch.equal(found[1][key], value)
        assert found[1][key].dtype == value.dtype
        assert found[1][key].shape == value.shape
