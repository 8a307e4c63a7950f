"""reward_fusion: reward models of other origins, on one scale (Reward-Robust RLHF, appendix F)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ostinato
from ostinato import UserError, combine
from ostinato.config.draws import Draws
from ostinato.contract.events import Event
from ostinato.engine.calibration import held_out_accuracy
from ostinato.models.reward import Calibration
from ostinato.models.reward_model import RewardModel
from ostinato.models.ruler import calibrated
from text_samples import scored

SEED = 7
TEXTS = PROMPTS, RESPONSES, FINISHED = ["x", "yz", "z"], ["ab", "c", "dddd"], [True, False, True]


def letters() -> object:
    """A tokenizer with one token a letter: another vocabulary than the bytes of the policy."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = ["<end>", "<pad>", "<unk>", *"zyxdcba"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(entries)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )


def foreign(kit, folder, family="llama", scale=50.0):
    """A trained reward model as another project would publish it: no Ostinato facts, no head 2."""
    one = kit.make(family=family)
    tokenizer = letters()
    random = {**one.ctx.config.reward_model.random, "vocab_size": len(tokenizer)}
    with Draws(7).forked("foreign"):
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.for_model(
            **random, num_labels=1, pad_token_id=1, eos_token_id=0, bos_token_id=None
        )
        model = AutoModelForSequenceClassification.from_config(config)
    drawn = torch.Generator().manual_seed(SEED)
    model.score.weight.data.normal_(0, scale, generator=drawn)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def fused(kit, models, reward_models, data, **settings):
    one = kit.make(("reward_fusion", {"models": models} | settings))
    ctx = one.ctx.at(ruler=one.ruler(data))
    reward = one.plugins.one("combine_rm", reward_models=reward_models, datasets=[], ctx=ctx)
    return one, reward


def normalised(model, data):
    """Scores of the texts above, in float64, by mean and std over the reference responses."""
    plain = model.copy()
    prompts, finished = [*data["prompt"], *data["prompt"]], [True] * (2 * len(data))
    every = plain.score(prompts, [*data["chosen"], *data["rejected"]], finished).double().numpy()
    found = plain.score(PROMPTS, RESPONSES, FINISHED).double().numpy()
    return (found - every.mean()) / every.std(ddof=1)


@pytest.fixture(scope="module")
def external(kit, tmp_path_factory):
    return foreign(kit, tmp_path_factory.mktemp("foreign") / "rm")


@pytest.fixture(scope="module")
def own(kit, comparisons):
    """R~_1 of one member and R~_2 of two, calibrated on data of their own."""
    models = [kit.make().initial(seed) for seed in range(3)]
    for i, model in enumerate(models):
        model.calibration = Calibration((3.0 + i,), 0.5, 2.0)
    return [models[0], combine(models[1:], lambda s: s.mean(1))]


@pytest.mark.parametrize("reduce", ["mean", "min"])
@pytest.mark.parametrize(("which", "count"), [("latest", 2), ("all", 3), ("none", 0)])
def test_every_model_is_normalised_on_the_one_reference_set(
    kit, comparisons, external, own, reduce, which, count
):
    """A foreign scale of 50 and another tokenizer count no more than the run's own models."""
    data = comparisons(20)
    _, reward = fused(kit, [external], own, data, own=which, reduce=reduce)
    members = [m for model in own for m in model.members][3 - count :]
    theirs = ostinato.trained_reward(external, "here").members[0]
    each = np.stack([normalised(m, data) for m in [*members, theirs]], axis=1)
    wanted = each.mean(1) if reduce == "mean" else each.min(1)
    assert len(reward.members) == count + 1
    np.testing.assert_allclose(scored(reward, *TEXTS).score, wanted, atol=1e-4)


def test_the_run_s_own_models_keep_their_calibration(kit, comparisons, external, own):
    _, reward = fused(kit, [external], own, comparisons(20), own="all")
    before = [m for model in own for m in model.members]
    assert [m.calibration.zeros for m in before] == [(3.0,), (4.0,), (5.0,)]
    assert not any(a is b for a in before for b in reward.members)
    assert all(m.calibration != Calibration() for m in reward.members)  # the core leaves them


def test_the_reference_scale_of_a_foreign_model_is_logged_and_never_moves(
    kit, comparisons, external, own
):
    data = comparisons(20)
    one, reward = fused(kit, [external], own, data)
    scale = reward.members[-1].calibration
    assert one.ctx.logged["reward_fusion/mean_0"] == pytest.approx(scale.zeros[0])
    assert one.ctx.logged["reward_fusion/std_0"] == scale.unit > 5
    _, later = fused(kit, [external], own[:1], data)  # a process that was started again
    assert later.members[-1].calibration == scale


