"""function_reward: a weighted sum of functions, checked before the run, each part visible."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato import UserError, load_config
from ostinato.engine.session import check
from text_samples import text_samples

RULES = """
def length(completions):
    return [len(c) for c in completions]


def right(prompts, completions, answer):
    return [float(a in c) for c, a in zip(completions, answer, strict=True)]
"""
TEXTS = ["x", "yz", "x"], ["ab", "c", "dddd"], [True, False, True]


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    return [f"{tmp_path / 'rules.py'}:{name}" for name in ("length", "right")]


def combined(kit, **settings):
    one = kit.make(("function_reward", settings))
    ctx = one.ctx.at(columns=lambda samples: {"answer": ["b", "e", "d"]})
    reward = one.plugins.one("combine_rm", reward_models=[], datasets=[], ctx=ctx)
    return reward.score_samples(text_samples(*TEXTS)), reward


@pytest.mark.parametrize("weights", [None, [0.5, -2.0]])
def test_the_reward_is_the_weighted_sum_and_its_parts_are_the_functions(kit, rules, weights):
    found, reward = combined(kit, functions=rules, weights=weights)
    each = np.array([[2.0, 1.0], [1.0, 0.0], [4.0, 1.0]])
    np.testing.assert_allclose(found.score, each @ (weights or [1.0, 1.0]))
    np.testing.assert_allclose(found.parts[..., 0], each)
    assert (reward.members, found.hidden) == ([], None)


def test_it_trains_no_reward_model_and_its_functions_count_as_heads(kit, rules):
    one = kit.make(("function_reward", {"functions": rules}))
    assert not one.plugins.learn_rewards
    (instance,) = [a.instance for a in one.plugins.active if a.name == "function_reward"]
    assert (instance.heads, instance.functions) == (2, rules)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "plugins.function_reward.functions: is missing"),
        ({"functions": []}, "plugins.function_reward.functions: "),
        ({"functions": ["a:b"], "weights": [1.0, 2.0]}, "2 weights for 1 functions, expected as m"),
        ({"functions": ["no_such_module:f"]}, "functions: 'no_such_module:f' cannot be imported"),
        ({"functions": ["nowhere.py:f"]}, "plugins.function_reward.functions: no file "),
        ({"functions": ["length"]}, "functions: 'length' should be module:name"),
        ({"functions": ["math:pi"]}, "math:pi is a float, expected a function of prompts and com"),
    ],
)
def test_a_wrong_setting_is_a_sentence(settings, said):
    with pytest.raises(UserError) as caught:
        check(load_config({"world": "toy", "plugins": [{"function_reward": settings}]}), "run")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_function_that_asks_for_a_column_that_no_prompt_has_is_refused(rules):
    source = {"world": "toy", "plugins": [{"function_reward": {"functions": rules}}]}
    with pytest.raises(UserError) as caught:
        check(load_config(source), "run")
    said = "asks for 'answer', which it is not given; valid names are"
    assert str(caught.value).startswith(
        f"run: plugins.function_reward.functions: {rules[1]} {said} "
    )
