"""Plain functions as rewards: called as TRL calls its reward functions, and what they answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ostinato
from ostinato import NonFiniteError, UserError
from ostinato.models.functions import plain, try_function
from text_samples import text_samples

TEXTS = ["x", "yz", "x"], ["ab", "c", "dddd"], [True, False, True]


def columns(samples):
    known = {"x": (3, "easy"), "yz": (5, "hard")}
    found = [known[prompt] for prompt in samples.prompts]
    return {"answer": [a for a, _ in found], "level": [b for _, b in found]}


@pytest.fixture
def samples():
    return text_samples(*TEXTS)


def test_a_function_gets_by_name_what_it_has_parameters_for(samples):
    """The convention of TRL 1.0's reward_funcs: lists, one entry a completion."""
    seen = {}

    def everything(prompts, completions, completion_ids, **others):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, **others)
        return [1, 2.5, True]

    made = ostinato.reward(everything, columns)
    assert made.score_samples(samples).score.tolist() == [1.0, 2.5, 1.0]
    end = samples.tokenizer.eos_token_id
    assert seen["prompts"] == ["x", "yz", "x"]
    assert seen["completions"] == ["ab", "c", "dddd"]
    assert [row[-1] == end for row in seen["ids"]] == [True, False, True]
    assert [len(row) for row in seen["ids"]] == [3, 1, 5]
    assert (seen["answer"], seen["level"]) == ([3, 5, 3], ["easy", "hard", "easy"])

    def verifier(completions, answer):
        return [float(len(c) == a) for c, a in zip(completions, answer, strict=True)]

    made = ostinato.reward(verifier, columns)
    assert made.score_samples(samples).score.tolist() == [0.0, 0.0, 0.0]
    made = ostinato.reward(lambda completions, *, level, scale=2: [scale * len(c) for c in level])
    with pytest.raises(UserError, match="asks for 'level', which it is not given; valid names are"):
        made.score_samples(samples)


def test_a_function_cannot_spoil_the_samples(samples):
    def greedy(prompts, completions):
        prompts.clear()
        return [len(completions.pop()) for _ in range(3)]

    assert ostinato.reward(greedy).score_samples(samples).score.tolist() == [4.0, 1.0, 2.0]
    assert (samples.prompts, samples.responses) == (TEXTS[0], TEXTS[1])


@pytest.mark.parametrize(
    "answer",
    [
        (0.5, 1, -2),
        np.array([0.5, 1.0, -2.0]),
        torch.tensor([0.5, 1.0, -2.0]),
        [np.float64(0.5), np.int64(1), torch.tensor(-2.0)],
    ],
    ids=["tuple", "array", "tensor", "mixed"],
)
def test_numbers_of_any_kind_are_numbers(samples, answer):
    made = ostinato.reward(lambda completions: answer)
    assert made.score_samples(samples).score.tolist() == [0.5, 1.0, -2.0]


FAULTS = {
    "raises": (ValueError("two\nlines"), "failed: ValueError: two"),
    "exits": (SystemExit(0), "failed: SystemExit: 0"),
    "kind": ({"a": 1}, "answered a dict, expected a list of numbers"),
    "none": (None, "answered a NoneType, expected a list of numbers"),
    "one": (3.0, "answered a float, expected a list of numbers"),
    "length": ([1.0, 2.0], "answered 2 numbers for 3 responses"),
    "no number": ([1.0, None, 2.0], "answered None for response 1, expected a number"),
    "text": ([1.0, 2.0, "3"], "answered a str for response 2, expected a number"),
    "table": (torch.zeros(3, 1), "answered a list for response 0, expected a number"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_function_that_answers_wrongly_is_a_sentence_that_names_it(samples, fault):
    answer, said = FAULTS[fault]

    def mine(completions):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with pytest.raises(UserError) as caught:
        ostinato.reward(mine).score_samples(samples)
    assert str(caught.value).startswith("function 'test_a_function_that_answers_wrongly")
    assert str(caught.value).endswith(f"mine' {said}")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_function_that_answers_no_finite_number_is_a_sentence(samples, value):
    with pytest.raises(NonFiniteError) as caught:
        ostinato.reward(lambda completions: [0.0, value, 1.0]).score_samples(samples)
    said = f"answered {value} for response 1, expected a number that is finite"
    assert str(caught.value).endswith(f"<lambda>' {said}")


def test_a_sentence_of_the_function_itself_is_kept(samples):
    def mine(completions):
        raise UserError("mine: no lexicon here")

    with pytest.raises(UserError, match=r"^mine: no lexicon here$"):
        ostinato.reward(mine).score_samples(samples)


def test_a_function_may_be_named(samples, tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("def length(completions):\n    return [len(c) for c in completions]\n")
    made = ostinato.reward(f"{rules}:length")
    assert made.score_samples(samples).score.tolist() == [2.0, 1.0, 4.0]
    with pytest.raises(UserError, match=r"has no attribute 'width'|no 'width'"):
        ostinato.reward(f"{rules}:width")
    with pytest.raises(UserError, match=r"no file '.*rule\.py'"):
        ostinato.reward(f"{tmp_path / 'rule.py'}:length")
    with pytest.raises(UserError, match="should be module:name"):
        ostinato.reward("length")
    with pytest.raises(UserError, match="here is a int, expected a function of prompts and compl"):
        plain(3, "here")


def test_a_function_is_tried_on_made_up_responses(tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text(
        "def right(prompts, completions, completion_ids, answer):\n"
        "    return [len(i) + a for i, a in zip(completion_ids, answer, strict=True)]\n"
        "def wrong(completions):\n"
        "    return completions\n"
    )
    try_function(f"{rules}:right", "here", ["x", "y"], {"answer": [1, 2]})
    with pytest.raises(UserError) as caught:
        try_function(f"{rules}:wrong", "here", ["x"], {})
    said = "answered a str for response 0, expected a number"
    assert str(caught.value) == f"here: {rules}:wrong {said}"
    try_function(f"{rules}:wrong", "here", [], {})  # without prompts it is only imported
