"""PURM: its loss and overlap against numerical integrals, what it learns, and its window."""

import numpy as np
import pytest
import torch
from ostinato_uncertainty.purm import PURM, overlap
from scipy.integrate import quad
from scipy.stats import norm
from uncertainty_kit import actions, configured, context, pairs, toy

import ostinato


def rewards(means, stds, iteration=1):
    """A batch whose parts and part_std are (B, members, 1)."""
    parts = torch.tensor(means, dtype=torch.float32).view(len(means), -1, 1)
    std = None if stds is None else torch.tensor(stds, dtype=torch.float32).view_as(parts)
    mask = torch.ones(len(means), 2, dtype=torch.bool)
    rest = dict.fromkeys(("samples", "ref_logprobs", "finished", "group", "kl_scale"))
    return ostinato.RewardBatch(
        score=parts.flatten(1).mean(1),
        parts=parts,
        part_std=std,
        logprobs=mask.float(),
        mask=mask,
        iteration=iteration,
        step=0,
        **rest,
    )


def coefficient(m, s, n, t):
    """The integral of sqrt(p q)."""

    def height(x):
        return np.sqrt(norm.pdf(x, m, s) * norm.pdf(x, n, t))

    middle = (m + n) / 2
    return quad(height, middle - 30, middle + 30, points=[m, n], limit=400)[0]


@pytest.mark.parametrize("label", [1.0, 0.7])
def test_the_loss_is_of_the_expected_preference(label):
    batch, outputs = pairs(
        stds=[torch.tensor([0.5, 2.0]), torch.tensor([1.5, 0.1])],
        chosen=[1.0, -0.5],
        rejected=[0.2, 0.7],
    )
    batch.label[:] = label
    batch.margin[:] = 0.1
    found = configured(PURM, points=32).preference_loss(batch, outputs)[0]
    cases = [(1.0 - 0.2 - 0.1, np.hypot(0.5, 1.5)), (-0.5 - 0.7 - 0.1, np.hypot(2.0, 0.1))]
    for (gap, spread), value in zip(cases, found.tolist(), strict=True):
        chance = quad(
            lambda z, m=gap, s=spread: norm.pdf(z, m, s) / (1 + np.exp(-z)),
            gap - 12 * spread,
            gap + 12 * spread,
        )[0]
        wanted = -label * np.log(chance) - (1 - label) * np.log(1 - chance)
        assert value == pytest.approx(wanted, abs=1e-4)


def test_a_model_with_one_output_trains_by_bradley_terry():
    batch, outputs = pairs(chosen=[1.0, 0.0], rejected=[0.0, 2.0])
    found = configured(PURM).preference_loss(batch, outputs)[0]
    assert found.tolist() == pytest.approx(np.log1p(np.exp([-1.0, 2.0])).tolist(), abs=1e-6)


def test_overlap_is_the_bhattacharyya_coefficient():
    first, second = torch.tensor([[0.3], [0.5]]), torch.tensor([[1.1], [1.4]])
    found = overlap(first.double(), second.double()).item()
    assert found == pytest.approx(coefficient(0.3, 0.5, 1.1, 1.4), abs=1e-6)
    assert overlap(first, first).item() == pytest.approx(1.0)


def test_the_penalty_is_the_mean_overlap_with_the_latest_responses():
    plugin, ctx = configured(PURM, penalty=0.5, window=3), context()
    plugin.reward_transform(rewards([9.0, 0.0, 1.0], [1.0] * 3), ctx)
    found = plugin.reward_transform(rewards([0.5, 2.0], [0.5, 1.0]), ctx)  # 9.0 is forgotten next
    known = [(9.0, 1.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5), (2.0, 1.0)]
    for row, (m, s) in enumerate(known[3:]):
        u = np.mean([coefficient(m, s, n, t) for n, t in known])
        assert found.score[row].item() == pytest.approx(m - 0.5 * u, abs=1e-5)
    third = plugin.reward_transform(rewards([0.0], [1.0]), ctx)
    u = np.mean([coefficient(0.0, 1.0, n, t) for n, t in [*known[2:], (0.0, 1.0)]])
    assert third.score.item() == pytest.approx(-0.5 * u, abs=1e-5)


def test_the_window_is_saved_and_begins_anew_with_other_reward_models():
    plugin, ctx = configured(PURM), context()
    plugin.reward_transform(rewards([[3.0, 4.0]], [[1.0, 2.0]]), ctx)
    other = configured(PURM)
    other.load_state_dict(plugin.state_dict())
    now = rewards([[1.0, 0.0]], [[1.0, 1.0]])
    same = [p.reward_transform(now, ctx).score.item() for p in (plugin, other)]
    assert same[0] == same[1] > configured(PURM).reward_transform(now, ctx).score.item()
    fresh = other.reward_transform(rewards([[1.0, 0.0]], [[1.0, 1.0]], iteration=2), ctx)
    assert fresh.score.item() == pytest.approx(0.5 - 1.0)


def test_responses_that_people_disagree_on_overlap_more():
    """The paper's aleatoric case: two pairs, one with labels that contradict each other."""
    means = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    log_stds = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    plugin, optimiser = configured(PURM), torch.optim.Adam([means, log_stds], lr=0.05)
    batch, outputs = pairs(chosen=[0.0, 0.0], rejected=[0.0, 0.0])
    batch.label = torch.tensor([0.95, 0.5]).double()
    for _ in range(200):
        outputs.score = means[None]
        outputs.logits = torch.stack([means, log_stds], dim=-1)[None]
        optimiser.zero_grad()
        plugin.preference_loss(batch, outputs).mean().backward()
        optimiser.step()
    normals = torch.stack([means, log_stds.exp()], dim=1)[..., None].detach()
    clear, disputed = (overlap(normals[i], normals[i + 2]).item() for i in (0, 1))
    assert clear < 0.8 < 0.99 < disputed


def test_it_acts_in_a_run(tmp_path):
    run = toy(tmp_path / "run", "purm", "rl.clip_score=null")
    for row in (row for row in run.metrics if row["kind"] == "policy"):
        taken_off = row["purm/uncertainty"]
        assert 0 < taken_off <= 1
        assert row["reward"] == pytest.approx(row["score"] - taken_off, abs=1e-5)
    assert actions(run, "purm.train_rm")[0] > 0


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ostinato.UserError, match="'purm': the reward has no standard deviations"):
        configured(PURM).reward_transform(rewards([1.0], None), context())
    with pytest.raises(ostinato.UserError, match=r"purm\.window.*greater than or equal to 1"):
        toy(tmp_path / "run", "{purm: {window: 0}}")
