"""Checkpoints of an unfinished policy: which one is loaded, when one is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato import UserError
from ostinato.runs.checkpoints import Schedule
from run_kit import opened


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


NAMES = ["policy-warmup", "policy", "policy-1", "run [1]", "a/b", "..", "évaluation*"]


def test_no_name_stands_in_the_way_of_another(out: Path) -> None:
    directory = opened(out)
    for step, name in enumerate(NAMES, start=1):
        assert directory.load_checkpoint("s", name) is None
        for at in (step, 10 + step):
            directory.save_checkpoint("s", name, at, {"w": torch.tensor(float(at))}, {})
    for step, name in enumerate(NAMES, start=1):
        found = directory.load_checkpoint("s", name)
        assert found is not None
        assert (found[0], float(found[1]["w"])) == (10 + step, 10.0 + step)
    assert len(list((out / "s.checkpoints").iterdir())) == len(NAMES)


def test_somebodys_copy_of_a_checkpoint_is_passed_over(out: Path) -> None:
    directory = opened(out)
    directory.save_checkpoint("s", "policy", 2, {"w": torch.zeros(1)}, {})
    (out / "s.checkpoints/policy-2").rename(out / "s.checkpoints/policy-old")
    assert directory.load_checkpoint("s", "policy") is None
    directory.save_checkpoint("s", "policy", 3, {"w": torch.zeros(1)}, {})
    found = directory.load_checkpoint("s", "policy")
    assert found is not None
    assert found[0] == 3


def test_tensors_come_back_aligned_as_fresh_ones_are(out: Path) -> None:
    directory = opened(out)
    tensors = {f"w{n}": torch.randn(n) for n in (1, 3, 5, 7, 9)}
    directory.save_checkpoint("s", "p", 1, tensors, {})
    found = directory.load_checkpoint("s", "p")
    assert found is not None
    assert [t.data_ptr() % 64 for t in found[1].values()] == [0] * 5


class Sized:
    """A policy with so many parameters, none of which takes memory."""

    def __init__(self, parameters: int) -> None:
        with torch.device("meta"):
            self.lm = torch.nn.Linear(parameters, 1, bias=False)


def due(every: Any, parameters: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rollouts after which a policy is saved, where each takes a minute."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    schedule = Schedule(every, Sized(parameters))  # type: ignore[arg-type]
    found = []
    for step in range(1, 13):
        now[0] += 60
        if schedule.due(step):
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("every", "parameters", "expected"),
    [
        (3, 1, [3, 6, 9, 12]),
        (3, 60_000_000, [3, 6, 9, 12]),
        ("4 min", 1, [4, 8, 12]),
        ("150 s", 60_000_000, [3, 6, 9, 12]),
        ("0.1 h", 1, [6, 12]),
        ("1 s", 1, list(range(1, 13))),
        (None, 49_999_999, list(range(1, 13))),
        (None, 50_000_000, [5, 10]),
    ],
)
def test_when_a_checkpoint_is_due(
    every: Any, parameters: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert due(every, parameters, monkeypatch) == expected
