"""Runs in the micro world, of classes as of installed plugins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ostinato import UserError, hookimpl
from ostinato.contract.discovery import discover
from ostinato.testing import configured, run
from ostinato.testing.micro import listed, name_of
from ostinato_plugins.losses.centre import Centre


class Times:
    """Multiply rewards."""

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        by: float = Field(2.0, description="factor")

    @hookimpl
    def reward_transform(self, rewards):
        return replace(rewards, score=self.config.by * rewards.score)


def test_a_class_runs_beside_installed_plugins(tmp_path):
    made = run(["worst_case", {Times: {"by": 3.0}}], tmp_path / "run", rl={"rollouts": 1})
    assert made.directory == tmp_path / "run"
    assert len(made.iterations) == 2
    rows = [row for row in made.metrics if row["kind"] == "policy"]
    assert len(rows) == 2
    for row in rows:
        assert row["actions"]["Times.reward_transform"] > 0
        assert row["reward"] == pytest.approx(3 * row["score"], abs=1e-5)


def test_a_run_without_a_folder_has_one_of_its_own():
    first, second = run(iterations=1), run(iterations=1)
    assert first.directory != second.directory
    assert (first.directory / "metrics.jsonl").exists()


def test_classes_are_known_inside_only():
    with listed([Times, {Centre: {"weight": 0.5}}]) as entries:
        assert entries == [{"Times": {}}, {"centre": {"weight": 0.5}}]
        assert discover()["Times"][0].load() is Times
        assert discover()["centre"][0].built_in
    assert "Times" not in discover()
    assert (name_of(Centre), name_of(Times), name_of("x")) == ("centre", "Times", "x")


def test_an_instance_has_its_settings():
    assert configured(Times, by=4).config.by == 4.0
    with pytest.raises(UserError, match=r"plugins\.Times\.bye: unknown key; did you mean 'by'"):
        configured(Times, bye=4)
