"""What is wrong with a policy algorithm's answers is one sentence that names its plugin."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import ostinato
from ostinato.config.errors import UserError
from ostinato.contract.algorithms import advantages_of, kept_of, terms_of
from ostinato.engine.session import check
from rollout_kit import random_rollout

ROLLOUT, NEW = random_rollout(0)
OUTPUTS = SimpleNamespace(logprobs=NEW.requires_grad_())
SHAPE = tuple(ROLLOUT.mask.shape)
RIGHT = torch.zeros(SHAPE)


def answering(**answers):
    """An algorithm whose methods answer these."""
    return SimpleNamespace(**{name: lambda *_, a=answer: a for name, answer in answers.items()})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "a NoneType, expected advantages and returns"),
        (RIGHT, "a Tensor, expected advantages and returns"),
        ((RIGHT, None), "a tuple, expected advantages and returns"),
        ((RIGHT[:, 0], RIGHT), f"advantages of shape ({SHAPE[0]},), expected {SHAPE}"),
        ((RIGHT, RIGHT[:, :1]), f"returns of shape ({SHAPE[0]}, 1), expected {SHAPE}"),
    ],
)
def test_wrong_advantages(answer, said):
    with pytest.raises(UserError) as caught:
        advantages_of("mine", answering(advantages=answer), ROLLOUT)
    assert str(caught.value) == f"plugin 'mine': its advantages(rollout) answered {said}"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1], "a list, expected a mapping"),
        ({"a": 1.0}, "a float as 'a', expected a tensor"),
        ({"a": OUTPUTS.logprobs}, f"'a' of shape {SHAPE}, expected a scalar"),
        ({}, "no term with a gradient, expected one computed from `outputs`"),
        ({"a": torch.tensor(1.0)}, "no term with a gradient, expected one computed from `outputs`"),
        (
            {"log/a": OUTPUTS.logprobs.sum()},
            "no term with a gradient, expected one computed from `outputs`",
        ),
    ],
    ids=str,
)
def test_wrong_terms(answer, said):
    with pytest.raises(UserError) as caught:
        terms_of("mine", answering(loss=answer), ROLLOUT, OUTPUTS)
    assert str(caught.value) == f"plugin 'mine': its loss(batch, outputs) answered {said}"


def test_right_answers_pass():
    terms = {"a": OUTPUTS.logprobs.sum(), "log/b": torch.tensor(2.0)}
    made = answering(advantages=(RIGHT, RIGHT), loss=terms)
    assert advantages_of("mine", made, ROLLOUT) == (RIGHT, RIGHT)
    assert terms_of("mine", made, ROLLOUT, OUTPUTS) == terms
    assert kept_of("mine", made, ROLLOUT) is ROLLOUT


def test_an_error_of_its_own_is_the_plugins():
    def broken(*_):
        raise KeyError("x")

    made = SimpleNamespace(advantages=broken, loss=broken, keep=broken)
    for ask, said in (
        (lambda: advantages_of("mine", made, ROLLOUT), "advantages(rollout)"),
        (lambda: kept_of("mine", made, ROLLOUT), "keep(rollout)"),
        (lambda: terms_of("mine", made, ROLLOUT, OUTPUTS), "loss(batch, outputs)"),
    ):
        with pytest.raises(KeyError) as caught:
            ask()
        assert caught.value.__notes__ == [f"in plugin 'mine', its {said}"]


@pytest.mark.parametrize("k", [0, -1, "4", 1.5, None])
def test_check_refuses_a_group_size_that_is_none(monkeypatch, k):
    from ostinato_plugins.optimisers.rloo import RLOO

    monkeypatch.setattr(RLOO, "responses_per_prompt", k)
    with pytest.raises(UserError) as caught:
        check(ostinato.load_config("toy", ["plugins=[rloo]"]), "toy")
    said = f"toy: plugin 'rloo': responses_per_prompt is {k!r}, expected a whole number above 0"
    assert str(caught.value) == said
