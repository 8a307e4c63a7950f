"""UARM against loops in NumPy, GRPO's numbers where noise is nil, and the paper's case study."""

import numpy as np
import pytest
import torch
from ostinato_uncertainty.uarm import UARM
from uncertainty_kit import configured, context, toy

import ostinato
from ostinato.measures import kl_k3


def rollout(scores, parts=None, stds=None, group=None, lengths=None):
    count = len(scores)
    lengths = torch.tensor(lengths or [2] * count)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    score = torch.tensor(scores, dtype=torch.float64)
    return ostinato.Rollout(
        samples=None,
        mask=mask,
        score=score,
        rewards=zeros,
        logprobs=zeros - 1,
        ref_logprobs=zeros - 1.2,
        values=zeros,
        kl_coefficient=torch.full((count,), 0.1, dtype=torch.float64),
        group=torch.tensor(group or [0] * count),
        finished=mask[:, 0],
        advantages=zeros,
        returns=zeros,
        parts=score[:, None, None] if parts is None else torch.tensor(parts).double()[..., None],
        part_std=None if stds is None else torch.tensor(stds).double()[..., None],
    )


def advantages(made, **settings):
    found, returns = configured(UARM, **settings).advantages(made, context())
    assert returns.shape == made.mask.shape
    return found


def test_equations_20_to_22_group_by_group():
    draw = np.random.default_rng(0)
    scores, group = draw.normal(size=6), [4, 9, 4, 9, 9, 4]
    parts, stds = draw.normal(size=(6, 3)), draw.uniform(0.1, 0.4, size=(6, 3))
    made = rollout(scores.tolist(), parts.tolist(), stds.tolist(), group, [1, 2, 3, 3, 2, 1])
    found = advantages(made, responses=3, noise=0.5, floor=0.01)
    noise = 0.25 * (parts.var(1, ddof=1) + (stds**2).mean(1))
    for row in range(6):
        mine = [i for i in range(6) if group[i] == group[row]]
        mean = np.mean([scores[i] for i in mine])
        observed = np.mean([(scores[i] - mean) ** 2 for i in mine])
        signal = max(0.0, observed - np.mean([noise[i] for i in mine])) + 0.01
        wanted = signal / (signal + noise[row]) * (scores[row] - mean) / np.sqrt(signal)
        length = int(made.mask[row].sum())
        assert found[row, :length].tolist() == pytest.approx([wanted] * length)
        assert found[row, length:].abs().sum() == 0


def test_the_papers_case_study():
    """Figure 1: GRPO punishes a good answer beside a spurious one; UARM drops the spurious one."""
    scores = [4.0, 4.0, 8.0, 20.0]
    sure, _ = advantages(rollout(scores, stds=[[0.0]] * 4), floor=1e-9).unbind(1)
    assert sure[2:].tolist() == pytest.approx([-0.15, 1.68], abs=0.01)
    unsure, _ = advantages(rollout(scores, stds=[[0.1]] * 3 + [[12.0]])).unbind(1)
    assert abs(unsure[3]) < 0.15 * sure[3]


def test_the_loss_is_grpos():
    made = rollout([1.0, 0.0, 2.0, -1.0], stds=[[0.1]] * 4, lengths=[1, 3, 2, 3])
    plugin = configured(UARM)
    made.advantages, _ = plugin.advantages(made, context())
    new = made.logprobs + torch.linspace(-0.5, 0.5, made.mask.numel()).view_as(made.logprobs)
    found = plugin.loss(made, ostinato.PolicyOutputs(new, made.values, None, None), context())
    gains, kls = [], []
    for row, length in enumerate(made.mask.sum(1).tolist()):
        ratio = np.exp((new - made.logprobs)[row, :length].numpy())
        advantage = made.advantages[row, :length].numpy()
        gains.append(np.minimum(ratio * advantage, ratio.clip(0.8, 1.2) * advantage).mean())
        gap = (made.ref_logprobs - new)[row, :length].numpy()
        kls.append(0.1 * (np.exp(gap) - gap - 1).mean())
    assert found["policy"].item() == pytest.approx(-np.mean(gains))
    assert found["kl"].item() == pytest.approx(np.mean(kls))
    assert kl_k3(torch.zeros(1), torch.zeros(1)).item() == 0


def test_it_acts_in_a_run_on_what_a_bayesian_head_says(tmp_path):
    run = toy(tmp_path / "run", "{laplace_head: {pessimism: 0}}, uarm")
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert all(0 < row["uarm/weight"] < 1 and row["uarm/noise"] > 0 for row in rows)


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ostinato.UserError, match="'uarm': the reward is of one model"):
        advantages(rollout([1.0] * 4))
    with pytest.raises(ostinato.UserError, match=r"uarm\.responses.*greater than or equal to 2"):
        toy(tmp_path / "run", "{uarm: {responses: 1}}")
    with pytest.raises(ostinato.UserError, match=r"rl\.rollout_size: 16 is no multiple of the 5"):
        toy(tmp_path / "other", "{uarm: {responses: 5}}")
