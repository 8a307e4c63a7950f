"""Runs whose reward is made of no reward model: what they leave out, and what they still can do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

import ostinato
from distributions import offered, plugin
from kill_runs import Crash, crash_at, differing, outcome
from ostinato import Reward, RewardModel, Scores, UserError, load_config
from ostinato.contract.plugins import activate
from ostinato.engine.session import check
from ostinato.terminal.cli import app
from ostinato_worlds.toy import POLICY, PROMPTS

MICRO = [
    "iterations=2",
    "prompts.evaluation=8",
    "rl.rollouts=4",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "evaluation.every=2",
    "checkpoint_every=1",
]
TRAINING = ("gold_training_std", "proxy_training_std", "gap_training_std")
RULES = """
def length(completions):
    return [len(text) / 20 for text in completions]


def topic(prompts, completions, **columns):
    return [float(p.split()[1] in c) for p, c in zip(prompts, completions, strict=True)]


def nan(completions):
    return [float("nan")] * len(completions)


def few(completions):
    return [1.0]


def none(completions):
    return [None] * len(completions)


def fails(completions):
    raise ZeroDivisionError("by hand")


def late(prompts, completions):
    return [1 / (len(prompts) < 3)] * len(prompts)
"""


@pytest.fixture
def folder(tmp_path):
    """A run file on the toy world without a reward model, beside its rules."""
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    run_file(tmp_path, "rules.py:length", "./rules.py:topic")
    return tmp_path


def run_file(folder, *functions, **more):
    settings = {"functions": list(functions)}
    source = {"world": "toy", "reward_model": {"model": None}}
    source |= {"plugins": [{"function_reward": settings}]}
    (folder / "run.yaml").write_text(json.dumps(source | more), encoding="utf-8")


def command(folder, *said):
    sets = [part for text in MICRO for part in ("--set", text)]
    return [sys.executable, "-m", "ostinato", *said, str(folder / "run.yaml"), *sets]


def test_a_killed_run_from_the_command_line_ends_with_the_same_rows(folder):
    whole, cut = folder / "whole", folder / "cut"
    done = subprocess.run(
        [*command(folder, "run"), "--out", str(whole)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "reward model      none: the reward needs none, so no pairs are labelled" in done.stdout
    assert "gold_labels" not in done.stdout
    process = subprocess.Popen([*command(folder, "run"), "--out", str(cut)], stdout=-3, stderr=-3)
    policy = cut / "iteration-1" / "policy.checkpoints"
    while not policy.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cut / "iteration-2" / "policy").exists()
    again = subprocess.run(
        [*command(folder, "run"), "--out", str(cut)], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert differing(outcome(cut), outcome(whole)) == ["report.html"]  # it names its folder
    made = sorted(p.name for p in (whole / "iteration-2").iterdir())
    assert made == ["combined", "policy", "policy_init"]
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"actions", "eval", "policy", "iteration"}
    acted = {key for row in rows for key in row.get("actions", {})}
    assert acted == {
        "function_reward.combine_rm",
        "from_sft.init_policy",
        "ppo.policy_algorithm",
        "fixed_kl.kl_coefficient",
    }
    ends = [row for row in rows if row["kind"] == "iteration"]
    for row in ends:
        unknown = {"accuracy", "accuracy_labels", *TRAINING}
        assert {key for key, value in row.items() if value is None} == unknown
        assert (row["latest_wins"], row["gap_latest"]) == (row["proxy_wins"], row["gap"])


@pytest.mark.parametrize("function", ["nan", "few", "none", "fails", "missing", "late"])
def test_a_wrong_function_is_a_sentence_that_names_its_file(folder, function):
    run_file(folder, "rules.py:length", f"rules.py:{function}")
    said = {
        "nan": "answered nan for response 0, expected a number that is finite",
        "few": "answered 1 numbers for 2 responses",
        "none": "answered None for response 0, expected a number",
        "fails": "failed: ZeroDivisionError: by hand",
        "missing": "'missing'",
        "late": "failed: ZeroDivisionError: division by zero",
    }[function]
    words = ["run"] if function == "late" else ["check", "run"]
    for word in words:
        out = ["--out", str(folder / "out")] if word == "run" else []
        found = CliRunner().invoke(app, [*command(folder, word)[3:], *out])
        assert found.exit_code == 2
        (line,) = found.stderr.splitlines()
        assert str(folder / "rules.py") in line
        assert said in line
        if function != "late":  # that one is right of the two responses that it is tried on
            assert line.startswith(f"{folder / 'run.yaml'}: plugins.function_reward.functions: ")
            assert not (folder / "out").exists()


def test_a_run_needs_no_reward_model_no_gold_and_few_prompts(tmp_path):
    """No world: its policy, 40 prompts, and a rule that reads a further column of them."""
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[:40]
    rows = [json.loads(line) | {"wanted": i % 3} for i, line in enumerate(prompts)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "rules.py").write_text(
        "def dots(completions, wanted):\n"
        "    return [-abs(c.count('.') - w) for c, w in zip(completions, wanted, strict=True)]\n"
    )
    source = {
        "policy": {"model": str(POLICY)},
        "prompts": {"data": "prompts.jsonl"},
        "generation": {"max_new_tokens": 12},
        "plugins": [{"function_reward": {"functions": ["rules.py:dots"]}}],
        "backend": {"threads": 1},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(source), encoding="utf-8")
    settings = [*MICRO, "prompts.evaluation=4", "iterations=1"]
    run = ostinato.run(tmp_path / "run.yaml", tmp_path / "run", settings)
    (row,) = run.iterations
    assert row["gap"] is row["gold_wins"] is row["accuracy"] is None
    assert 0 <= row["proxy_wins"] <= 1
    config = load_config({**source, "prompts": {"data": str(tmp_path / "prompts.jsonl")}})
    labelled = config.model_copy(update={"plugins": []})
    with pytest.raises(UserError, match="reward_model: has neither model nor random, and no world"):
        check(labelled, "run")


class Words(Reward):
    def scores(self, samples):
        return Scores(torch.tensor([float(len(r.split())) for r in samples.responses]))


def without(**more):
    """A plugin that owns combine_rm and needs no reward model, with what else is given."""
    made = plugin(combine_rm=lambda self, reward_models: Words())
    return type("Made", (made,), {"reward_models": False, "__doc__": "Words.", **more})


def rule(monkeypatch, **more):
    offered(monkeypatch, without(**more))


@pytest.mark.parametrize(
    "hook",
    ["train_rm", "rm_loss", "meta_update", "refine_data", "select_comparisons", "draw_responses"],
)
def test_who_learns_from_labels_gets_them(monkeypatch, hook):
    rule(monkeypatch)
    assert not activate([("made", {})], "run").learn_rewards
    found = activate([("made", {}), ("sharpe", {})], "run")
    assert not found.learn_rewards  # it has nothing to do with labels
    rule(monkeypatch, **{hook: ostinato.hookimpl(lambda self: None)})
    assert activate([("made", {})], "run").learn_rewards


@pytest.mark.parametrize(
    ("listed", "learns"),
    [
        (["concat", "bradley_terry", "gold_labels"], False),  # the defaults
        (["take_last_data"], True),
        (["k_wise"], True),
        (["file_labels"], False),  # who labels learns nothing
        (["simcse"], True),
    ],
)
def test_another_than_the_default_loss_or_data_is_there_to_learn(monkeypatch, listed, learns):
    rule(monkeypatch)
    assert activate([(n, {}) for n in ["made", *listed]], "run").learn_rewards is learns


def test_a_plugin_may_say_that_it_needs_reward_models(monkeypatch):
    rule(monkeypatch, needs={"reward_models": True})
    assert activate([("made", {})], "run").learn_rewards
    offered(monkeypatch, plugin(combine_rm=lambda self, reward_models: reward_models[-1]))
    assert activate([("made", {})], "run").learn_rewards


def test_beside_who_learns_from_labels_reward_models_are_trained(tmp_path, monkeypatch):
    """They stand beside the reward: R_k is the rule's, `latest` is the newest model."""
    seen = []

    def combine_rm(self, reward_models):
        seen.append(len(reward_models))
        return Words()

    rule(monkeypatch, combine_rm=ostinato.hookimpl(combine_rm))
    small = ["reward_model.updates=2", "prompts.preference=16", "prompts.held_out=4"]
    settings = [*MICRO, *small, "plugins=[made, centre]"]
    run = ostinato.run("toy", tmp_path / "run", settings)
    assert seen == [1, 2]
    assert all(row["accuracy"] is not None for row in run.iterations)
    assert run.iterations[-1]["latest_sft_std"] != run.iterations[-1]["proxy_sft_std"]


