"""orm: cross-entropy of "the answer is right" at a response's tokens (Book 7.5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import UserError
from step_kit import HERE, by_hand, right

FUNCTION = f"{HERE}:right"


def loss_of(kit, data, views=1, outputs=1, **settings):
    one = kit.make(("orm", {"function": FUNCTION, **settings}))
    model = one.initial(outputs=outputs)
    model.train()  # two views differ
    torch.manual_seed(0)
    batch = one.batch(data, model)
    made = model(batch.input_ids, batch.mask, views)
    answer = one.plugins.one("preference_loss", batch=batch, outputs=made, ctx=one.ctx)
    return answer, batch, made, model


def wanted(batch, tokens):
    """{place: right} of each response."""
    found = []
    for row, verdict in enumerate(right(batch.prompt, batch.response)):
        count = int(batch.response_mask[row].sum())
        found.append(dict.fromkeys(range(count) if tokens == "all" else [count - 1], verdict))
    return found


@pytest.mark.parametrize("tokens", ["all", "last"])
@pytest.mark.parametrize(("views", "outputs", "responses"), [(1, 1, 2), (2, 3, 4)])
def test_against_the_formula_in_float64(kit, comparisons, tokens, views, outputs, responses):
    data = comparisons(5, responses=responses, letters="abcd")
    made, batch, found, _ = loss_of(kit, data, views, outputs, tokens=tokens)
    assert made.shape == (views, len(data))
    assert len(set(right(batch.prompt, batch.response))) == 2  # there are both
    np.testing.assert_allclose(
        made.detach(), by_hand(batch, found, wanted(batch, tokens)), rtol=1e-4
    )


def test_the_score_is_the_log_odds_at_the_last_token(kit, comparisons):
    """The last token's term of the loss has the gradient s(score) - right in the score."""
    made, batch, found, _ = loss_of(kit, comparisons(4), tokens="last")
    found.states.retain_grad()
    made.sum().backward()
    score = found.score[0].detach()
    verdicts = torch.tensor(right(batch.prompt, batch.response))
    counts = torch.bincount(batch.pairs.flatten(), minlength=len(score))
    slope = counts * (score.sigmoid() - verdicts) / 2  # of the loss in the score
    last = batch.mask.sum(1) - 1
    expected = slope[:, None] * found.head.detach()
    got = found.states.grad[0][torch.arange(len(last)), last]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_label_turned_round_changes_nothing(kit, comparisons):
    """It learns from what the verifier says of each response, not from which is preferred."""
    data = comparisons(4)
    first = loss_of(kit, data)[0]
    label = loss_of(kit, data.remove_columns("label").add_column("label", [0.3] * 4))[0]
    torch.testing.assert_close(first, label)


def test_it_learns_the_outcome(kit, comparisons):
    one = kit.make(("orm", {"function": FUNCTION}), updates=150, lr=1e-2, batch=16)
    data, held = comparisons(96), comparisons(64, seed=1)
    model = one.trainer()(one.initial(), data)
    rows = {text: text for side in ("chosen", "rejected") for text in held[side]}
    scores = model.score_text([""] * len(rows), list(rows), [True] * len(rows)).score
    verdicts = torch.tensor(right([], list(rows))).bool()
    better = scores[verdicts][:, None] > scores[~verdicts][None, :]
    assert better.float().mean() > 0.9  # AUC


def test_the_verifier_is_asked_once_of_each_response(kit, comparisons, tmp_path):
    (tmp_path / "counted.py").write_text(
        "asked = []\n"
        "def check(completions, prompts):\n"
        "    asked.extend(zip(prompts, completions))\n"
        "    return [1.0] * len(completions)\n"
    )
    name = f"{tmp_path}/counted.py:check"
    one = kit.make(("orm", {"function": name}), updates=12, batch=4)
    data = comparisons(8)
    one.trainer()(one.initial(), data)
    asked = one.plugins["orm"].instance.verdicts.function.function.__globals__["asked"]
    pairs = [
        (p, data[side][i]) for i, p in enumerate(data["prompt"]) for side in ("chosen", "rejected")
    ]
    assert sorted(asked) == sorted(set(pairs))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing_here:verify", "plugins.orm.function: 'nothing_here:verify' cannot be imported"),
        (f"{HERE}:rigt", "has no 'rigt'; did you mean 'right'"),
        ("verify", "should be module:name"),
    ],
)
def test_a_verifier_that_is_not_there(kit, comparisons, name, said):
    with pytest.raises(UserError, match=said):
        loss_of(kit, comparisons(2), function=name)
