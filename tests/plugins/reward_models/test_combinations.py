"""take_last_rm, ensemble, worst_case, uwo: what R_k(x, y) is, from the calibrated R~_1..R~_k."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato import UserError, combine
from ostinato.models.reward import Calibration
from ostinato.models.ruler import calibrated
from text_samples import scored

PROMPTS, RESPONSES, FINISHED = ["x", "yz", "z"], ["ab", "c", "dddd"], [True, False, True]


@pytest.fixture(scope="module")
def models(kit):
    """Iterations 1 and 2; the second has two members."""
    made = [kit.make().initial(seed) for seed in range(3)]
    for i, model in enumerate(made):
        model.calibration = Calibration((0.3 * i,), 0.0, 1.0 + i)
    return [made[0], combine(made[1:], lambda s: s.mean(1))]


def scores(model):
    return scored(model, PROMPTS, RESPONSES, FINISHED).score.double().numpy()


@pytest.mark.parametrize(("name", "reduce"), [("ensemble", np.mean), ("worst_case", np.min)])
def test_reduction_over_every_member_of_every_iteration(kit, models, name, reduce):
    one = kit.make(name)
    made = one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)
    members = [member for model in models for member in model.members]
    each = np.stack([scores(m) for m in members], axis=1)  # (B, members)
    np.testing.assert_allclose(scores(made), reduce(each, axis=1), atol=1e-6)
    assert made.members == members
    assert scored(made, PROMPTS, RESPONSES, FINISHED).parts.shape == (3, 3, 1)


def uwo(coefficient):
    """Coste et al. 2024: mean minus coefficient times the population variance, with loops."""

    def reduce(each, axis):
        assert axis == 1
        found = []
        for row in each:
            mean = sum(row) / len(row)
            found.append(mean - coefficient * sum((r - mean) ** 2 for r in row) / len(row))
        return np.array(found)

    return reduce


@pytest.mark.parametrize(
    ("name", "settings", "reduce"),
    [
        ("worst_case", {}, np.min),
        ("uwo", {}, uwo(0.1)),
        ("uwo", {"coefficient": 3.0}, uwo(3.0)),
        ("uwo", {"coefficient": 0}, np.mean),
    ],
)
@pytest.mark.parametrize("over", ["members", "heads"])
def test_reduction_over_members_or_over_all_their_heads(kit, name, settings, reduce, over):
    """Two models of three heads and one of a single head: 3 members, 7 heads."""
    one = kit.make((name, settings | {"over": over}))
    models = [kit.make().initial(seed, outputs) for seed, outputs in enumerate((3, 1, 3))]
    for i, model in enumerate(models):
        model.calibration = Calibration((0.2 * i,) * (3, 1, 3)[i], 0.0, 1.0 + i)
    made = one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)
    heads = [m.score_text(PROMPTS, RESPONSES, FINISHED).parts[:, 0].double() for m in models]
    each = heads if over == "heads" else [h.mean(1, keepdim=True) for h in heads]
    each = np.concatenate([e.numpy() for e in each], axis=1)
    assert each.shape == (3, 7 if over == "heads" else 3)
    np.testing.assert_allclose(scores(made), reduce(each, axis=1), atol=1e-5)


def test_one_member_has_no_variance_until_the_second_iteration(kit, models):
    one = kit.make("uwo")
    made = one.plugins.one("combine_rm", reward_models=models[:1], datasets=[], ctx=one.ctx)
    np.testing.assert_allclose(scores(made), scores(models[0]), atol=1e-6)
    assert kit.make(("uwo", {"over": "heads"})).plugins.need("members") == 2
    assert one.plugins.need("members") is None


def test_settings_of_uwo_are_checked(kit):
    with pytest.raises(UserError, match=r"plugins\.uwo\.coefficient.*0"):
        kit.make(("uwo", {"coefficient": -1}))
    with pytest.raises(UserError, match=r"plugins\.uwo\.over.*'members' or 'heads'"):
        kit.make(("uwo", {"over": "member"}))


def test_take_last_rm_is_the_newest_model_itself(kit, models):
    one = kit.make("take_last_rm")
    made = one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)
    assert made is models[-1]
    np.testing.assert_allclose(
        scores(made), np.mean([scores(m) for m in models[1].members], axis=0), atol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_effect_doubt_is_harder_to_exploit(kit, comparisons, seed):
    """Coste et al. 2024, Wolf 2.2: best-of-n under one model is over-scored most.

    Under the mean it is over-scored less, and least under the minimum, or the mean less variance.

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
        trained.append(calibrated(fit(one.initial(k), mine), one.ruler(mine)))

    def overestimate(name, **settings):
        made = kit.make((name, settings))
        reward = made.plugins.one("combine_rm", reward_models=trained, datasets=[], ctx=made.ctx)
        proxy = scored(reward, prompts, texts, [True] * 400).score.double().numpy()
        best = proxy.argsort()[-20:]
        return (proxy[best] - gold[best]).mean()

    mean = overestimate("ensemble")
    assert max(overestimate("worst_case"), overestimate("uwo", coefficient=1.0)) < mean
    assert mean < overestimate("take_last_rm")
