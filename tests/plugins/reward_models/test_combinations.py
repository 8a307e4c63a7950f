"""take_last_rm, ensemble, worst_case: what R_k(x, y) is, from the calibrated R~_1..R~_k."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato import combine
from ostinato.reward_model import Calibration
from ostinato.reward_training import calibrated

PROMPTS, RESPONSES, FINISHED = ["x", "yz", "z"], ["ab", "c", "dddd"], [True, False, True]


@pytest.fixture(scope="module")
def models(kit):
    """Iterations 1 and 2; the second has two members."""
    made = [kit.make().initial(seed) for seed in range(3)]
    for i, model in enumerate(made):
        model.calibration = Calibration(0.3 * i, 1.0 + i)
    return [made[0], combine(made[1:], lambda s: s.mean(1))]


def scores(model):
    return model.score(PROMPTS, RESPONSES, FINISHED).double().numpy()


@pytest.mark.parametrize(("name", "reduce"), [("ensemble", np.mean), ("worst_case", np.min)])
def test_reduction_over_every_member_of_every_iteration(kit, models, name, reduce):
    one = kit.make(name)
    made = one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)
    members = [member for model in models for member in model.members]
    each = np.stack([scores(m) for m in members], axis=1)  # (B, members)
    np.testing.assert_allclose(scores(made), reduce(each, axis=1), atol=1e-6)
    assert made.members == members
    assert made.score_text(PROMPTS, RESPONSES, FINISHED).parts.shape == (3, 3, 1)


def test_take_last_rm_is_the_newest_model_itself(kit, models):
    one = kit.make("take_last_rm")
    made = one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)
    assert made is models[-1]
    np.testing.assert_allclose(
        scores(made), np.mean([scores(m) for m in models[1].members], axis=0), atol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_effect_the_minimum_is_harder_to_exploit(kit, comparisons, seed):
    """Coste et al. 2024, Wolf 2.2: best-of-n under the minimum is over-scored less than under one.

    Four models see small sets of their own. Of 400 responses each combination picks its best 20;
    the gap between what the combination says of them and their gold (both standardised on all
    400) is the over-estimate.
    """
    data = comparisons(200, seed=99)
    texts = [*data["chosen"], *data["rejected"]]
    prompts = [*data["prompt"], *data["prompt"]]
    gold = np.array([*data["chosen_gold"], *data["rejected_gold"]])
    gold = (gold - gold.mean()) / gold.std()
    one = kit.make(batch=8, updates=15, lr=5e-3)
    fit = one.trainer()
    trained = []
    for k in range(4):
        mine = comparisons(24, seed=10 * seed + k)
        trained.append(calibrated(fit(one.initial(k), mine), mine, fit.policy_tokenizer))

    def overestimate(name):
        made = kit.make(name)
        reward = made.plugins.one("combine_rm", reward_models=trained, datasets=[], ctx=made.ctx)
        proxy = reward.score(prompts, texts, [True] * 400).double().numpy()
        best = proxy.argsort()[-20:]
        return (proxy[best] - gold[best]).mean()

    assert overestimate("worst_case") < overestimate("ensemble") < overestimate("take_last_rm")
