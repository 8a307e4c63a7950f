"""bradley_terry: the preference loss with soft labels, margins and several heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import PreferenceBatch, RMOutputs

DRAW = np.random.default_rng(0)


def batch_of(pairs, label=None, margin=None, weight=None):
    count, rows = len(pairs), int(np.max(pairs)) + 1
    full = {"label": label, "margin": margin, "weight": weight}
    start = {"label": 1.0, "margin": 0.0, "weight": 1.0}
    made = {
        k: torch.tensor(np.full(count, start[k]) if v is None else v, dtype=torch.float32)
        for k, v in full.items()
    }
    empty = torch.zeros(rows, dtype=torch.long)
    tokens = torch.zeros(rows, 1, dtype=torch.long)
    return PreferenceBatch(
        prompt=[""] * rows,
        response=[""] * rows,
        input_ids=tokens,
        mask=tokens.bool(),
        response_mask=tokens.bool(),
        group=empty,
        rank=empty,
        prompt_id=empty,
        iteration=empty,
        pairs=torch.tensor(pairs),
        **made,
    )


def outputs_of(logits):
    made = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    return RMOutputs(made.mean(-1), made, torch.zeros(*made.shape[:2], 1))


def loss_of(kit, batch, logits):
    one = kit.make("bradley_terry")
    outputs = outputs_of(logits)
    made = one.plugins.one("preference_loss", batch=batch, outputs=outputs, ctx=one.ctx)
    return made, outputs.logits


PAIRS = [[0, 1], [3, 2], [4, 0]]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("heads", [1, 4])
def test_against_the_formula_in_float64(kit, views, heads):
    """sum over heads of -[p log s(z) + (1-p) log s(-z)]."""
    logits = DRAW.normal(size=(views, 5, heads))
    label, margin = DRAW.uniform(0.5, 1, 3), DRAW.normal(size=3)
    made, _ = loss_of(kit, batch_of(PAIRS, label, margin), logits)
    for v in range(views):
        for i, (c, r) in enumerate(PAIRS):
            total = 0.0
            for h in range(heads):
                a, b = logits[v, c, h], logits[v, r, h]
                s = 1 / (1 + np.exp(-(a - b - margin[i])))
                total -= label[i] * np.log(s) + (1 - label[i]) * np.log(1 - s)
            assert made[v, i].item() == pytest.approx(total, rel=1e-5)


def test_gradient_against_the_closed_form(kit):
    """dl/dr_c = s(z) - p: 0 where the model already believes the soft label (Secrets II, eq 5)."""
    logits = np.array([[[0.0], [0.0], [2.0], [3.0], [1.0]]])
    label = np.array([0.5, 0.9, 1.0])
    made, leaf = loss_of(kit, batch_of(PAIRS, label), logits)
    made.sum().backward()
    s = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    expected = np.zeros(5)
    for (c, r), p in zip(PAIRS, label, strict=True):
        g = s(logits[0, c, 0] - logits[0, r, 0]) - p
        expected[c] += g
        expected[r] -= g
    np.testing.assert_allclose(leaf.grad[0, :, 0], expected, atol=1e-6)


def test_a_margin_has_a_gradient(kit):
    """Inside the sigmoid, as in Llama 2: at equal scores, margin m pushes with s(m), not .5."""
    logits = np.zeros((1, 5, 1))
    made, leaf = loss_of(kit, batch_of(PAIRS, margin=np.array([2.0, 0.0, -2.0])), logits)
    made.sum().backward()
    s = 1 / (1 + np.exp(-np.array([2.0, 0.0, -2.0])))
    assert float(leaf.grad[0, 3, 0]) == pytest.approx(-s[1], abs=1e-6)
    assert float(leaf.grad[0, 0, 0]) == pytest.approx(-s[0] + s[2], abs=1e-6)
    assert made[0, 0].item() == pytest.approx(np.log1p(np.exp(2.0)), abs=1e-6)


def test_huge_differences_stay_finite(kit):
    made, leaf = loss_of(kit, batch_of(PAIRS), 1e4 * DRAW.normal(size=(1, 5, 1)))
    made.sum().backward()
    assert bool(made.isfinite().all())
    assert bool(leaf.grad.isfinite().all())
