"""Length calibration: the local regression against a slow one, and a reward that likes length."""

import numpy as np
import pytest
import torch
from ostinato_shaping.length_calibration import LengthCalibration
from ostinato_shaping.lowess import along, lowess

import ostinato


def slow(x, y, fraction, again):
    """Cleveland's regression point by point, each line by numpy.polyfit."""
    places = np.unique(x)
    trusted = np.ones(len(x))
    for _ in range(again + 1):
        values = []
        for place in places:
            far = np.abs(x - place)
            width = np.sort(far)[int(fraction * len(x)) - 1]
            weights = np.clip(1 - (far / width) ** 3, 0, None) ** 3 * trusted
            values.append(np.polyval(np.polyfit(x, y, 1, w=np.sqrt(weights)), place))
        residual = y - np.array(values)[np.searchsorted(places, x)]
        spread = 6 * np.median(np.abs(residual))
        trusted = np.clip(1 - (residual / spread) ** 2, 0, None) ** 2
    return places, np.array(values)


@pytest.mark.parametrize(("fraction", "again"), [(0.5, 0), (0.3, 3)])
def test_the_curve_is_that_of_point_by_point_regressions(fraction, again):
    draws = np.random.default_rng(0)
    x = draws.uniform(0, 10, 81)  # an odd number: one median
    y = np.sin(x) + draws.normal(0, 0.1, 81)
    y[::9] += 5  # outliers
    places, values = lowess(torch.tensor(x), torch.tensor(y), fraction, again)
    wanted = slow(x, y, fraction, again)
    np.testing.assert_allclose(places, wanted[0])
    np.testing.assert_allclose(values, wanted[1], atol=1e-6)


def test_few_lengths_that_many_responses_share():
    x, y = torch.tensor([3] * 8 + [9]), torch.tensor([1.0, 2.0] * 4 + [7.0])
    places, values = lowess(x, y, 0.5)
    assert places.tolist() == [3, 9]
    assert values.tolist() == pytest.approx([1.5, 7.0])  # a mean where all have one length
    at = along(places, values, torch.tensor([1, 3, 6, 9, 50]))
    assert at.tolist() == pytest.approx([1.5, 1.5, 4.25, 7.0, 7.0])
    one = lowess(torch.tensor([4, 4]), torch.tensor([1.0, 3.0]), 0.5)
    assert along(*one, torch.tensor([2, 4, 8])).tolist() == [2.0] * 3


@pytest.fixture
def biased(small):
    """Quality (its first token, even or odd) and a bonus for length that flattens."""

    def worth(samples):
        quality = (samples.response_ids[:, 0] % 2).float()
        return quality + 3 * samples.lengths.float().sqrt()

    return small.told(worth)


def drawn(small, count, seed):
    draws = np.random.default_rng(seed)
    lengths = draws.integers(2, 30, count)
    return small.samples([[int(draws.integers(2, 50)), *[2] * (n - 2), 1] for n in lengths])


def test_what_length_explains_is_taken_off_and_quality_stays(small, biased):
    ruler = ostinato.Ruler(drawn(small, 150, 0), drawn(small, 150, 1))
    ctx = small.context(ruler=ruler)
    plugin = small.configured(LengthCalibration, fraction=0.2)
    given = drawn(small, 400, 2)
    found = plugin.wrap_reward(biased, ctx).score_samples(given).score
    quality = (given.response_ids[:, 0] % 2).numpy()
    raw = biased.score_samples(given).score
    assert np.corrcoef(raw, given.lengths)[0, 1] > 0.95
    assert abs(np.corrcoef(found, given.lengths)[0, 1]) < 0.1
    assert np.corrcoef(raw, quality)[0, 1] < 0.3
    assert np.corrcoef(found, quality)[0, 1] > 0.9
    assert ctx.logged["length_calibration/correlation_before"] > 0.95
    assert abs(ctx.logged["length_calibration/correlation_after"]) < 0.1


def test_the_scores_do_not_depend_on_their_company(small, biased):
    ruler = ostinato.Ruler(drawn(small, 20, 0), drawn(small, 20, 1))
    plugin = small.configured(LengthCalibration, strength=0.5)
    made = plugin.wrap_reward(biased, small.context(ruler=ruler))
    given = drawn(small, 10, 2)
    alone = [float(made.score_samples(given.rows(torch.tensor([i]))).score) for i in range(10)]
    assert made.score_samples(given).score.tolist() == pytest.approx(alone, abs=1e-5)


def test_it_acts_in_a_run(toy):
    run = toy("{length_calibration: {responses: 20}}", "iterations=2", "rl.rollouts=1")
    rows = [row for row in run.metrics if row.get("stage") == "combined"]
    for row in rows:
        assert row["actions"]["length_calibration.wrap_reward"] > 0.01
        before, after = (row[f"length_calibration/correlation_{k}"] for k in ("before", "after"))
        assert abs(after) < max(0.25, abs(before))


@pytest.mark.parametrize("settings", ["{fraction: 0}", "{fraction: 1.5}", "{strength: 0}"])
def test_a_wrong_setting_is_one_sentence(toy, settings):
    with pytest.raises(ostinato.UserError, match=r"plugins\.length_calibration\.") as caught:
        toy(f"{{length_calibration: {settings}}}")
    assert "\n" not in str(caught.value)
