"""R_k as a run makes it: combined, wrapped, centred, measured, and made again when it resumes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ostinato
from distributions import offered, plugin
from kill_runs import Crash, crash_at, differing, outcome
from ostinato import Reward, Scores, UserError, wrapped
from ostinato.engine.combining import Combination
from ostinato.terminal.cli import app

MICRO = [
    "iterations=2",
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "evaluation.every=2",
    "checkpoint_every=1",
]

BLAMED = r"An error in plugin 'made', its reward( \(test_combining.py, line \d+\))?: "


class Shaped:
    """A sigmoid of what it wraps, less a penalty on length; it keeps what it was given."""

    seen: list = []

    @ostinato.hookimpl
    def wrap_reward(self, reward, ctx):
        self.seen.append(SimpleNamespace(reward=reward, ctx=ctx))
        ctx.log(shaped=1.0)

        def shape(samples, scores):
            return replace(scores, score=scores.score.sigmoid() - samples.lengths / 100)

        self.seen[-1].made = wrapped(reward, shape)
        return self.seen[-1].made


class Doubled:
    """Twice what it wraps."""

    @ostinato.hookimpl
    def wrap_reward(self, reward):
        return wrapped(reward, lambda _, scores: replace(scores, score=2 * scores.score))


class Words(Reward):
    """A reward of a class of its own, of no reward model: words, each token worth a little."""

    def scores(self, samples):
        words = torch.tensor([float(len(text.split())) for text in samples.responses])
        return Scores(words / 10, token_score=0.01 * samples.mask.float())


class OwnReward:
    """Optimise on a Reward subclass."""

    @ostinato.hookimpl
    def combine_rm(self, reward_models):
        return Words()


@pytest.fixture
def listed(monkeypatch):
    Shaped.seen = []
    offered(monkeypatch, Shaped, "shaped")
    offered(monkeypatch, Doubled, "doubled")
    offered(monkeypatch, OwnReward, "own_reward")


def rows_of(run, stage="combined"):
    return [r for r in run.metrics if r["kind"] == "actions" and r["stage"] == stage]


def on_ruler(reward, ruler):
    """What the responses of the ruler are worth, those to evaluation prompts first."""
    parts = [
        reward.score_samples(samples).total.double() for samples in (ruler.evaluation, ruler.rl)
    ]
    return torch.cat(parts).numpy()


def test_each_link_is_measured_and_the_whole_is_centred_once_more(listed, tmp_path):
    """By hand from the members: worst_case, then a shape, then its double."""
    settings = [*MICRO, "plugins=[concat, worst_case, shaped, doubled]"]
    run = ostinato.run("toy", tmp_path / "run", settings)
    rows = rows_of(run)
    assert [r["shaped"] for r in rows] == [1.0, 1.0]
    for k, (row, seen) in enumerate(zip(rows, Shaped.seen, strict=True), start=1):
        ruler, count = seen.ctx.ruler, len(seen.ctx.ruler.evaluation)
        assert seen.ctx.data is not None
        assert len(seen.ctx.data) == 16 * k
        assert (seen.reward.owner, seen.made.owner) == ("worst_case", "shaped")
        each = np.stack([on_ruler(m, ruler) for m in seen.reward.members], 1)
        assert each.shape[1] == k
        lowest = each.min(1) - each.min(1).mean()
        lengths = torch.cat([ruler.evaluation.lengths, ruler.rl.lengths]).numpy()
        shaped = 1 / (1 + np.exp(-lowest)) - lengths / 100
        here = slice(count)
        changes = {
            "worst_case.combine_rm": np.abs(lowest - each[:, -1])[here].mean(),
            "shaped.wrap_reward": np.abs(shaped - lowest)[here].mean(),
            "doubled.wrap_reward": np.abs(shaped)[here].mean(),
        }
        if k == 1:  # the minimum over one model is that model, whatever rounding says
            changes["worst_case.combine_rm"] = 0.0
        assert row["actions"] == pytest.approx(changes, abs=1e-5)
        assert row["actions"]["worst_case.combine_rm"] == 0 or k == 2
        facts = json.loads((tmp_path / f"run/iteration-{k}/combined/combined.json").read_text())
        assert facts["wrapped_by"] == ["shaped", "doubled"]
        assert facts["members"] == [f"iteration-{i}/reward_model" for i in range(1, k + 1)]
        wanted = [each.min(1).mean(), (2 * shaped).mean()]
        assert facts["zeros"] == pytest.approx(wanted, abs=1e-5)


def test_what_is_evaluated_is_the_wrapped_reward_and_latest_stays_the_newest_model(
    listed, tmp_path, monkeypatch
):
    found = []
    offered(monkeypatch, plugin(evaluate=lambda self, ctx: found.append(ctx.evaluation) or {}))
    ostinato.run("toy", tmp_path / "run", [*MICRO, "plugins=[concat, shaped, made]"])
    last = found[-1]
    newest = Shaped.seen[-1].reward.members[-1]
    torch.testing.assert_close(last.latest, newest.score_samples(last.samples).score)
    shaped = last.latest.sigmoid() - last.samples.lengths / 100
    zero = last.reward.zero
    torch.testing.assert_close(last.proxy, shaped - zero, atol=1e-5, rtol=0)
    assert abs(on_ruler(last.reward, Shaped.seen[-1].ctx.ruler).mean()) < 1e-6


@pytest.mark.parametrize(
    "plugins",
    [
        "[concat, worst_case, shaped, doubled]",
        "[concat, weight_average, shaped]",
        "[own_reward, shaped]",
    ],
)
def test_a_run_that_stops_at_any_stage_goes_on_with_the_same_reward(listed, plugins, tmp_path):
    settings = [*MICRO, f"plugins={plugins}"]
    with crash_at(-1) as writes:
        ostinato.run("toy", tmp_path / "whole", settings)
    wanted = outcome(tmp_path / "whole")
    for k, stage in ((1, "policy_init"), (2, "combined"), (2, "policy.checkpoints/policy-2")):
        with crash_at(writes.index(f"before iteration-{k}/{stage}")), pytest.raises(Crash):
            ostinato.run("toy", tmp_path / stage, settings)
        ostinato.run("toy", tmp_path / stage, settings)
        assert differing(outcome(tmp_path / stage), wanted) == []


def test_a_reward_of_another_class_is_centred_by_what_whole_responses_are_worth(listed, tmp_path):
    run = ostinato.run("toy", tmp_path / "run", [*MICRO, "plugins=[own_reward, shaped]"])
    seen = Shaped.seen[-1]
    assert type(seen.reward) is Words
    assert seen.reward.owner == "own_reward"
    ruler, sums = seen.ctx.ruler, []
    for samples in (ruler.evaluation, ruler.rl):
        words = np.array([len(text.split()) for text in samples.responses])
        sums.append(words / 10 + 0.01 * samples.lengths.numpy())
    assert seen.reward.zero == pytest.approx(np.concatenate(sums).mean(), abs=1e-5)
    (first, _) = rows_of(run)
    newest = load_newest(tmp_path / "run", 1)
    own = sums[0] - np.concatenate(sums).mean()
    change = np.abs(own - newest.score_samples(ruler.evaluation).score.numpy()).mean()
    assert first["actions"]["own_reward.combine_rm"] == pytest.approx(change, abs=1e-5)


def load_newest(folder, k):
    return ostinato.RewardModel.load_checkpoint(folder / f"iteration-{k}" / "reward_model")


# --- Calibration of what combine_rm makes ---------------------------------------------------------


def test_a_new_model_is_calibrated_on_all_of_its_data_and_the_newest_held_out(
    kit, comparisons, monkeypatch
):
    from ostinato.engine import combining

    one = kit.make()
    made, asked = one.initial(), []
    offered(monkeypatch, plugin(combine_rm=lambda self: made))
    two = kit.make("made")
    data = comparisons(8)
    session = SimpleNamespace(
        plugins=two.plugins,
        ctx=two.ctx,
        ruler=two.ruler(data),
        backend=SimpleNamespace(device=torch.device("cpu")),
        log_actions=lambda stage: None,
    )
    monkeypatch.setattr(combining, "calibrate", lambda *given: asked.append(given))
    pairs = [SimpleNamespace(train=f"D~_{k}", held_out=f"held out {k}") for k in (1, 2)]
    models = [one.initial(1), one.initial(2)]
    assert Combination(session, models, pairs, "D_2").make() is made
    assert asked == [(session, made, "D_2", "held out 2")]


# --- Faults ---------------------------------------------------------------------------------------


def failing(samples):
    raise ZeroDivisionError("by hand")


class Odd(Reward):
    """What it answers, or raises, is wrong."""

    def __init__(self, answer):
        self.answer = answer

    def scores(self, samples):
        return self.answer(samples)


class Strange(Odd):
    @property
    def members(self):
        return [3]


@dataclass(frozen=True)
class Frozen(Reward):
    scale: float = 1.0

    def scores(self, samples):
        return Scores(samples.lengths * self.scale)


FAULTS = {
    "kind": ("a reward", "hook '{hook}' answered a str, expected an ostinato.Reward"),
    "function": (failing, "hook '{hook}' answered a function, expected an ostinato.Reward"),
    "list": (Odd(lambda s: [1.0]), "its reward answered a list, expected ostinato.Scores"),
    "shape": (
        Odd(lambda s: Scores(torch.zeros(2, 2))),
        "its reward answered Scores whose score has shape (2, 2), expected (8,)",
    ),
    "nan": (
        Odd(lambda s: Scores(s.lengths * float("nan"))),
        "its reward answered a score that is not finite",
    ),
    "members": (
        Strange(lambda s: Scores(s.lengths * 1.0)),
        "hook '{hook}' answered a Reward whose member is a int, expected a RewardModel",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hook", ["combine_rm", "wrap_reward"])
def test_a_wrong_reward_is_a_sentence_that_names_the_plugin(hook, fault, tmp_path, monkeypatch):
    answer, said = FAULTS[fault]
    offered(monkeypatch, plugin(**{hook: lambda self: answer}))
    with pytest.raises(UserError) as caught:
        ostinato.run("toy", tmp_path / "run", [*MICRO, "plugins=[concat, made]"])
    assert str(caught.value) == f"plugin 'made': {said.format(hook=hook)}"


def says(tmp_path, *plugins):
    """What the command says, and its exit status."""
    sets = [
        part for text in [*MICRO, f"plugins=[{', '.join(plugins)}]"] for part in ("--set", text)
    ]
    found = CliRunner().invoke(app, ["run", "toy", "--out", str(tmp_path / "run"), *sets])
    return found.exit_code, found.stderr


@pytest.mark.parametrize("hook", ["combine_rm", "wrap_reward"])
def test_an_error_in_a_reward_is_laid_to_its_plugin(hook, tmp_path, monkeypatch):
    offered(monkeypatch, plugin(**{hook: lambda self: Odd(failing)}))
    status, stderr = says(tmp_path, "concat", "made")
    assert status == 1
    assert re.match(BLAMED + "ZeroDivisionError: by hand.", stderr)
    assert "Traceback" not in stderr


def test_an_error_in_a_reduce_is_laid_to_its_plugin(tmp_path, monkeypatch):
    def combine_rm(self, reward_models):
        return ostinato.combine(reward_models, lambda scores: scores.mean(7))

    offered(monkeypatch, plugin(combine_rm=combine_rm))
    status, stderr = says(tmp_path, "concat", "made")
    assert status == 1
    assert re.match(BLAMED + "IndexError: ", stderr)


def test_a_reward_whose_attributes_cannot_be_set_is_laid_to_its_plugin(tmp_path, monkeypatch):
    offered(monkeypatch, plugin(combine_rm=lambda self: Frozen()))
    status, stderr = says(tmp_path, "concat", "made")
    assert status == 1
    assert re.match(BLAMED + "FrozenInstanceError: ", stderr)


def test_a_wrap_that_changes_nothing_says_so(tmp_path, monkeypatch):
    offered(monkeypatch, plugin(wrap_reward=lambda self, reward: reward))
    run = ostinato.run("toy", tmp_path / "run", [*MICRO, "iterations=1", "plugins=[made]"])
    (row,) = rows_of(run)
    assert row["actions"] == {"take_last_rm.combine_rm": 0.0, "made.wrap_reward": 0.0}
