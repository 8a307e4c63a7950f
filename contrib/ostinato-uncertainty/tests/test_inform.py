"""InfoRM: its loss against torch.distributions and NumPy, its code in runs, and a resumed one."""

import numpy as np
import pytest
import torch
from ostinato_uncertainty.inform import InfoRM
from uncertainty_kit import configured, context, pairs, toy

import ostinato

FEW = ("reward_model.updates=25", "reward_model.batch=16", "rl.rollouts=1")


def outputs(mean, log_variance, decoder, views=1):
    logits = torch.cat([torch.tensor(mean), torch.tensor(log_variance)], dim=-1).double()
    decode = torch.nn.Linear(len(decoder), 1, bias=False).double()
    decode.weight.data = torch.tensor([decoder]).double()
    batch, made = pairs(chosen=mean[0], rejected=mean[1])
    made.logits = logits[None].expand(views, -1, -1)
    made.modules = {"inform": decode}
    made.score = decode(logits[:, : len(decoder)]).T.expand(views, -1)
    return batch, made


def drawing(seed=0):
    return context(generator=lambda purpose: torch.Generator().manual_seed(seed))


def test_the_kl_is_that_of_the_code_to_a_standard_normal():
    mean, log_variance = [[0.5, -2.0], [0.0, 0.3]], [[0.1, -1.5], [1.0, 0.0]]
    _, made = outputs(mean, log_variance, [1.0, 1.0])
    plugin = configured(InfoRM, latent=2, beta=0.25)
    normal = torch.distributions.Normal
    given = normal(torch.tensor(mean), (torch.tensor(log_variance) / 2).exp())
    wanted = torch.distributions.kl_divergence(given, normal(0.0, 1.0)).mean()
    assert plugin.rm_loss(made)["kl"].item() == pytest.approx(0.25 * wanted.item())


def test_a_code_without_noise_is_plain_bradley_terry():
    _, made = outputs([[0.4, 1.0], [2.0, -0.5]], [[-80.0] * 2] * 2, [1.0, 2.0])
    batch, _ = pairs(chosen=[0.0], rejected=[0.0])
    batch.label, batch.margin = torch.tensor([0.8]).double(), torch.tensor([0.1]).double()
    found = configured(InfoRM, latent=2).preference_loss(batch, made, drawing())
    gap = (0.4 + 2 * 1.0) - (2.0 - 2 * 0.5) - 0.1
    wanted = 0.8 * np.log1p(np.exp(-gap)) + 0.2 * np.log1p(np.exp(gap))
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(wanted)


def test_noise_is_of_the_size_that_the_encoder_says_and_another_for_each_response():
    """The mean of sigma(-(z_c - z_r)) over many views against its integral."""
    _, made = outputs([[1.0], [0.0]], [[0.0], [np.log(4.0)]], [1.0], views=40_000)
    batch, _ = pairs(chosen=[0.0], rejected=[0.0])
    found = configured(InfoRM, latent=1).preference_loss(batch, made, drawing())
    gap = 1.0 + np.sqrt(1.0 + 4.0) * np.linspace(-8, 8, 4001)
    density = np.exp(-(np.linspace(-8, 8, 4001) ** 2) / 2)
    wanted = (density * np.log1p(np.exp(-gap))).sum() / density.sum()
    assert found.mean().item() == pytest.approx(wanted, abs=0.02)


def test_other_models_than_its_own_train_on_their_score():
    batch, made = pairs(chosen=[1.0, 0.0], rejected=[0.0, 2.0])
    found = configured(InfoRM, latent=2).preference_loss(batch, made, drawing())
    assert found[0].tolist() == pytest.approx(np.log1p(np.exp([-1.0, 2.0])).tolist())


def test_the_reader_scores_the_mean_of_the_code_and_hands_it_on():
    decode = torch.nn.Linear(2, 1, bias=False)
    decode.weight.data = torch.tensor([[2.0, -1.0]])
    logits = torch.tensor([[1.0, 3.0, 9.0, 9.0], [0.5, 0.0, -9.0, 9.0]])
    found = InfoRM.read(logits, torch.tensor([0.25]), {"inform": decode})
    assert found.score.tolist() == [-1.25, 0.75]
    assert found.parts.tolist() == [[[-1.25]], [[0.75]]]
    assert found.hidden.tolist() == [[[1.0, 3.0]], [[0.5, 0.0]]]


def test_a_tighter_bottleneck_leaves_less_in_the_code(tmp_path):
    held = []
    for beta in (0.01, 10.0):
        settings = f"{{inform: {{latent: 4, beta: {beta}}}}}"
        run = toy(tmp_path / str(beta), settings, *FEW)
        rows = [row for row in run.metrics if row["kind"] == "reward_model"]
        held.append(rows[-1]["terms"]["inform/kl"] / beta)  # nats a dimension
    loose, tight = held
    assert 0 < tight < loose / 5


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ostinato.UserError, match=r"inform\.latent.*greater than or equal to 1"):
        toy(tmp_path / "run", "{inform: {latent: 0}}")
    with pytest.raises(ostinato.UserError, match=r"hook 'train_rm' has one owner.*purm"):
        toy(tmp_path / "run", "inform, purm")
