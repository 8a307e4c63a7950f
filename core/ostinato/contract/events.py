"""What a run tells to whoever watches: the console, trackers, plugins with ``observe``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EventKind = Literal[
    "run_started",  # data: config, plugins, directory, resumed
    "stage_started",  # data: stage, total (steps, or 0 when unknown)
    "stage_advanced",  # data: stage, plus what the step logged
    "stage_finished",  # data: stage, seconds, reused
    "kept",  # data: row; a plugin keeps the policy of this rollout
    "stopped",  # data: row; a plugin ends the policy's optimisation
    "evaluated",  # data: the eval row
    "iteration_finished",  # data: the summary row
    "run_finished",  # data: directory, seconds, rows (one summary an iteration)
]


@dataclass(frozen=True)
class Event:
    """One happening; ``iteration`` counts from 1, ``step`` in rollouts or optimiser steps."""

    kind: EventKind
    iteration: int = 0
    step: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
