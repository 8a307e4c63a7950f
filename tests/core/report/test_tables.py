"""Numbers and texts as tables show them."""

from __future__ import annotations

import pytest

from ostinato.report.tables import number, readable, spread


@pytest.mark.parametrize(
    ("values", "text"), [([], "–"), ([0.5], "+0.50"), ([1.0, 2.0, 3.0], "+2.00 ± 1.00")]
)
def test_spread(values: list[float], text: str) -> None:
    assert spread(values, "+.2f") == text


def test_no_response_commands_the_terminal() -> None:
    assert readable("a\x1b[2J b\x00\n\tc\u202e é") == "a·[2J b· c· é"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.004, "+0.00"), (-0.004, "0.00"), (-1.5, "-1.50")]
)
def test_number(value: float | None, text: str) -> None:
    assert number(value, "+.2f") == text
