"""Plugins remember numbers, text and tensors; nothing of it is a pickle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file

import ostinato
from distributions import offered, plugin, write_distribution
from kill_runs import MICRO, differing, outcome
from ostinato import UserError
from ostinato.contract.plugins import activate
from ostinato.contract.state import parted, whole

NESTED = {
    "steps": 3,
    "name": "x",
    "none": None,
    "mean": torch.tensor(0.5, dtype=torch.float64),
    "moments": [torch.arange(6).view(2, 3), {"square": torch.tensor([True, False])}],
    "half": torch.ones(3, dtype=torch.bfloat16),
    "nothing": torch.empty(0, 4),
    "tuple": (1, torch.zeros(1)),
}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_nested_tensors_come_back_as_they_were():
    tensors = {}
    written = json.dumps(parted(NESTED, "mine", tensors))
    assert len(tensors) == 6
    assert same(NESTED, whole(json.loads(written), tensors))


def test_what_is_kept_is_a_copy_of_its_own():
    """A view of a larger one, a parameter, two names of one tensor: safetensors takes no such."""
    table = torch.arange(6.0).view(2, 3)
    weight = torch.nn.Parameter(torch.ones(2))
    tensors = {}
    parted({"column": table[:, 1], "again": table[:, 1], "weight": weight}, "mine", tensors)
    table.zero_()
    assert [x.tolist() for x in tensors.values()] == [[1.0, 4.0], [1.0, 4.0], [1.0, 1.0]]
    assert all(x.is_contiguous() and not x.requires_grad for x in tensors.values())
    assert len({x.data_ptr() for x in tensors.values()}) == 3


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"seen": {1, 2}}, "Object of type set is not JSON serializable"),
        ({0: torch.ones(1)}, "the key 0, which is no text"),
        ({"x": torch.ones(2).to_sparse()}, r"a torch\.float32 tensor in the layout torch\.sparse"),
        ({"x": [torch.ones(2) * 1j]}, r"a torch\.complex64 tensor"),
    ],
)
def test_what_neither_json_nor_safetensors_holds_names_the_plugin(monkeypatch, state, message):
    made = plugin(observe=lambda self: None)
    made.state_dict = lambda self: state
    offered(monkeypatch, made)
    with pytest.raises(UserError, match=message) as caught:
        activate([("made", {})], "test").state()
    assert str(caught.value).startswith(
        "plugin 'made' of a-test 1: its state_dict() should hold numbers, text, lists, mappings "
        "with text as keys, and tensors only: "
    )


def test_an_error_in_loading_a_state_names_the_plugin(monkeypatch):
    def load_state_dict(self, state):
        raise KeyError("mean")

    made = plugin(observe=lambda self: None)
    made.state_dict, made.load_state_dict = (lambda self: {}), load_state_dict
    offered(monkeypatch, made)
    plugins = activate([("made", {})], "test")
    with pytest.raises(KeyError) as caught:
        plugins.load_state(*plugins.state())
    assert caught.value.__notes__[0].startswith("in plugin 'made', its load_state_dict(state) (")


REMEMBERS = """
    from dataclasses import replace

    import torch

    from ostinato import hookimpl


    class Remembers:
        "A whitening of rewards by running moments, which lie in nested tensors."

        def __init__(self):
            self.state = {"count": 0, "moments": [torch.zeros(2, dtype=torch.float64)]}
            self.state["last"] = {"scores": torch.zeros(0)}

        @hookimpl
        def reward_transform(self, rewards):
            score = rewards.score.double()
            new = torch.stack([score.mean(), score.square().mean()])
            self.state["moments"] = [0.9 * self.state["moments"][0] + 0.1 * new]
            self.state["count"] += 1
            earlier = self.state["last"]["scores"]
            self.state["last"] = {"scores": rewards.score[: self.state["count"]].clone()}
            shift = self.state["moments"][0][0] + earlier.sum()
            return replace(rewards, score=rewards.score - shift.float())

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = state
    """


def test_a_state_of_tensors_survives_a_kill(tmp_path, monkeypatch):
    """kill -9 behind the second checkpoint of the policy; and nowhere is a pickle."""
    write_distribution(tmp_path, "remembers_plugin", REMEMBERS, {"remembers": "Remembers"})
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = [*(s for s in MICRO if not s.startswith("plugins")), "plugins=[concat, remembers]"]
    settings += ["iterations=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ostinato.run("toy", whole, settings)
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(tmp_path)!r})
        import ostinato
        from ostinato.runs.directory import RunDirectory

        write = RunDirectory.save_checkpoint

        def last(self, stage, name, step, *rest):
            write(self, stage, name, step, *rest)
            if step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        RunDirectory.save_checkpoint = last
        ostinato.run("toy", {str(killed)!r}, {settings!r})
        """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (checkpoint,) = (killed / "iteration-1" / "policy.checkpoints").iterdir()
    assert len(load_file(checkpoint / "plugins.safetensors")) == 2
    ostinato.run("toy", killed, settings)
    assert differing(outcome(killed), outcome(whole)) == []
    assert (whole / "iteration-1" / "policy" / "plugins.safetensors").exists()
    kinds = {file.suffix for file in whole.rglob("*") if file.is_file() and file.name != "lock"}
    assert kinds <= {".arrow", ".html", ".json", ".jsonl", ".safetensors", ".yaml"}
