"""RCfD: the distance to a demonstration's reward, and where it is least."""

import json
from pathlib import Path

import numpy as np
import pytest
from ostinato_shaping.rcfd import RCfD

import ostinato
import ostinato_worlds.toy


def prompts():
    rows = (Path(ostinato_worlds.toy.__file__).parent / "prompts.jsonl").read_text().splitlines()
    return [json.loads(row)["prompt"] for row in rows]


@pytest.fixture
def demonstrations(tmp_path):
    """The same poor demonstration for every prompt of the toy world."""
    path = tmp_path / "shown.jsonl"
    rows = [{"prompt": prompt, "completion": "the the the"} for prompt in prompts()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokens(small):
    """A reward that is the sum of a response's tokens, and prompts whose tokenizer reads digits."""

    def read(texts, add_special_tokens=False):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def sample(rows, texts):
        made = small.samples(rows, texts)
        made.tokenizer = type("Digits", (type(made.tokenizer),), {"__call__": None})()
        type(made.tokenizer).__call__ = lambda self, *given, **kept: read(*given, **kept)
        return made

    reward = small.told(lambda s: s.response_ids.masked_fill(~s.mask, 0).sum(1))
    return reward, sample


@pytest.mark.parametrize("distance", ["squared", "absolute"])
def test_the_distance_to_the_demonstration(small, tmp_path, tokens, distance):
    path = tmp_path / "shown.jsonl"
    shown = [("a", "2 3"), ("b", "9"), ("a", "40")]  # of two to one prompt the first counts
    path.write_text("".join(json.dumps({"q": x, "y": y}) + "\n" for x, y in shown))
    settings = {"data": str(path), "prompt": "q", "completion": "y", "distance": distance}
    generation = type("Section", (), {"stop": None})
    ctx = small.context(config=type("Config", (), {"generation": generation}))
    reward, sample = tokens
    made = small.configured(RCfD, **settings).wrap_reward(reward, ctx)
    found = made.score_samples(sample([[4], [1, 2], [20]], ["a", "b", "b"])).score
    gap = np.array([4 - (5 + 1), 3 - (9 + 1), 20 - (9 + 1)])  # the stop token is 1
    np.testing.assert_allclose(found, -(gap**2) if distance == "squared" else -np.abs(gap))
    with pytest.raises(ostinato.UserError, match="'c' has no demonstration"):
        made.score_samples(sample([[4]], ["c"]))


def test_the_policy_is_drawn_to_demonstrations_and_no_further(toy, demonstrations):
    """The demonstrations are poor: plain optimisation leaves them behind, this does not."""
    sizes = ("rl.rollouts=12", "rl.rollout_size=32", "rl.minibatch=32", "kl.coefficient=0")
    more = ("reward_model.updates=40", "prompts.preference=64")
    run = toy(f"{{rcfd: {{data: {demonstrations}}}}}", *sizes, *more)
    combined = next(row for row in run.metrics if row.get("stage") == "combined")
    assert combined["actions"]["rcfd.wrap_reward"] > 0.1
    assert combined["rcfd/demonstrations"] < combined["rcfd/sft"]
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    latest = [row["latest_sft_std"] for row in run.metrics if row["kind"] == "eval"]
    assert np.mean([r["score"] for r in rows[-3:]]) > np.mean([r["score"] for r in rows[:3]])
    assert latest[-1] < latest[0]  # towards what is shown, though the reward model likes it less


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{}", "plugins.rcfd.data"),
        ("{data: nowhere.jsonl}", "nowhere.jsonl' is neither a file"),
        ("{data: FILE, completion: answer}", "no text in its column 'answer'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(toy, demonstrations, settings, said):
    with pytest.raises(ostinato.UserError, match=said) as caught:
        toy(f"{{rcfd: {settings.replace('FILE', str(demonstrations))}}}")
    assert "\n" not in str(caught.value)


def test_a_prompt_without_a_demonstration_is_named(toy, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "x", "completion": "y"}\n')
    with pytest.raises(ostinato.UserError, match=r"has no demonstration in '.*few.jsonl'"):
        toy(f"{{rcfd: {{data: {path}}}}}")
