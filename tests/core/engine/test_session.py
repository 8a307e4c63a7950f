"""What a session hands on: the run's stop token, its prompts as text, its dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import enable_progress_bars
from transformers import AutoTokenizer

import ostinato
from distributions import offered
from ostinato.config.reading import load_config
from ostinato.engine.session import Session, check

SMALL = [
    "iterations=1",
    "reward_model.updates=2",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=4",
    "rl.epochs=1",
    "backend.threads=1",
    "backend.device=cpu",
]


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_the_reward_model_knows_the_stop_token_of_the_run(tmp_path: Path) -> None:
    config = load_config("toy", [*SMALL, "generation.stop='.'"])
    with Session(config, check(config, "toy"), tmp_path) as session:
        stop = session.tokenizer.get_vocab()["."]
        assert stop != session.tokenizer.eos_token_id
        assert session.initial_reward_model.stop == stop


def test_the_ruler_keeps_the_prompts_of_the_file(tmp_path: Path) -> None:
    """The policy knows no capital letter, nor any space but one."""
    world = load_config("toy")
    rows = [json.loads(line) for line in Path(world.prompts.data).read_text().splitlines()]
    texts = ["  ".join(row["prompt"].split()) for row in rows]
    data = tmp_path / "prompts.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    config = load_config("toy", [*SMALL, f"prompts.data={data}"])
    plugins = check(config, "toy")
    for _ in ("made", "loaded"):
        with Session(config, plugins, tmp_path / "run") as session:
            found = session.ruler.evaluation.prompts + session.ruler.rl.prompts
            assert len(found) == 16
            assert set(found) <= set(texts)


def test_a_plugin_may_check_what_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, whoever is listed, and the defaults of hooks that nobody owns."""

    class Shy:
        @ostinato.hookimpl
        def after_rollout(self) -> None:
            """Does nothing."""

        def check_run(self, plugins: dict[str, Any]) -> list[str]:
            steps = plugins["ppo"].responses_per_prompt
            known = [name for name in ("centre", "ppo", "grpo") if name in plugins]
            return [f"made stands beside {known}, {plugins['centre'].config.weight}, {steps}"]

    offered(monkeypatch, Shy)
    config = load_config("toy", ["plugins=[made, {centre: {weight: 0.25}}]"])
    with pytest.raises(ostinato.UserError) as caught:
        check(config, "toy")
    assert str(caught.value) == "toy: made stands beside ['centre', 'ppo'], 0.25, 1"


def test_no_bar_of_a_library_is_among_the_lines_of_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A column that is added to chosen rows makes `datasets` copy them, and say so."""
    enable_progress_bars()
    listed = "plugins=[sample_data, {strength: {models: 1}}, {flip: {lowest: 0.5}}]"
    ostinato.run("toy", tmp_path, [*SMALL, listed, "iterations=2"])
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_run_in_bf16_on_a_cpu(tmp_path: Path) -> None:
    ostinato.run("toy", tmp_path, [*SMALL, "backend.dtype=bf16", "rl.lr=1e-9"])
    policy = rows_of(tmp_path, "policy")
    assert len(policy) == 2
    for row in policy:  # the policy has not moved: what is left of the ratio is rounding
        assert row["terms"]["log/ratio"] == pytest.approx(1.0, abs=0.03)
    (last,) = rows_of(tmp_path, "iteration")
    assert 0 <= last["gold_wins"] <= 1
    folder = tmp_path / "iteration-1" / "policy"
    assert AutoTokenizer.from_pretrained(folder).eos_token_id is not None
    model = ostinato.Policy.load_checkpoint(folder, 1.0)
    assert all(p.dtype == torch.float32 for p in model.parameters())
