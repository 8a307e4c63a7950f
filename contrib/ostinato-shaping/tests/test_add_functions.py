"""Rules beside the reward model: the weighted sum, columns of the prompts, and a rule's effect."""

import numpy as np
import pytest
from ostinato_shaping.add_functions import AddFunctions

import ostinato

RULES = """
def words(completions):
    return [len(c.split()) for c in completions]

def wanted(completions, answer):
    return [float(a in c) for c, a in zip(completions, answer)]

def nothing(completions):
    return [None] * len(completions)
"""


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


def test_functions_are_added_with_their_weights(small, rules):
    names = [f"{rules}:words", f"{rules}:wanted"]
    plugin = small.configured(AddFunctions, functions=names, weights=[0.5, -2.0])
    ctx = small.context(columns=lambda samples: {"answer": ["7", "8"]})
    given = small.samples([[7, 5, 1], [7, 1]])
    inner = small.told(lambda samples: samples.lengths * 10.0)
    found = plugin.wrap_reward(inner, ctx).score_samples(given)
    each = np.array([[2, 1], [1, 0]])  # texts are `7 5` and `7`
    np.testing.assert_allclose(found.score, [30, 20] + each @ [0.5, -2.0])
    ctx.evaluation = type("Evaluation", (), {"samples": given})
    assert plugin.evaluate(ctx) == {"rules.py:words": 1.5, "rules.py:wanted": 0.5}


def test_a_rule_moves_the_policy(toy, rules):
    sizes = ("rl.rollouts=8", "rl.rollout_size=32", "rl.minibatch=32", "rl.lr=0.003")
    length = {}
    for weight in (-0.5, 0.5):
        settings = f"{{functions: ['{rules}:words'], weights: [{weight}]}}"
        run = toy(f"{{add_functions: {settings}}}", *sizes, name=f"weight{weight}")
        evaluations = [row for row in run.metrics if row["kind"] == "eval"]
        length[weight] = evaluations[-1]["add_functions/rules.py:words"]
    assert length[-0.5] < length[0.5] - 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{functions: []}", "plugins.add_functions.functions"),
        ("{functions: ['RULES:words'], weights: [1, 2]}", "2 weights for 1 functions"),
        ("{functions: ['RULES:word']}", "did you mean 'words'"),
        ("{functions: ['RULES:nothing']}", "answered None"),
        ("{functions: ['RULES:wanted']}", "asks for 'answer'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(toy, rules, settings, said):
    with pytest.raises(ostinato.UserError, match=said) as caught:
        toy(f"{{add_functions: {settings.replace('RULES', str(rules))}}}")
    assert "\n" not in str(caught.value)