def test_nobody_is_asked_for_a_label(tmp_path, monkeypatch):
    def label(self, comparisons):
        raise AssertionError("asked")

    rule(monkeypatch, label=ostinato.hookimpl(label))
    assert ostinato.run("toy", tmp_path / "run", [*MICRO, "plugins=[made]", "gold=null"]).iterations


def test_a_trained_model_from_elsewhere_gets_its_zero_and_unit_from_the_ruler(
    tmp_path, monkeypatch, furnished
):
    """A run without pairs has no training responses to take a unit from."""

    def combine_rm(self, reward_models, ctx):
        made = RewardModel.load_checkpoint(furnished).copy()
        return made if ctx.iteration == 1 else ostinato.combine([made], lambda x: x.mean(1))

    found = []

    def evaluate(self, ctx):
        found.append((ctx.evaluation.reward, ctx.ruler))
        return {}

    hooks = {"combine_rm": combine_rm, "evaluate": evaluate}
    rule(monkeypatch, **{name: ostinato.hookimpl(hook) for name, hook in hooks.items()})
    with crash_at(-1) as writes:
        ostinato.run("toy", tmp_path / "run", [*MICRO, "plugins=[made]"])
    for reward, ruler in found:
        scores = ruler.over(lambda samples, of=reward: of.score_samples(samples).score)
        assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
        assert float(scores.std()) == pytest.approx(1, abs=1e-3)
    place = writes.index("before iteration-1/policy_init")
    with crash_at(place), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "cut", [*MICRO, "plugins=[made]"])
    ostinato.run("toy", tmp_path / "cut", [*MICRO, "plugins=[made]"])
    assert differing(outcome(tmp_path / "cut"), outcome(tmp_path / "run")) == []


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """A reward model of another run."""
    small = ["iterations=1", "reward_model.updates=2", "prompts.preference=16", "plugins=[]"]
    out = tmp_path_factory.mktemp("other") / "run"
    ostinato.run("toy", out, [*MICRO, *small, "rl.rollouts=1"])
    return out / "iteration-1" / "reward_model"


# --- What cannot go together ----------------------------------------------------------------------


def refused(*overrides):
    with pytest.raises(UserError) as caught:
        check(load_config("toy", overrides), "run")
    return str(caught.value)


def test_a_value_model_from_no_reward_model_is_refused(monkeypatch):
    rule(monkeypatch)
    assert refused("plugins=[made]", "policy.value=reward_model") == (
        "run: policy.value: no reward model is trained, since the reward is of plugin 'made'; set "
        "it to shared or separate"
    )


def test_variance_over_members_needs_parts_of_the_reward_itself(monkeypatch):
    rule(monkeypatch)
    said = refused("plugins=[made, sharpe]", "reward_model.members=3")
    assert "plugin 'sharpe' needs at least 2 heads or members" in said
    rule(monkeypatch, heads=2)
    assert check(load_config("toy", ["plugins=[made, sharpe]"]), "run")


def test_a_labeller_that_needs_gold_is_not_missed(monkeypatch):
    rule(monkeypatch)
    assert check(load_config("toy", ["plugins=[made]", "gold=null"]), "run")
    assert "which needs a gold model" in refused("plugins=[made, centre]", "gold=null")
