"""weight_average: one model whose parameters are the mean of all (Wolf 2.2, WARM)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import Scores, UserError, combine
from ostinato.config.draws import Draws
from ostinato.engine.calibration import held_out_accuracy
from ostinato.models.reward import Calibration
from ostinato.models.reward_model import MEAN, Reader, RewardModel
from ostinato.models.ruler import calibrated
from text_samples import scored

PROMPTS, RESPONSES, FINISHED = ["x", "yz", "z"], ["ab", "c", "dddd"], [True, False, True]


def averaged(kit, models):
    one = kit.make("weight_average")
    return one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)


def test_every_parameter_is_the_mean_head_included(kit):
    models = [kit.make().initial(seed) for seed in range(3)]
    before = [{n: p.detach().clone() for n, p in m.model.named_parameters()} for m in models]
    made = averaged(kit, models)
    assert isinstance(made, RewardModel)
    assert made.members == [made]  # one forward pass, whatever k is
    for name, p in made.model.named_parameters():
        expected = np.mean([b[name].double().numpy() for b in before], axis=0)
        np.testing.assert_allclose(p.detach(), expected, atol=1e-7, err_msg=name)
        assert all(
            torch.equal(dict(m.model.named_parameters())[name], b[name])
            for m, b in zip(models, before, strict=True)
        )
    assert "score.weight" in dict(made.model.named_parameters())


def test_members_are_averaged_each_over_its_iterations(kit):
    """Their heads start apart, and the heads of one start cannot be averaged with another's."""
    models = [kit.make().initial(seed) for seed in range(4)]
    iterations = [combine(pair, lambda s: s.mean(1)) for pair in (models[:2], models[2:])]
    made = averaged(kit, iterations)
    assert len(made.members) == 2
    for place, member in enumerate(made.members):
        wanted = [models[place].model.score.weight, models[2 + place].model.score.weight]
        mean = sum(w.detach().double() for w in wanted) / 2
        np.testing.assert_allclose(member.model.score.weight.detach(), mean, atol=1e-7)
    each = [m.score(PROMPTS, RESPONSES, FINISHED) for m in made.members]
    torch.testing.assert_close(scored(made, PROMPTS, RESPONSES, FINISHED).score, sum(each) / 2)


def test_low_precision_is_averaged_in_fp32(kit):
    """A mean of three in bf16 arithmetic would be off in the third digit."""
    models = [kit.make().initial(seed) for seed in range(3)]
    for model in models:
        model.model.to(torch.bfloat16)
    weights = [m.model.score.weight.detach().float() for m in models]
    made = averaged(kit, models).model.score.weight
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, (sum(weights) / 3).to(torch.bfloat16))


def test_the_calibration_of_a_member_is_not_kept(kit, comparisons):
    """Averaged scores have a scale of their own: the core sees that the model lacks one."""
    models = [kit.make().initial(seed) for seed in range(2)]
    data = comparisons(16)
    ruler = kit.make().ruler(data)
    for model in models:
        calibrated(model, ruler)
    made = averaged(kit, models)
    assert made.calibration == Calibration() != models[1].calibration
    calibrated(made, ruler)
    every = [*data["chosen"], *data["rejected"]]
    scores = made.score([*data["prompt"], *data["prompt"]], every, [True] * 32)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std()) == pytest.approx(1, abs=1e-5)


def test_heads_and_the_way_they_are_read_are_kept(kit):
    """Models with three heads average head by head; what served training alone is dropped."""
    models = [kit.make().initial(seed, outputs=3) for seed in range(2)]
    for model in models:
        model.plugin_modules["prototypes"] = torch.nn.Linear(16, 2)
        model.lm_head = torch.nn.Linear(16, 5)
    made = averaged(kit, models)
    assert made.score_text(PROMPTS, RESPONSES, FINISHED).parts.shape == (3, 1, 3)
    expected = sum(m.model.score.weight.detach().double() for m in models) / 2
    np.testing.assert_allclose(made.model.score.weight.detach(), expected, atol=1e-7)
    assert (len(made.plugin_modules), made.lm_head) == (0, None)
    assert len(models[1].plugin_modules) == 1


def test_the_module_that_a_score_is_read_through_is_averaged_too(kit):
    def read(logits, zeros, modules):
        score = modules["mine"](logits) - zeros
        return Scores(score.squeeze(-1), score[:, None])

    models = []
    for seed in range(2):
        body = kit.make().initial(seed)
        body.readers = {**MEAN, "mine": Reader(read)}
        models.append(body.with_head(Draws(seed), 2, "mine"))
        torch.manual_seed(seed)
        for name in ("mine", "other"):  # other served the training alone
            models[-1].plugin_modules[name] = torch.nn.Linear(2, 1)
    made = averaged(kit, models)
    assert list(made.plugin_modules) == ["mine"]
    for key, value in made.plugin_modules["mine"].state_dict().items():
        both = [m.plugin_modules["mine"].state_dict()[key].double() for m in models]
        np.testing.assert_allclose(value, (both[0] + both[1]) / 2, atol=1e-7)
    assert scored(made, PROMPTS, RESPONSES, FINISHED).parts.shape == (3, 1, 1)


def test_models_that_have_no_mean_are_refused_in_a_sentence(kit):
    one, many = kit.make().initial(), kit.make().initial(outputs=3)
    with pytest.raises(UserError, match=r"no mean: states differ: 'score\.weight' has shapes"):
        averaged(kit, [one, many])
    apart = one.copy()
    apart.settings = {"floor": 1}
    with pytest.raises(UserError, match=r"read by mean\(\), those of another by mean\(floor=1\)"):
        averaged(kit, [one, apart])


@pytest.mark.slow
def test_effect_the_average_is_more_robust_to_label_noise_than_its_members(kit, comparisons):
    """WARM (Ramé et al. 2024): averaging keeps what the models share, and drops memorised noise.

    Four models start from one R_init and see sets of their own with a quarter of the labels wrong;
    the average is more accurate on clean pairs than they are on average, over two seeds.
    """
    one, gains = kit.make(batch=16, updates=30, lr=5e-3), []
    fit = one.trainer()
    for seed in range(2):
        start, held = one.initial(seed), comparisons(96, seed=1000 + seed)
        models = [fit(start, comparisons(48, seed=10 * seed + k, noise=0.25)) for k in range(4)]
        single = [held_out_accuracy(m, held, fit.policy_tokenizer)["accuracy"] for m in models]
        merged = held_out_accuracy(averaged(kit, models), held, fit.policy_tokenizer)["accuracy"]
        gains.append(merged - np.mean(single))
    assert np.mean(gains) > 0.03
