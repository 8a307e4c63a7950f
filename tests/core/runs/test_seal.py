"""done.json: whatever is not as the run wrote it is found, done.json itself included."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import ostinato
from ostinato import UserError
from ostinato.runs.seal import SEAL, seal, unsealed
from run_kit import TOY, keep, opened


def test_every_flip_of_one_bit_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tensors.safetensors").write_bytes(b"weights")
    facts = {"kl": 0.25, "updates": 3, "plugins": {"states": {"drift": {"offset": -1e-7}}}}
    seal(tmp_path, {"metrics": {"bytes": 9, "sha256": "ab"}, "facts": facts, "step": 2})
    path = tmp_path / SEAL
    good = path.read_bytes()
    assert unsealed(tmp_path)["facts"] == facts
    for place in range(len(good)):
        for bit in range(8):
            changed = bytearray(good)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(UserError) as caught:
                unsealed(tmp_path)
            assert str(caught.value) == (
                f"{path}: is missing, truncated or changed since the run wrote it; restore it, or "
                f"delete {tmp_path} and what was made after it to compute it again"
            )


@pytest.mark.parametrize("content", ["", "[]", "3", "null", '{"sha256": 1}', "{" * 2000])
def test_anything_else_in_its_place(content: str, tmp_path: Path) -> None:
    (tmp_path / SEAL).write_text(content)
    with pytest.raises(UserError, match=r"done\.json: is missing, truncated or changed"):
        unsealed(tmp_path)


@pytest.mark.parametrize("stranger", ["member-1/config.json", "config.json", "empty/"])
def test_what_it_does_not_list_is_refused(stranger: str, out: Path) -> None:
    keep(opened(out), "iteration-1/combined", "a text")
    place = out / "iteration-1/combined" / stranger
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir() if stranger.endswith("/") else place.write_text("{}")
    named = out / "iteration-1/combined" / stranger.split("/")[0]
    with pytest.raises(UserError) as caught:
        keep(opened(out), "iteration-1/combined", "x")
    assert str(caught.value) == f"{named}: was not written by the run; move it to another place"
    shutil.rmtree(named) if named.is_dir() else named.unlink()
    (named.parent / ".DS_Store").touch()  # a desktop's own: nothing of a run is read from it
    assert keep(opened(out), "iteration-1/combined", "x") == "a text"


def test_a_reward_model_copied_into_combined_does_not_become_the_reward(
    whole: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(
        out / "iteration-1/reward_model",
        out / "iteration-1/combined",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(SEAL),
    )
    with pytest.raises(UserError, match=r"combined/config\.json: was not written by the run"):
        ostinato.run("toy", out, TOY)


def test_files_have_the_permissions_that_the_umask_gives(out: Path) -> None:
    before = os.umask(0o027)
    try:
        opened(out).save_checkpoint("s", "p", 1, {"w": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (out / "s.checkpoints/p-1").iterdir()}
    assert modes == {SEAL: 0o640, "tensors.safetensors": 0o640}
