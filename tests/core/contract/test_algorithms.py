"""What is wrong with a policy algorithm's answers is one sentence that names its plugin."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

import ostinato
from distributions import offered, plugin
from ostinato.config.errors import UserError
from ostinato.config.sections import RLSection
from ostinato.contract.algorithms import advantages_of, refills, size_fault, terms_of
from ostinato.contract.plugins import activate
from ostinato.engine.session import check
from ostinato_plugins.optimisers.grpo import GRPO
from ostinato_plugins.optimisers.rloo import RLOO
from rollout_kit import random_rollout

ROLLOUT, NEW = random_rollout(0)
OUTPUTS = SimpleNamespace(logprobs=NEW.requires_grad_())
CTX = object()
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
        advantages_of("mine", answering(advantages=answer), ROLLOUT, CTX)
    assert str(caught.value) == f"plugin 'mine': its advantages(rollout, ctx) answered {said}"


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
        terms_of("mine", answering(loss=answer), ROLLOUT, OUTPUTS, CTX)
    assert str(caught.value) == f"plugin 'mine': its loss(batch, outputs, ctx) answered {said}"


def test_right_answers_pass():
    terms = {"a": OUTPUTS.logprobs.sum(), "log/b": torch.tensor(2.0)}
    made = answering(advantages=(RIGHT, RIGHT), loss=terms)
    advantages, returns = advantages_of("mine", made, ROLLOUT, CTX)
    assert torch.equal(advantages, RIGHT.masked_fill(~ROLLOUT.mask, 0.0))
    assert returns is RIGHT
    assert terms_of("mine", made, ROLLOUT, OUTPUTS, CTX) == terms


def test_returns_are_shaped_as_the_values_of_several_heads():
    values = torch.zeros(*SHAPE, 2)
    rollout = replace(ROLLOUT, values=values)
    assert advantages_of("mine", answering(advantages=(RIGHT, values)), rollout, CTX)[1] is values
    said = re.escape(f"its advantages(rollout, ctx) answered returns of shape {SHAPE}, expected")
    with pytest.raises(UserError, match=said):
        advantages_of("mine", answering(advantages=(RIGHT, RIGHT)), rollout, CTX)


def test_the_methods_are_given_the_context():
    given = []
    made = SimpleNamespace(
        advantages=lambda rollout, ctx: (given.append(ctx), (RIGHT, RIGHT))[1],
        loss=lambda batch, outputs, ctx: (given.append(ctx), {"a": OUTPUTS.logprobs.sum()})[1],
    )
    advantages_of("mine", made, ROLLOUT, CTX)
    terms_of("mine", made, ROLLOUT, OUTPUTS, CTX)
    assert given == [CTX, CTX]


def test_an_error_of_its_own_is_the_plugins():
    def broken(*_):
        raise KeyError("x")

    made = SimpleNamespace(advantages=broken, loss=broken)
    for ask, said in (
        (lambda: advantages_of("mine", made, ROLLOUT, CTX), "advantages(rollout, ctx)"),
        (lambda: terms_of("mine", made, ROLLOUT, OUTPUTS, CTX), "loss(batch, outputs, ctx)"),
    ):
        with pytest.raises(KeyError) as caught:
            ask()
        (note,) = caught.value.__notes__
        assert re.fullmatch(
            rf"in plugin 'mine', its {re.escape(said)} \(test_algorithms.py, line \d+\)", note
        )


GROUPS = list(product((4, 8, 12, 16), (1, 2, 4), (1, 2, 3, 4)))  # minibatch, accumulate, k


@pytest.mark.parametrize(("minibatch", "accumulate", "k"), GROUPS)
def test_groups_fit_where_every_part_is_a_multiple_of_them(minibatch, accumulate, k):
    settings = RLSection(rollout_size=48, minibatch=minibatch, accumulate=accumulate)
    algorithm = SimpleNamespace(responses_per_prompt=k, whole_groups=True)
    said = size_fault("mine", algorithm, settings)
    assert (said is None) == (minibatch % (accumulate * k) == 0)
    if said:
        parts = f" / rl.accumulate {accumulate}" if accumulate > 1 else ""
        assert said == (
            f"rl.minibatch: {minibatch}{parts} is no multiple of the {k} responses a prompt of "
            "plugin 'mine', which it keeps together"
        )
    torn = SimpleNamespace(responses_per_prompt=k, whole_groups=False)
    assert size_fault("mine", torn, settings) is None
    odd = size_fault("mine", SimpleNamespace(responses_per_prompt=5, whole_groups=True), settings)
    assert odd == "rl.rollout_size: 48 is no multiple of the 5 responses a prompt of plugin 'mine'"


def test_check_refuses_minibatches_that_would_tear_groups(monkeypatch):
    monkeypatch.setattr(GRPO, "whole_groups", True)
    sizes = ["rl.rollout_size=8", "rl.minibatch=4", "rl.accumulate=2"]
    with pytest.raises(UserError) as caught:
        check(ostinato.load_config("toy", ["plugins=[{grpo: {responses: 4}}]", *sizes]), "toy")
    assert str(caught.value) == (
        "toy: rl.minibatch: 4 / rl.accumulate 2 is no multiple of the 4 responses a prompt of "
        "plugin 'grpo', which it keeps together"
    )


@pytest.mark.parametrize("asked", [-1, True, 1.0, "3", None])
def test_a_number_of_refills_that_is_none(monkeypatch, asked):
    made = plugin(filter_rollout=lambda self, rollout: torch.arange(1))
    made.refill = asked
    offered(monkeypatch, made)
    with pytest.raises(UserError) as caught:
        check(ostinato.load_config("toy", ["plugins=[made]"]), "toy")
    said = f"plugin 'made': refill is {asked!r}, expected a whole number"
    assert str(caught.value) == f"toy: {said}"


def test_the_largest_number_of_refills_counts_of_plugins_that_filter(monkeypatch):
    for name, asked, hook in (("a", 2, "filter"), ("b", 3, "filter"), ("c", 9, "other")):
        hooks = {"filter_rollout": lambda self, rollout: torch.arange(1)}
        made = plugin(**(hooks if hook == "filter" else {"observe": lambda self, event: None}))
        made.refill = asked
        offered(monkeypatch, made, name)
    assert refills(activate([("a", {}), ("b", {}), ("c", {})], "test")) == 3
    assert refills(activate([("c", {}), ("rejection_sampling", {})], "test")) == 0


@pytest.mark.parametrize("k", [0, -1, "4", 1.5, None])
def test_check_refuses_a_group_size_that_is_none(monkeypatch, k):
    monkeypatch.setattr(RLOO, "__init__", lambda self: setattr(self, "responses_per_prompt", k))
    with pytest.raises(UserError) as caught:
        check(ostinato.load_config("toy", ["plugins=[rloo]"]), "toy")
    fault = f"'responses_per_prompt' is {k!r}, expected a whole number above 0"
    assert str(caught.value) == f"toy: plugin 'rloo': is a RLOO whose {fault}"
