"""Where it runs: accelerate chooses device and dtype; nothing else in the core names a device."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ostinato.config.errors import UserError
from ostinato.config.sections import BackendSection


class Backend:
    """Device, dtype and autocast of a run. Weights stay fp32; bf16 is autocast's, on a GPU."""

    def __init__(self, settings: BackendSection) -> None:
        if settings.device == "gpu" and not torch.accelerator.is_available():
            raise UserError("backend.device: 'gpu' is asked for, but torch finds none")
        cpu = settings.device == "cpu" or not torch.accelerator.is_available()
        dtype = settings.dtype if settings.dtype != "auto" else ("fp32" if cpu else "bf16")
        AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if dtype == "bf16" else "no")
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"backend: {self.accelerator.num_processes} processes were launched, but a run "
                "uses one; start it without a distributed launcher"
            )
        self.dtype = dtype
        self.device: torch.device = self.accelerator.device
        self.threads = settings.threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(self.threads)

    def autocast(self) -> AbstractContextManager[None]:
        """The mixed precision of forward passes; does nothing in fp32."""
        made: AbstractContextManager[None] = self.accelerator.autocast()
        return made

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.device.type}, {self.dtype}, {threads}"
