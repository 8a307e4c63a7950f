"""The ruler: one zero for every head, member, model and combination."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import combine
from ostinato.models.reward import Calibration
from ostinato.models.reward_model import Reader
from ostinato.models.ruler import Ruler, calibrated, centred


def raw(model, ruler):
    """Logits of the ruler in float64."""
    return ruler.over(model.logits).double().numpy()


def scores(reward, ruler):
    """(scores (N,), parts (N, members, heads)) of the ruler in float64."""
    found = [reward.score_samples(samples) for samples in (ruler.evaluation, ruler.rl)]
    parts = np.concatenate([f.parts.double().numpy() for f in found])
    return np.concatenate([f.score.double().numpy() for f in found]), parts


@pytest.mark.parametrize("outputs", [1, 4])
def test_every_head_and_the_score_have_mean_0_and_the_score_std_1(kit, comparisons, outputs):
    one = kit.make()
    ruler, model = one.ruler(comparisons(12)), one.initial(outputs=outputs)
    logits = raw(model, ruler)
    model = calibrated(model, ruler)
    np.testing.assert_allclose(model.calibration.zeros, logits.mean(0), atol=1e-6)
    heads = logits - logits.mean(0)
    unit = heads.mean(1).std(ddof=1)
    assert model.calibration.unit == pytest.approx(unit, rel=1e-5)
    score, parts = scores(model, ruler)
    np.testing.assert_allclose(score, heads.mean(1) / unit, atol=1e-5)
    np.testing.assert_allclose(parts[:, 0], heads / unit, atol=1e-5)


def test_a_reader_that_is_not_linear_reads_heads_of_one_zero(kit, comparisons):
    """brme's minimum over heads is taken after each has mean 0: an offset of a head is nothing."""
    one = kit.make("brme")
    ruler = one.ruler(comparisons(12))
    found = []
    for offset in (0.0, 7.0):
        model = one.initial().with_head(
            one.ctx.draws, 6, "brme", settings={"trade_off": 0.5, "integration": "min"}
        )
        plain = model.readers["brme"].read
        shift = torch.tensor([offset, 0.0, -offset, 0.0, 0.0, 0.0])
        shifted = Reader(lambda x, *a, _s=shift, _f=plain, **k: _f(x + _s, *a, **k))
        model.readers = {"brme": shifted}
        calibrated(model, ruler)
        found.append(scores(model, ruler))
        assert abs(found[-1][0].mean()) < 1e-5
        np.testing.assert_allclose(found[-1][1].mean(0), 0, atol=1e-5)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_scale_and_offset_of_a_reward_model_do_not_matter_once_calibrated(kit, comparisons):
    """Bradley-Terry scores have an arbitrary scale: ten times the head is the same reward."""
    one = kit.make()
    ruler, model = one.ruler(comparisons(12)), one.initial()
    larger = model.copy()
    larger.model.score.weight.data *= 10
    a, b = (scores(calibrated(m, ruler), ruler)[0] for m in (model, larger))
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert larger.copy().calibration == Calibration()  # what becomes of a copy is not known yet


def test_a_model_without_spread_keeps_its_own_unit(kit, comparisons):
    one = kit.make()
    model = one.initial()
    model.model.score.weight.data.zero_()
    made = calibrated(model, one.ruler(comparisons(8)))
    assert made.calibration == Calibration((0.0,), 0.0, 1.0)


def test_a_combination_is_centred_and_keeps_its_unit(kit, comparisons):
    one = kit.make()
    ruler = one.ruler(comparisons(16))
    models = [calibrated(one.initial(seed), ruler) for seed in range(3)]
    each = np.stack([scores(m, ruler)[0] for m in models], axis=1)
    lowest = each.min(1)
    assert lowest.mean() < -0.1
    made = centred(combine(models, lambda s: s.amin(1)), ruler)
    score, parts = scores(made, ruler)
    np.testing.assert_allclose(score, lowest - lowest.mean(), atol=1e-5)
    np.testing.assert_allclose(parts[..., 0], each, atol=1e-5)  # members keep their own zero
    assert centred(made, ruler).zero == pytest.approx(lowest.mean(), abs=1e-5)  # once is enough


def test_a_ruler_comes_back_from_its_folder(kit, comparisons, tmp_path):
    made = kit.make().ruler(comparisons(6))
    made = Ruler(made.evaluation, made.rl, torch.arange(6.0), None)
    made.save(tmp_path)
    texts = {name: getattr(made, name).prompts for name in ("evaluation", "rl")}
    again = Ruler.load(tmp_path, made.rl.tokenizer, torch.device("cpu"), texts)
    assert torch.equal(again.gold, made.gold)
    assert again.rl_gold is None
    for a, b in ((made.evaluation, again.evaluation), (made.rl, again.rl)):
        assert (a.prompts, a.responses) == (b.prompts, b.responses)
        assert torch.equal(a.finished, b.finished)
        assert torch.equal(a.prompt_mask, b.prompt_mask)
