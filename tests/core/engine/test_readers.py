"""A reward model that is read through a module of its plugin: trained, resumed, combined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid, softplus

import ostinato
from distributions import offered
from kill_runs import Crash, crash_at, differing, outcome
from ostinato import Scores
from ostinato.models.reward_model import load_reward
from text_samples import scored

SETTINGS = [
    "iterations=2",
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "evaluation.every=2",
]


class Bottleneck:
    """As InfoRM is built: the head encodes a mean and a spread, a module reads a draw of them."""

    size = 3

    def modules(self, hidden_size):
        return nn.Sequential(nn.Linear(self.size, 4), nn.Tanh(), nn.Linear(4, 1))

    @staticmethod
    def read(logits, zeros, modules, scale):
        mean, _ = logits.chunk(2, dim=-1)
        score = scale * modules["bottleneck"](mean) - zeros
        return Scores(score.squeeze(-1), score[:, None], hidden=mean[:, None])

    @ostinato.hookimpl
    def train_rm(self, fit, initial, data, ctx):
        headed = initial.with_head(
            ctx.draws, 2 * self.size, "bottleneck", "bottleneck", {"scale": 2.0}
        )
        return fit(headed, data)

    @ostinato.hookimpl
    def preference_loss(self, batch, outputs):  # the default one takes each output for a head
        chosen, rejected = (outputs.score[:, rows] for rows in batch.pairs.T)
        return -logsigmoid(chosen - rejected)

    @ostinato.hookimpl
    def rm_loss(self, batch, outputs, ctx):
        mean, raw = outputs.logits.chunk(2, dim=-1)
        assert outputs.modules["bottleneck"][0].weight.requires_grad
        width = softplus(raw)
        divergence = (mean.square() + width.square() - 1).sum(-1) / 2 - width.log().sum(-1)
        return {"divergence": 0.01 * divergence.mean(), "head": 0.001 * outputs.head.square().sum()}

    @ostinato.hookimpl
    def wrap_reward(self, reward):
        def penalised(samples, scores):  # on what the reader calls the features
            assert scores.hidden.shape[1:] == (len(reward.members), self.size)
            return Scores(scores.score - 0.1 * scores.hidden[:, -1].norm(dim=-1), scores.parts)

        return ostinato.wrapped(reward, penalised)


@pytest.fixture
def bottleneck(monkeypatch):
    offered(monkeypatch, Bottleneck, "bottleneck")


@pytest.mark.parametrize("combine", ["worst_case", "weight_average"])
def test_a_module_that_a_reader_needs_is_there_after_a_resume(bottleneck, combine, tmp_path):
    settings = [*SETTINGS, f"plugins=[concat, {combine}, bottleneck]"]
    with crash_at(-1) as writes:
        ostinato.run("toy", tmp_path / "whole", settings)
    for k, stage in ((1, "combined"), (2, "policy_init")):
        with crash_at(writes.index(f"before iteration-{k}/{stage}")), pytest.raises(Crash):
            ostinato.run("toy", tmp_path / stage, settings)
        ostinato.run("toy", tmp_path / stage, settings)
        assert differing(outcome(tmp_path / stage), outcome(tmp_path / "whole")) == []


def test_a_loaded_model_scores_through_its_module(kit, comparisons, bottleneck, tmp_path):
    """In float64 from what the files of the checkpoint hold."""
    from safetensors.torch import load_file

    one = kit.make("bottleneck", updates=4)
    data, ctx = comparisons(12), one.ctx
    model = one.plugins.one(
        "train_rm", fit=one.trainer(), initial=one.initial(), data=data, ctx=ctx
    )
    ostinato.calibrated(model, one.ruler(data))
    model.save(tmp_path)
    texts = ["x", "yz"], ["ab", "cdd"], [True, False]
    again = load_reward(tmp_path, one.plugins.readers)
    found = scored(again, *texts)
    assert torch.equal(found.score, scored(model, *texts).score)
    weights = {
        key: value.double().numpy()
        for key, value in load_file(tmp_path / "plugin_modules.safetensors").items()
    }
    mean = model.raw(*model.encode(*texts))[0].double().numpy()[:, :3]
    inner = np.tanh(mean @ weights["bottleneck.0.weight"].T + weights["bottleneck.0.bias"])
    raw = 2 * (inner @ weights["bottleneck.2.weight"].T + weights["bottleneck.2.bias"])[:, 0]
    scale = model.calibration
    wanted = (raw - scale.zeros[0] - scale.mean) / scale.unit
    np.testing.assert_allclose(found.score.detach(), wanted, atol=1e-4)
    np.testing.assert_allclose(found.hidden[:, 0], mean, atol=1e-5)


def test_training_goes_on_with_the_module_of_a_loaded_model(kit, comparisons, bottleneck, tmp_path):
    one = kit.make("bottleneck", updates=2)
    fit, data = one.trainer(), comparisons(12)
    model = one.plugins.one("train_rm", fit=fit, initial=one.initial(), data=data, ctx=one.ctx)
    model.save(tmp_path)
    again = load_reward(tmp_path, one.plugins.readers)
    ours, theirs = fit(model, data), fit(again, data)
    trained, first = (dict(m.plugin_modules.named_parameters()) for m in (ours, model))
    for name, p in theirs.plugin_modules.named_parameters():
        assert torch.equal(p, trained[name])
        cancels = name == "bottleneck.2.bias"  # it is in both scores of a pair
        assert torch.equal(p, first[name]) == cancels


def test_a_checkpoint_that_lacks_the_module_it_is_read_with_is_refused(
    kit, comparisons, bottleneck, tmp_path, monkeypatch
):
    one = kit.make("bottleneck", updates=1)
    given = {"fit": one.trainer(), "initial": one.initial(), "data": comparisons(8), "ctx": one.ctx}
    one.plugins.one("train_rm", **given).save(tmp_path)
    said = "are not those that plugin 'bottleneck' makes with its settings here"
    monkeypatch.setattr(Bottleneck, "size", 5)
    with pytest.raises(ostinato.UserError, match=said):
        load_reward(tmp_path, one.plugins.readers)
    monkeypatch.undo()
    (tmp_path / "plugin_modules.safetensors").unlink()
    with pytest.raises(ostinato.UserError, match=said):
        load_reward(tmp_path, one.plugins.readers)


def fails(size):
    raise ZeroDivisionError("by hand")


def test_a_module_that_is_none_or_fails_is_laid_to_its_plugin(kit, comparisons, monkeypatch):
    made = type("Made", (Bottleneck,), {"__doc__": "No module.", "modules": lambda self, size: 3})
    offered(monkeypatch, made)
    one = kit.make("made", updates=1)
    with pytest.raises(ostinato.UserError) as caught:
        one.trainer()(one.initial(), comparisons(8))
    said = "its modules(hidden_size) answered a int, expected a torch.nn.Module"
    assert str(caught.value) == f"plugin 'made': {said}"
    made.modules = staticmethod(fails)
    with pytest.raises(ZeroDivisionError) as caught:
        one.trainer()(one.initial(), comparisons(8))
    assert caught.value.__notes__[0].startswith("in plugin 'made', its modules(hidden_size) (")
