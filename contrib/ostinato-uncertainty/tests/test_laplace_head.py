"""The Bayesian head against the Hessian by automatic differentiation, and what it is unsure of."""

import numpy as np
import pytest
import torch
from ostinato_uncertainty.laplace_head import Centre, LaplaceHead, posterior_root
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification
from uncertainty_kit import actions, toy

import ostinato


def random(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_posterior_is_the_inverse_of_the_hessian():
    apart, weight = random(30, 4), random(4, seed=1)

    def loss(w):
        return -logsigmoid(apart @ w).sum() + 0.3 * 0.5 * w.square().sum()

    hessian = torch.autograd.functional.hessian(loss, weight).numpy()
    root = posterior_root(apart, weight, 0.3).numpy()
    assert root @ root.T == pytest.approx(np.linalg.inv(hessian), abs=1e-9)


def test_the_reader_takes_stds_off_the_mean():
    root, weight, h, centre = random(3, 3), random(3), random(5, 3, seed=2), random(3, seed=3)
    module = Centre(3).double()
    module.centre.copy_(centre @ root)
    logits = torch.cat([(h @ weight)[:, None], h @ root], dim=1)
    found = LaplaceHead.read(logits, torch.tensor([0.2]), {"laplace_head": module}, 1.5)
    covariance = (root @ root.T).numpy()
    for row, features in enumerate(h.numpy()):
        off = features - centre.numpy()
        std = np.sqrt(off @ covariance @ off)
        mean = features @ weight.numpy() - 0.2
        assert found.part_std[row].item() == pytest.approx(std)
        assert found.parts[row].item() == pytest.approx(mean, abs=1e-6)
        assert found.score[row].item() == pytest.approx(mean - 1.5 * std, abs=1e-6)


def test_it_is_unsure_where_no_pair_has_been_and_surer_with_more_pairs():
    seen = random(200, 2) * torch.tensor([1.0, 0.01])
    stds = []
    for count in (20, 200):
        root = posterior_root(seen[:count], torch.zeros(2).double(), 1.0)
        stds.append([root[0].norm().item(), root[1].norm().item()])  # of a step along each axis
    (known, unknown), (better, same) = stds
    assert better < known < 0.7 * unknown
    assert same == pytest.approx(unknown, rel=0.05)


def test_a_run_saves_a_head_that_is_sure_of_the_ruler(tmp_path):
    """The centre is the mean, over the SFT responses, of what the further outputs say."""
    run = toy(tmp_path / "run", "laplace_head", "rl.rollouts=1")
    row = next(row for row in run.metrics if row["kind"] == "reward_model_trained")
    assert row["laplace_head/std"] > 0
    assert actions(run, "laplace_head.train_rm")[0] > 0
    (modules,) = (tmp_path / "run").rglob("*reward_model/plugin_modules.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(modules.parent)
    (ruler,) = (load_file(file) for file in (tmp_path / "run").rglob("ruler.safetensors"))
    said = []
    for part in ("evaluation", "rl"):
        names = ("prompt_ids", "prompt_mask", "response_ids", "mask")
        for prompt, here, response, there in zip(
            *(ruler[f"{part}.{name}"] for name in names), strict=True
        ):
            ids = torch.cat([prompt[here], response[there]])[None]
            with torch.no_grad():
                said.append(model(input_ids=ids).logits[0])
    centre = load_file(modules)["laplace_head.centre"]
    assert torch.stack(said).mean(0)[1:].numpy() == pytest.approx(centre.numpy(), abs=1e-4)
    assert centre.abs().max() > 0.01


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ostinato.UserError, match=r"laplace_head\.precision.*greater than 0"):
        toy(tmp_path / "run", "{laplace_head: {precision: 0}}")
