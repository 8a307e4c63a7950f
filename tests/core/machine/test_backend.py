"""Device, dtype and threads of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ostinato.config.errors import UserError
from ostinato.config.sections import BackendSection
from ostinato.machine.backend import Backend


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def product(backend):
    with backend.autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_a_cpu_runs_in_fp32_unless_told_otherwise():
    assert product(Backend(BackendSection(device="cpu"))) == torch.float32
    assert product(Backend(BackendSection(device="cpu", dtype="bf16"))) == torch.bfloat16


@pytest.mark.parametrize(
    ("flags", "dtype", "warned"),
    [
        ("flags : fpu avx2 avx512f", "bf16", True),
        ("flags : fpu avx2 avx512f", "fp32", False),
        ("flags : fpu avx512_bf16 avx512f", "bf16", False),
        ("flags : fpu amx_bf16 amx_tile", "bf16", False),
        ("Features : fp asimd i8mm bf16", "bf16", False),
        (None, "bf16", False),  # no such file: not Linux
    ],
)
def test_bf16_without_its_instructions_is_said_to_be_slow(monkeypatch, flags, dtype, warned):
    def read(path, **_):
        if flags is None:
            raise FileNotFoundError
        return flags

    monkeypatch.setattr(Path, "read_text", read)
    said = str(Backend(BackendSection(device="cpu", dtype=dtype, threads=1)))
    assert said.startswith(f"cpu, {dtype}, 1 thread")
    assert said.endswith("no instructions for bf16, so it will be slower than fp32") == warned


def test_a_second_run_in_one_process_may_have_another_dtype():
    first = Backend(BackendSection(device="cpu", dtype="bf16"))
    second = Backend(BackendSection(device="cpu"))
    assert (first.dtype, second.dtype) == ("bf16", "fp32")
    assert product(second) == torch.float32


def test_threads_are_the_settings():
    backend = Backend(BackendSection(device="cpu", threads=1))
    assert torch.get_num_threads() == backend.threads == 1
    assert str(backend) == "cpu, fp32, 1 thread"


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, 3), ("2", 2), ("5,2", 5), ("", 3), ("0", 3), ("all", 3)]
)
@pytest.mark.parametrize("system", ["linux", "macos"])
def test_threads_are_those_of_openmp_or_every_core(monkeypatch, asked, expected, system):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    if system == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 4, 6})
    else:
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert Backend(BackendSection(device="cpu")).threads == torch.get_num_threads() == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator here")
def test_a_gpu_that_is_not_there_is_one_sentence():
    with pytest.raises(UserError, match=r"backend\.device: 'gpu' is asked for, but torch finds"):
        Backend(BackendSection(device="gpu"))


def test_bf16_bounds_the_ratio_of_the_first_minibatch(policies, function_reward):
    rl = {"rollouts": 1, "rollout_size": 8, "minibatch": 4, "epochs": 1, "lr": 1e-8}
    kit = policies.make("llama", ["ppo"], rl=rl)
    kit.config.backend.dtype = "bf16"
    optimise = kit.engine([[100, 101], [104], [105]])
    optimise(kit.policy(), function_reward(lambda s: s.lengths.float()))
    assert kit.rows[0]["kl"] == 0.0
    assert kit.rows[0]["terms"]["log/ratio"] == pytest.approx(1.0, abs=0.02)


def test_terms_of_the_policy_loss_are_in_bf16_too(policies, function_reward, monkeypatch):
    kit = policies.make(
        "llama", ["ppo"], rl={"rollouts": 1, "rollout_size": 4, "minibatch": 4, "epochs": 1}
    )
    kit.config.backend.dtype = "bf16"
    seen, each = [], kit.plugins.each

    def watched(hook, **arguments):
        seen.extend([(torch.ones(2, 2) @ torch.ones(2, 2)).dtype] * (hook == "policy_loss"))
        yield from each(hook, **arguments)

    monkeypatch.setattr(kit.plugins, "each", watched)
    kit.engine([[100, 101]])(kit.policy(), function_reward(lambda s: s.lengths.float()))
    assert seen == [torch.bfloat16]
