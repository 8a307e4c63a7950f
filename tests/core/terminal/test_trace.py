"""``ostinato check --trace``: every hook call of a micro run, as a newcomer reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ostinato.config.reading import load_config
from ostinato.engine.session import check
from ostinato.terminal.cli import app
from ostinato.terminal.trace import micro

pytestmark = pytest.mark.slow
MINE = '''\
from dataclasses import replace

import ostinato


class Mine:
    """Two hooks."""

    @ostinato.hookimpl
    def reward_transform(self, rewards):
        if rewards.iteration == 2:
            raise KeyError("no such beta")
        return replace(rewards, score=rewards.score - 0.5)

    @ostinato.hookimpl
    def observe(self, event):
        pass
'''


def traced(monkeypatch: pytest.MonkeyPatch, plugins: str, *arguments: str) -> Result:
    """The command, run where a terminal is 100 columns wide."""
    monkeypatch.setenv("COLUMNS", "100")
    command = ["check", *(arguments or ["toy"]), "--trace", f"--set=plugins={plugins}"]
    return CliRunner().invoke(app, command)


def lines_of(output: str) -> list[list[list[str]]]:
    """The cells of each line of the tables, iteration by iteration."""
    parts = re.split(r"\nIteration \d\n", output.partition("\nWhat they held")[0])[1:]
    return [
        [re.split(r" {2,}", line.strip()) for line in part.splitlines() if line] for part in parts
    ]


ALGORITHM_1 = [  # and what the core asks inside, in the order of docs/architecture.md
    "label",
    "combine_data",
    "preference_loss ×2",
    "combine_rm",
    "init_policy",
    "policy_algorithm",
    *("kl_coefficient", ".advantages", ".loss") * 2,
]


def test_the_default_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = traced(monkeypatch, "[]")
    assert made.exit_code == 0, made.output
    assert max(map(len, made.stdout.splitlines())) <= 100
    both = lines_of(made.stdout)
    assert len(both) == 2
    for k, lines in enumerate(both, start=1):
        head, *rows = lines
        assert head == ["hook", "plugin", "given → answered", "magnitude"]
        rows = [row for row in rows if len(row) > 2 or row[0] in ALGORITHM_1]
        assert [row[0] for row in rows] == ALGORITHM_1
        told = {row[0]: row[1:] for row in rows}
        assert told["label"][:2] == ["gold_labels", "comparisons 12 rows → 12 numbers"]
        sets = ", ".join(["8 rows"] * k)
        assert told["combine_data"] == ["concat", f"datasets [{sets}] → {8 * k} rows", str(8 * k)]
        assert told["preference_loss ×2"][1].endswith("→ (1, 8)")
        assert float(told["preference_loss ×2"][2]) > 0
        assert told["kl_coefficient"] == ["fixed_kl", "kl 0, step 1 → 0.03", "0.03"]
        assert told[".advantages"][1] == "rollout Rollout → [(8, 10), (8, 10)]"
    held = " ".join(made.stdout.partition("\nWhat they held")[2].split())
    assert "Samples tokenizer" in held
    assert "response_ids (8, 10) int64" in held
    assert "pairs (8, 2) int64, label (8,)" in held
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_with_a_plugin_of_its_own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls inside another are indented; each plugin stands in the run file's order."""
    listed = (
        "[concat, {strength: {models: 1}}, {flip: {lowest: 0.25}}, {reward_heads: {heads: 2}}, "
    )
    made = traced(monkeypatch, f"{listed}simcse, sharpe, agreement, grpo]")
    assert made.exit_code == 0, made.output
    first = made.stdout.partition("\nIteration 1\n")[2].partition("\nIteration 2\n")[0]
    hooks = re.findall(r"^  ((?:  )*)([.\w]+)(?: ×\d+)?  +(\w+)  ", first, re.M)
    assert ("", "train_rm", "reward_heads") in hooks
    inner = [(hook, plugin) for depth, hook, plugin in hooks if depth == "  "]
    assert inner[0] == ("preference_loss", "bradley_terry")
    assert ("rm_loss", "simcse") in inner
    chain = [plugin for _, hook, plugin in hooks if hook == "refine_data"]
    assert chain == ["strength", "flip"]
    assert re.search(r"\.advantages +grpo +rollout Rollout → .* 0\.\d+$", first, re.M)
    assert re.search(r"evaluate +agreement +→ \{accuracy: ", first)


def test_what_went_before_an_error_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    made = traced(monkeypatch, f"[{tmp_path}/mine.py:Mine]")
    assert made.exit_code == 1
    assert made.stderr.startswith(
        "An error in plugin 'Mine', hook 'reward_transform' (mine.py, line "
    )
    assert "observe  Mine    event run_started\n" in made.stdout
    assert re.search(r"Mine +rewards RewardBatch → RewardBatch +0\.5\n", made.stdout)
    assert re.search(r"Mine +rewards RewardBatch → \(raised an error\)\n", made.stdout)


def test_where_people_are_waited_for_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = traced(monkeypatch, "[file_labels]")
    assert made.exit_code == 0, made.output
    assert "file_labels  comparisons 12 rows → (waits for people, which ends the" in made.stdout
    assert "combine_data" not in made.stdout.partition("Iteration 1")[2]


def test_the_models_are_toys_and_the_rest_is_the_runs_own(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        """
policy: {model: org/large, value: separate}
reward_model: {model: org/large, members: 2, epochs: 3, warmup: 9, unit: sft_std}
prompts: {data: org/prompts, fresh: true, template: "{question}"}
sft: {data: org/texts}
preferences: {responses: 3}
rl: {rollout_size: 96, minibatch: 32, accumulate: 4}
plugins: [k_wise, file_labels, {grpo: {responses: 3}}]
"""
    )
    config = load_config(file)
    small, toy = micro(config, check(config, "run.yaml")), load_config("toy")
    assert small.policy == toy.policy.model_copy(update={"value": "separate"})
    assert (small.reward_model.model, small.reward_model.members) == (toy.reward_model.model, 2)
    assert (small.reward_model.updates, small.reward_model.unit) == (2, "sft_std")
    assert (small.prompts.data, small.prompts.fresh) == (toy.prompts.data, True)
    assert small.prompts.template == "{prompt}"
    assert (small.sft, small.gold) == (None, None)
    assert small.preferences.responses == 3
    assert (small.rl.rollout_size, small.rl.minibatch) == (9, 9)
    assert small.plugins == config.plugins
