"""What a plugin of several hooks is given in a real run: the promises of the contract's pages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import ostinato
from distributions import offered
from ostinato import combine, hookimpl
from ostinato.models.reward import Calibration

SETTINGS = [
    "iterations=2",
    "plugins=[everything]",
    "reward_model.updates=2",
    "reward_model.batch=8",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=1",
    "rl.rollout_size=16",
    "rl.minibatch=8",
    "rl.accumulate=2",
    "rl.epochs=1",
]


class Everything:
    """Writes down what it is given."""

    seen: dict[str, list] = {}

    def note(self, hook, **facts):
        self.seen.setdefault(hook, []).append(facts)

    @hookimpl
    def label(self, comparisons, ctx):
        self.note("label", rows=comparisons.to_list(), iteration=ctx.iteration)
        pairs = zip(comparisons["first_gold"], comparisons["second_gold"], strict=True)
        return [float(a > b) for a, b in pairs]

    @hookimpl
    def combine_rm(self, reward_models, datasets, ctx):
        """One model of its own scale, one that is left to the core."""
        own, left = (reward_models[-1].members[0].copy() for _ in range(2))
        own.calibration = Calibration((7.0,), 0.0, 3.0)
        made = combine([own, left], lambda scores: scores.mean(1))
        self.note("combine_rm", datasets=datasets, made=made, ctx=ctx)
        return made

    @hookimpl
    def policy_loss(self, outputs, ctx):
        draw = float(torch.rand((), generator=ctx.generator("corpus")))
        same = outputs.policy is outputs.reference
        self.note("policy_loss", place=(ctx.update, ctx.micro_batch), draw=draw, same=same)
        return {"nothing": 0 * outputs.logprobs.sum()}

    @hookimpl
    def evaluate(self, ctx):
        found = ctx.evaluation
        drawn = [found.draw(f"best of {i}").responses for i in (0, 1, 0)]
        gold = found.gold_of(found.samples)
        self.note("evaluate", found=found, drawn=drawn, gold=gold, directory=ctx.directory)
        return {"n": len(found.samples)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    Everything.seen = {}
    out = tmp_path_factory.mktemp("run") / "all"
    with pytest.MonkeyPatch.context() as patch:
        offered(patch, Everything, "everything")
        made = ostinato.run("toy", out, SETTINGS)
        before = [facts["made"].members for facts in Everything.seen["combine_rm"]]
        ostinato.run("toy", out, SETTINGS)  # finished: every stage is loaded
    after = [facts["made"].members for facts in Everything.seen["combine_rm"][2:]]
    return SimpleNamespace(run=made, seen=Everything.seen, before=before, after=after)


def test_label_is_asked_once_an_iteration_held_out_pairs_last(run):
    asked = run.seen["label"]
    assert [facts["iteration"] for facts in asked] == [1, 2]
    assert [len(facts["rows"]) for facts in asked] == [20, 20]
    for facts in asked:
        ids = [row["prompt_id"] for row in facts["rows"]]
        assert len(set(ids)) == 20
        assert ids == [row["prompt_id"] for row in asked[0]["rows"]]


def test_combine_rm_sees_every_labelled_set(run):
    first, second = run.seen["combine_rm"][:2]
    assert [len(first["datasets"]), len(second["datasets"])] == [1, 2]
    assert second["datasets"][0].to_dict() == first["datasets"][0].to_dict()
    assert {row["iteration"] for row in second["datasets"][1]} == {2}


def test_the_core_calibrates_a_new_model_unless_the_plugin_has_done_so(run):
    for own, left in run.before:
        assert own.calibration == Calibration((7.0,), 0.0, 3.0)
        assert left.calibration != Calibration()


def test_a_combination_that_is_made_again_has_the_same_scale(run):
    """A finished run loads R_k by asking the hook again."""
    for before, after in zip(run.before, run.after, strict=True):
        assert [m.calibration for m in before] == [m.calibration for m in after]


def test_policy_terms_draw_anew_for_each_update_and_micro_batch(run):
    noted = run.seen["policy_loss"][:4]
    assert [facts["place"] for facts in noted] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({facts["draw"] for facts in noted}) == 4
    assert not any(facts["same"] for facts in noted)


def test_evaluation_can_sample_more_and_score_it_with_gold(run):
    for facts in run.seen["evaluate"]:
        found, (first, other, again) = facts["found"], facts["drawn"]
        assert first == again != other
        assert len(first) == len(found.samples) == 8
        assert torch.equal(facts["gold"], found.gold)
        assert found.sft_samples.prompts == found.samples.prompts
        assert found.sft_gold.mean().item() == pytest.approx(0, abs=1e-5)
        assert found.sft_gold.std().item() == pytest.approx(1, abs=1e-5)
        assert facts["directory"] == run.run.directory
    evals = [row for row in run.run.metrics if row["kind"] == "eval"]
    assert all(row["everything/n"] == 8 for row in evals)
