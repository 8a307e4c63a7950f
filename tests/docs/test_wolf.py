"""The run file at the paper's scale: checked without a network, and run with tiny random models."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ostinato.config.reading import load_config
from ostinato.engine.session import check


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_check_passes_without_a_network(docs, no_network):
    path = docs / "run-files" / "wolf.yaml"
    config = load_config(path)
    owners = check(config, str(path)).owners
    assert (owners["combine_data"], owners["policy_algorithm"]) == ("concat", "ppo")
    updates = config.rl.rollouts * config.rl.epochs * config.rl.rollout_size // config.rl.minibatch
    assert updates == 6016  # the paper's 6000, in whole rollouts


@pytest.mark.slow
def test_same_file_runs_with_tiny_random_models(docs, tmp_path):
    (tmp_path / "docs").symlink_to(docs)
    scripts = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-eu", "docs/run-files/tiny.sh"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "wolf-tiny"
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    summaries = [row for row in rows if row["kind"] == "iteration"]
    assert [row["iteration"] for row in summaries] == [1, 2]
    assert all(row["gap"] is not None and row["kl"] > 0 for row in summaries)
    assert json.loads((run / "iteration-2/policy/config.json").read_text())["hidden_size"] == 32