def test_checkpoints_of_runs_are_read_as_they_were_saved(kit, comparisons, own, tmp_path):
    """Several heads, and several members: each member of another run counts as a model."""
    heads = kit.make(family="llama").initial(5, outputs=4)
    heads.save(tmp_path)
    (tmp_path / "two").mkdir()
    own[1].save(tmp_path / "two")
    data = comparisons(20)
    _, reward = fused(kit, [str(tmp_path), str(tmp_path / "two")], own, data, own="none")
    each = [normalised(m, data) for m in (heads, *own[1].members)]
    found = scored(reward, *TEXTS).score
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-4)


def test_effect_a_large_scale_does_not_drown_the_better_model(kit, comparisons, external):
    """F: without normalisation the foreign model, untrained but 50 times larger, decides alone."""
    one = kit.make(batch=16, updates=40, lr=5e-3)
    fit, data, held = one.trainer(), comparisons(64), comparisons(96, seed=5)
    good = calibrated(fit(one.initial(), data), one.ruler(data))
    foreign_model = ostinato.trained_reward(external, "here").members[0]
    _, reward = fused(kit, [external], [good], data)

    def accuracy(score):
        return np.mean(score("chosen") > score("rejected"))

    def by(model):
        def score(side):
            return scored(model, held["prompt"], held[side], [True] * 96).score.numpy()

        return score

    alone = held_out_accuracy(good, held, fit.policy_tokenizer)["accuracy"]
    raw = accuracy(lambda side: by(good)(side) + by(foreign_model)(side))
    fair = accuracy(by(reward))
    assert alone > 0.85
    assert fair > raw + 0.1


# --- Faults ---------------------------------------------------------------------------------------


def test_a_missing_folder_is_told_before_anything_is_computed(kit, tmp_path):
    with pytest.raises(UserError, match=r"plugins\.reward_fusion\.models: .*no folder '.*gone'"):
        kit.make(("reward_fusion", {"models": [str(tmp_path / "gone")]}))


def test_a_tilde_is_the_home_folder(kit, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rm").mkdir()
    one = kit.make(("reward_fusion", {"models": ["~/rm", "org/name"]}))
    assert one.plugins["reward_fusion"].settings["models"] == [str(tmp_path / "rm"), "org/name"]


def test_models_have_to_be_named(kit):
    with pytest.raises(UserError, match=r"plugins\.reward_fusion\.models"):
        kit.make("reward_fusion")


def started(one):
    one.plugins.call(
        "reward_fusion", "observe", event=Event("run_started", data={"plugins": one.plugins})
    )


def test_a_model_that_is_no_reward_model_ends_the_run_at_its_start(kit, tmp_path):
    empty = kit.make(("reward_fusion", {"models": [str(tmp_path)]}))
    with pytest.raises(UserError, match=r"plugins\.reward_fusion\.models: '.*' cannot be loaded"):
        started(empty)
    from transformers import AutoModelForCausalLM

    body = kit.make().initial().model
    AutoModelForCausalLM.from_config(body.config).save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    headless = kit.make(("reward_fusion", {"models": [str(tmp_path)]}))
    with pytest.raises(UserError, match=r"holds no 'score\.weight'"):
        started(headless)


def test_a_run_fuses_and_resumes(kit, external, tmp_path):
    """Cut short in the policy stage of the second iteration: the foreign model is loaded again.

    With it a reward model of one member and one head has the variance that sharpe needs.
    """
    from ostinato_plugins.rewards.sharpe import Sharpe

    settings = [
        "iterations=2",
        f"plugins=[{{reward_fusion: {{models: ['{external}']}}}}, sharpe]",
        "reward_model.updates=3",
        "prompts.preference=16",
        "prompts.held_out=4",
        "prompts.evaluation=8",
        "rl.rollouts=2",
        "rl.rollout_size=8",
        "rl.minibatch=8",
    ]
    real = Sharpe.reward_transform

    def stop(self, rewards):
        if rewards.iteration == 2:
            raise RuntimeError("cut short")
        return real(self, rewards)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sharpe, "reward_transform", ostinato.hookimpl(stop))
        with pytest.raises(RuntimeError, match="cut short"):
            ostinato.run("toy", tmp_path / "run", settings)
    run = ostinato.run("toy", tmp_path / "run", settings)
    combined = [r for r in run.metrics if r["kind"] == "actions" and r["stage"] == "combined"]
    assert all(r["actions"]["reward_fusion.combine_rm"] > 0.01 for r in combined)
    scales = {r["reward_fusion/std_0"] for r in combined}
    assert len(scales) == 1  # the reference set is D~_1 at both iterations
    trained = [r for r in run.metrics if r["kind"] == "reward_model_trained"][-1]
    again = RewardModel.load_checkpoint(run.directory / "iteration-2" / "reward_model")
    assert json.loads(json.dumps(vars(again.calibration))) == trained["calibration"][0]
