"""The learning rate of each update; the updates themselves are tested with the trainer."""

from __future__ import annotations

import math

import pytest

from ostinato.config.sections import RLSection
from ostinato.engine.policy_update import learning_rate


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_schedules(schedule):
    settings = RLSection(lr=1.0, lr_final=0.2, schedule=schedule, rollouts=2)
    places = [(0, 0, 2), (0, 1, 2), (1, 0, 7), (1, 2, 4), (2, 0, 3)]  # rollout, update, of how many
    found = [learning_rate(settings, *place) for place in places]
    wanted = {
        "linear": [1.0, 0.8, 0.6, 0.4, 0.2],
        "cosine": [0.2 + 0.4 * (1 + math.cos(math.pi * i / 4)) for i in range(5)],
        "constant": [1.0] * 5,
    }
    assert found == pytest.approx(wanted[schedule])
