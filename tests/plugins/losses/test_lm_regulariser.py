"""lm_regulariser: the chosen response's NLL beside the preference loss (Book, section 8.2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import UserError


def nll_of(logits, batch):
    """Mean over views and comparisons of the chosen's nats per token; float64, with loops."""
    total = []
    for view in logits.detach().double().numpy():
        for row in batch.pairs[:, 0].tolist():
            nats = []
            for t in np.flatnonzero(batch.response_mask[row]):
                z = view[row, t - 1]  # what stands before the token predicts it
                nats.append(
                    np.log(np.exp(z - z.max()).sum()) + z.max() - z[batch.input_ids[row, t]]
                )
            total.append(np.mean(nats))
    return np.mean(total)


def term_of(kit, batch, model, views=1, **settings):
    one = kit.make(("lm_regulariser", settings))
    outputs = model(batch.input_ids, batch.mask, views)
    answer = one.plugins.call(
        "lm_regulariser", "rm_loss", batch=batch, outputs=outputs, ctx=one.ctx
    )
    assert list(answer) == ["nll"]
    return answer["nll"], outputs


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("responses", [2, 4])
def test_against_the_formula(kit, comparisons, views, responses):
    one = kit.make("lm_regulariser")
    model = one.initial()
    model.train()  # two views differ
    torch.manual_seed(0)
    batch = one.batch(comparisons(4, responses=responses), model)
    made, outputs = term_of(kit, batch, model, views, gamma=0.7)
    assert made.item() == pytest.approx(0.7 * nll_of(outputs.lm_logits, batch), rel=1e-5)


def test_only_the_chosen_responses_tokens_are_predicted(kit, comparisons):
    """The gradient is 0 at prompt tokens, at the last token, at padding and in rejected rows."""
    one = kit.make("lm_regulariser")
    model, data = one.initial(), comparisons(3)
    batch = one.batch(data, model)
    outputs = model(batch.input_ids, batch.mask)
    outputs.lm_logits.retain_grad()
    answer = one.plugins.call(
        "lm_regulariser", "rm_loss", batch=batch, outputs=outputs, ctx=one.ctx
    )
    answer["nll"].backward()
    moved = outputs.lm_logits.grad[0].abs().sum(-1) > 0  # (N, T)
    for row in range(len(moved)):
        predicts = np.flatnonzero(batch.response_mask[row]) - 1 if row in batch.pairs[:, 0] else []
        assert np.flatnonzero(moved[row]).tolist() == list(predicts)


def test_it_is_logged_apart_and_does_not_depend_on_accumulation(kit, comparisons):
    found = []
    for accumulate in (1, 4):
        one = kit.make(("lm_regulariser", {"gamma": 0.5}), updates=1, accumulate=accumulate)
        start, data = one.initial(), comparisons(8)
        one.trainer()(start, data)
        found.append(one.rows[0]["terms"]["lm_regulariser/nll"])
    batch = one.batch(data, start)
    expected = 0.5 * nll_of(start(batch.input_ids, batch.mask).lm_logits, batch)
    assert found == pytest.approx([expected] * 2, rel=1e-5)


def test_it_runs_beside_two_dropout_views(kit, comparisons):
    one = kit.make("lm_regulariser", "simcse", updates=1)
    one.trainer()(one.initial(), comparisons(8))
    terms = one.rows[0]["terms"]
    assert set(terms) == {"bradley_terry", "lm_regulariser/nll", "simcse/contrastive"}


def test_effect_the_body_stays_a_language_model(kit, comparisons):
    """A body that was a language model forgets it in plain reward-model training, not with this.

    Measured on held-out chosen responses; the accuracy stays.
    """
    settings = {"batch": 32, "updates": 40, "lr": 1e-2}
    plugin = ("lm_regulariser", {"gamma": 1.0})
    one = kit.make(plugin, **settings)
    data, held = comparisons(96), comparisons(64, seed=50)
    table = data.to_dict() | {"label": [0.5] * 96}  # no preference: this trains a language model
    body = one.trainer()(one.initial(), data.from_dict(table, data.features))
    batch = one.batch(held, body)

    def measured(model):
        with torch.no_grad():
            outputs = model(batch.input_ids, batch.mask)
        score = outputs.score[0][batch.pairs]
        return nll_of(outputs.lm_logits, batch), (score[:, 0] > score[:, 1]).float().mean().item()

    start = measured(body)[0]
    plain, _ = measured(kit.make(**settings).trainer()(body, data))
    kept, right = measured(kit.make(plugin, **settings).trainer()(body, data))
    assert plain > start + 0.3, (start, plain, kept)
    assert kept < start + 0.1, (start, plain, kept)
    assert right > 0.9


def test_settings_out_of_range_are_refused(kit):
    with pytest.raises(UserError, match="gamma"):
        kit.make(("lm_regulariser", {"gamma": -1.0}))
