"""Where it runs: accelerate chooses device and dtype; nothing else in the core names a device."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ostinato.config.errors import UserError
from ostinato.config.sections import BackendSection

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's word for it


class Backend:
    """Device, dtype and autocast of a run. Weights stay fp32; bf16 is autocast's."""

    def __init__(self, settings: BackendSection) -> None:
        if settings.device == "gpu" and not torch.accelerator.is_available():
            raise UserError("backend.device: 'gpu' is asked for, but torch finds none")
        cpu, dtype = chosen(settings)
        AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if dtype == "bf16" else "no")
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"backend: {self.accelerator.num_processes} processes were launched, but a run "
                "uses one; start it without a distributed launcher"
            )
        self.dtype = dtype
        self.device: torch.device = self.accelerator.device
        # the mixed precision of forward passes; does nothing in fp32
        self.autocast: Callable[[], AbstractContextManager[None]] = self.accelerator.autocast
        self.threads = settings.threads or default_threads()
        torch.set_num_threads(self.threads)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.device.type}, {self.dtype}, {threads}{caution(self.device.type, self.dtype)}"


def chosen(settings: BackendSection) -> tuple[bool, str]:
    """Whether it will run on the CPU, and in which dtype."""
    cpu = settings.device == "cpu" or not torch.accelerator.is_available()
    return cpu, settings.dtype if settings.dtype != "auto" else ("fp32" if cpu else "bf16")


def caution(device: str, dtype: str) -> str:
    """What a person should know of bf16 where the CPU only imitates it; Linux alone says so."""
    try:
        known = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return ""
    slow = device == "cpu" and dtype == "bf16" and known.isdisjoint(BF16)
    return "; this CPU has no instructions for bf16, so it will be slower than fp32" if slow else ""


def default_threads() -> int:
    """What OMP_NUM_THREADS says (its first level), else every core that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked):
        return int(asked)
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(allowed(0)) if allowed else os.cpu_count() or 1
