"""The displaced gradient against that of the regularised loss, which a quadratic has in full."""

import numpy as np
import pytest
import torch
from ostinato_group.gradient_regularisation import GradientRegularisation


def displaced_gradient(instance, parameters, loss, ctx):
    """The gradient as the engine takes it: at parameters + displacement."""
    by = instance.policy_meta_update(parameters, loss, ctx)
    with torch.no_grad():
        for name, step in by.items():
            parameters[name].add_(step)
    found = torch.autograd.grad(loss(), list(parameters.values()))
    with torch.no_grad():
        for name, step in by.items():
            parameters[name].sub_(step)
    return dict(zip(parameters, found, strict=True))


def test_of_a_quadratic_it_is_the_gradient_of_loss_and_penalty(plugin, ctx):
    """L + γ/2 |∇L|² with L = x'Ax/2: its gradient is (A + γ A²) x."""
    a = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 4.0]])
    start = np.array([1.0, -2.0, 0.5])
    x = torch.tensor(start, requires_grad=True)
    matrix = torch.tensor(a)
    instance = plugin(GradientRegularisation, strength=0.05)
    found = displaced_gradient(instance, {"x": x}, lambda: x @ matrix @ x / 2, ctx)
    assert found["x"].numpy() == pytest.approx((a + 0.05 * a @ a) @ start)
    assert ctx.logged["gradient_regularisation/norm"] == pytest.approx(np.linalg.norm(a @ start))


def test_a_large_gradient_is_cut_and_heads_stay_where_they_are(plugin, ctx):
    names = ["lm.layer.weight", "lm.embed_in.weight", "value_head.weight", "lm.unused"]
    parameters = {n: torch.full((2,), 3.0, dtype=torch.float64, requires_grad=True) for n in names}
    used = list(parameters.values())[:3]
    instance = plugin(GradientRegularisation, strength=0.5, clip=2.0)
    by = instance.policy_meta_update(parameters, lambda: sum(100 * p.sum() for p in used), ctx)
    assert list(by) == names[:1]
    share = 100 / np.sqrt(6 * 100**2)  # of one entry in the norm over all that have a gradient
    assert by[names[0]].tolist() == pytest.approx([0.5 * 2.0 * share] * 2)


def curvature(instance, ctx):
    """Of the loss where noisy gradient descent ends: u v = 1 has it, |(u, v)|² is its curvature."""
    names = ("u", "v")
    weights = {
        n: torch.tensor(w, dtype=torch.float64, requires_grad=True)
        for n, w in zip(names, (3.0, 0.2), strict=True)
    }
    for step in range(1000):

        def loss(target=0.5 + step % 2):
            return (weights["u"] * weights["v"] - target).square() / 2

        if instance is None:
            found = dict(
                zip(names, torch.autograd.grad(loss(), list(weights.values())), strict=True)
            )
        else:
            found = displaced_gradient(instance, weights, loss, ctx)
        with torch.no_grad():
            for name, gradient in found.items():
                weights[name] -= 0.02 * gradient
    u, v = (w.item() for w in weights.values())
    assert u * v == pytest.approx(1, abs=0.1)
    return u * u + v * v


def test_among_equal_minima_the_flat_one_is_found(plugin, ctx):
    """All points with u v = 1 fit alike; minibatches, which want 1.5 and 0.5 in turn, do not."""
    plain = curvature(None, ctx)
    flat = curvature(plugin(GradientRegularisation, strength=0.1), ctx)
    assert plain > 8  # where it met the minima
    assert flat < 0.4 * plain  # 2 is the flattest
