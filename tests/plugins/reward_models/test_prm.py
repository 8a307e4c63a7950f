"""prm: cross-entropy at the ends of steps, and rewards by steps (Book 7.6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from ostinato import Reward, Samples, Scores, UserError
from ostinato_worlds import sums
from step_kit import HERE, SEPARATOR, by_hand, ends_by_hand, steps

FUNCTION = f"{HERE}:steps"


def made(kit, **settings):
    return kit.make(("prm", {"function": FUNCTION, "separator": SEPARATOR, **settings}))


def loss_of(kit, data, views=1, outputs=1, **settings):
    one = made(kit, **settings)
    model = one.initial(outputs=outputs)
    model.train()  # two views differ
    torch.manual_seed(0)
    batch = one.batch(data, model)
    found = model(batch.input_ids, batch.mask, views)
    answer = one.plugins.one("preference_loss", batch=batch, outputs=found, ctx=one.ctx)
    return answer, batch, found


# ---- the loss


@pytest.mark.parametrize(("views", "outputs", "responses"), [(1, 1, 2), (2, 3, 4)])
def test_against_the_formula_in_float64(kit, comparisons, views, outputs, responses):
    data = comparisons(6, responses=responses, letters="abc")
    answer, batch, found = loss_of(kit, data, views, outputs)
    wanted = []
    for row, text in enumerate(batch.response):
        ends = ends_by_hand(text, int(batch.response_mask[row].sum()))
        wanted.append(dict(zip(ends, steps([text])[0], strict=True)))
    assert any(len(places) > 2 for places in wanted)
    assert answer.shape == (views, len(data))
    np.testing.assert_allclose(answer.detach(), by_hand(batch, found, wanted), rtol=1e-4)


def test_only_the_ends_of_steps_have_a_gradient(kit, comparisons):
    answer, batch, found = loss_of(kit, comparisons(5, letters="abc"))
    found.states.retain_grad()
    answer.sum().backward()
    moved = found.states.grad[0].abs().sum(-1) > 0  # (N, T)
    for row, text in enumerate(batch.response):
        places = np.flatnonzero(batch.response_mask[row])
        ends = ends_by_hand(text, len(places))
        assert np.flatnonzero(moved[row]).tolist() == places[ends].tolist()


def test_an_unfinished_response_that_ends_with_a_separator_has_no_further_step(kit, comparisons):
    row = comparisons(1).to_list()[0]
    for side, text, finished in (("chosen", "ab", False), ("rejected", "cb", True)):
        ids = [*(ord(letter) + 3 for letter in text), *[1] * finished]  # ByT5's bytes, and its eos
        row |= {side: text, f"{side}_ids": ids, f"{side}_finished": finished}
    answer, batch, found = loss_of(kit, Dataset.from_list([row]))
    assert batch.response == ["ab", "cb"]
    wanted = [{1: True}, {1: False, 2: False}]  # a right step; a wrong one and an empty one
    np.testing.assert_allclose(answer.detach(), by_hand(batch, found, wanted), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("too_few", r"answered 1 for a completion of \d steps"),
        (
            "numbers",
            r"answered '1.0' for a completion of \d steps?, expected a list with a verdict",
        ),
    ],
)
def test_a_checker_that_does_not_know_the_steps(kit, comparisons, name, said):
    with pytest.raises(UserError, match=said):
        loss_of(kit, comparisons(8, letters="ab"), function=f"{HERE}:{name}")


# ---- the reward


class Digits(Reward):
    """What a text is worth, and half a point for having been finished: known at each beginning."""

    def scores(self, samples: Samples) -> Scores:
        worth = [sum(map(int, filter(str.isdigit, t))) % 7 - 3.0 for t in samples.responses]
        return Scores(torch.tensor(worth) + 0.5 * samples.finished)


TEXTS = ["7+5=12;4+8+1=13;3+2+1=6;632", "632", "1;;2", ";", "9;8;7;6;5;4"]


@pytest.fixture(scope="module")
def samples():
    tokenizer = AutoTokenizer.from_pretrained(sums.POLICY)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    finished = [True, True, False, False, True]
    rows = [tokenizer(t)["input_ids"] + [eos] * f for t, f in zip(TEXTS, finished, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    prompts = torch.full((5, 3), 4)
    mask = torch.ones(5, 3, dtype=torch.bool)
    return Samples(tokenizer, prompts, mask, ids, ids != pad, torch.tensor(finished))


def worth_by_hand(text, finished):
    """The score of each beginning that ends with a step."""
    parts = text.split(";")
    starts = [";".join(parts[:n]) + ";" for n in range(1, len(parts))]
    starts += [text] if finished or parts[-1] else []
    found = [sum(int(c) for c in s if c.isdigit()) % 7 - 3.0 for s in starts]
    found[-1] += 0.5 * finished
    return found


def reduced(worth, how):
    return {"min": min(worth), "mean": sum(worth) / len(worth), "last": worth[-1]}[how]


def wrapped_by(kit, **settings):
    one = kit.make(("prm", {"function": FUNCTION, "separator": ";", **settings}))
    return one.plugins.call("prm", "wrap_reward", reward=Digits(), ctx=one.ctx)


@pytest.mark.parametrize("how", ["min", "mean", "last"])
def test_a_response_is_worth_what_its_steps_are(kit, samples, how):
    found = wrapped_by(kit, reduce=how).score_samples(samples)
    rows = zip(TEXTS, samples.finished.tolist(), strict=True)
    expected = [reduced(worth_by_hand(*row), how) for row in rows]
    assert found.score.tolist() == pytest.approx(expected)
    assert found.token_score is None


@pytest.mark.parametrize("how", ["min", "mean", "last"])
def test_dense_rewards_stand_at_the_steps_ends_and_add_up(kit, samples, how):
    found = wrapped_by(kit, reduce=how, dense=True).score_samples(samples)
    assert found.score.tolist() == [0.0] * 5
    plain = wrapped_by(kit, reduce=how).score_samples(samples)
    torch.testing.assert_close(found.total, plain.score)
    for row, (text, finished) in enumerate(zip(TEXTS, samples.finished.tolist(), strict=True)):
        worth = worth_by_hand(text, finished)
        ends = ends_by_hand(text.replace(";", SEPARATOR), int(samples.mask[row].sum()))
        running = [reduced(worth[: n + 1], how) for n in range(len(worth))]
        expected = np.zeros(samples.mask.shape[1])
        expected[ends] = np.diff(running, prepend=0.0)
        np.testing.assert_allclose(found.token_score[row], expected, atol=1e-6)
