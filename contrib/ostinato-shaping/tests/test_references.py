"""PAR and LSC: against numbers worked out in NumPy, their references, and what they are for."""

import math

import numpy as np
import pytest
import torch
from ostinato_shaping.lsc import LSC
from ostinato_shaping.par import PAR

import ostinato

# what the SFT policy answers to each prompt, as rows of tokens; a response is worth their sum
ANSWERS = {"a": [[1], [2], [4]], "b": [[9], [5], [0, 1]]}


class Drawing:
    """ctx.sample that answers ANSWERS, and counts."""

    def __init__(self, small):
        self.small, self.asked = small, []

    def __call__(self, policy, prompts, purpose, count=1):
        assert policy == "pi_sft"
        self.asked.append((list(prompts.prompts), purpose, count))
        rows = [row for prompt in prompts.prompts for row in ANSWERS[prompt][:count]]
        texts = [prompt for prompt in prompts.prompts for _ in range(count)]
        return self.small.samples(rows, texts)


@pytest.fixture
def ctx(small):
    handle = ostinato.PolicyHandle("sft", lambda: "pi_sft")
    return small.context(sample=Drawing(small), sft=handle)


@pytest.fixture
def summed(small):
    """The sum of a response's tokens, of which a quarter is given at its first token."""

    def scores(samples):
        worth = samples.response_ids.masked_fill(~samples.mask, 0).sum(1).float()
        early = torch.zeros(samples.mask.shape)
        early[:, 0] = worth / 4
        return ostinato.Scores(0.75 * worth, token_score=early)

    return small.told(scores)


def test_par_is_the_mean_probability_of_being_preferred(small, ctx, summed):
    plugin = small.configured(PAR, references=3, steepness=0.5)
    given = small.samples([[3], [1, 6], [2]], ["b", "a", "b"])
    found = plugin.wrap_reward(summed, ctx).score_samples(given)
    worth, of_prompt = [3, 7, 2], ["b", "a", "b"]
    wanted = [
        np.mean([1 / (1 + math.exp(-0.5 * (r - sum(y)))) for y in ANSWERS[x]])
        for r, x in zip(worth, of_prompt, strict=True)
    ]
    np.testing.assert_allclose(found.score.double(), wanted, rtol=1e-6)
    assert found.token_score is None  # it was counted
    assert found.parts.shape == (3, 1, 1)  # as the reward inside gave them


@pytest.mark.parametrize("estimate", ["normal", "empirical"])
def test_lsc_is_the_log_sigmoid_above_a_quantile(small, ctx, summed, estimate):
    plugin = small.configured(LSC, references=3, quantile=0.85, estimate=estimate)
    given = small.samples([[3], [1, 6], [2]], ["b", "a", "b"])
    found = plugin.wrap_reward(summed, ctx).score_samples(given)
    centre = {}
    for prompt, rows in ANSWERS.items():
        worth = np.array([sum(row) for row in rows], dtype=float)
        normal = worth.mean() + worth.std(ddof=1) * 1.0364333894937898  # the table's z of .85
        centre[prompt] = normal if estimate == "normal" else np.quantile(worth, 0.85)
    pairs = zip([3, 7, 2], ["b", "a", "b"], strict=True)
    wanted = [-np.log1p(np.exp(-(r - centre[x]))) for r, x in pairs]
    np.testing.assert_allclose(found.score.double(), wanted, rtol=1e-5)


@pytest.mark.parametrize("method", [PAR, LSC])
def test_references_are_drawn_and_scored_once_a_prompt(small, ctx, method):
    seen = []

    def scores(samples):
        seen.extend(samples.prompts)
        return samples.response_ids[:, 0]

    plugin = small.configured(method, references=2)
    shaped = plugin.wrap_reward(small.told(scores), ctx)
    first = shaped.score_samples(small.samples([[3], [4], [5]], ["a", "b", "a"]))
    again = shaped.score_samples(small.samples([[5], [4]], ["a", "b"]))
    assert [(prompts, count) for prompts, _, count in ctx.sample.asked] == [(["a", "b"], 2)]
    assert seen.count("a") == 2 + 1 + 2  # of responses, then of the two references
    assert torch.equal(again.score, first.score[[2, 1]])
    ctx.iteration = 2  # another reward: references are worth something else
    plugin.wrap_reward(small.told(scores), ctx).score_samples(small.samples([[3]], ["a"]))
    assert len(ctx.sample.asked) == 2


def test_draws_of_later_prompts_have_a_purpose_of_their_own(small, ctx, summed):
    shaped = small.configured(PAR, references=1).wrap_reward(summed, ctx)
    for prompt in "ab":
        shaped.score_samples(small.samples([[3]], [prompt]))
    purposes = [purpose for _, purpose, _ in ctx.sample.asked]
    assert len(set(purposes)) == 2


def test_what_the_references_are_worth_is_state(small, ctx, summed):
    known = small.configured(PAR, references=3)
    given = small.samples([[3]], ["a"])
    worth = known.wrap_reward(summed, ctx).score_samples(given)
    other = small.configured(PAR, references=3)
    ctx.sample.asked.clear()
    shaped = other.wrap_reward(summed, ctx)
    other.load_state_dict(known.state_dict())
    assert torch.equal(shaped.score_samples(given).score, worth.score)
    assert not ctx.sample.asked
    other.load_state_dict(small.configured(PAR).state_dict())  # of a run that knew none yet
    shaped.score_samples(given)
    assert len(ctx.sample.asked) == 1


def test_far_above_the_references_more_is_hardly_better(small, ctx):
    """What a bounded reward is for: what a reward model cannot know is not worth exploiting."""
    raw = small.told(lambda samples: samples.response_ids[:, 0])
    given = small.samples([[2], [4], [20], [40]], ["a"] * 4)
    for method in (PAR, LSC):
        plugin = small.configured(method, references=3)
        near, good, far, farther = plugin.wrap_reward(raw, ctx).score_samples(given).score.tolist()
        assert near < good < far <= farther
        assert farther - far < 1e-4 * (good - near)


@pytest.mark.parametrize("method", ["par", "lsc"])
def test_they_act_in_a_run(toy, method):
    run = toy(f"{{{method}: {{references: 2}}}}")
    combined = next(r for r in run.metrics if r.get("stage") == "combined")
    assert combined["actions"][f"{method}.wrap_reward"] > 0.1
    if method == "par":
        assert all(abs(row["score"]) < 1 for row in run.metrics if row["kind"] == "policy")
        assert 0.3 < combined["par/sft"] < 0.7  # SFT responses against their like
    else:
        assert combined["lsc/sft_above"] < 0.5


def test_a_run_that_was_cut_goes_on_as_if_it_were_not(toy):
    given = ("{par: {references: 2}}", "rl.rollouts=3", "evaluation.every=1")

    def stop(event):
        if event.kind == "evaluated" and event.step == 1:
            raise KeyboardInterrupt

    whole = toy(*given, name="whole")
    with pytest.raises(KeyboardInterrupt):
        toy(*given, name="cut", watch=[stop])
    resumed = toy(*given, name="cut")

    def compared(run):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics]

    assert compared(resumed) == compared(whole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{par: {refrences: 3}}", "did you mean 'references'"),
        ("{par: {references: 0}}", "plugins.par.references"),
        ("{lsc: {quantile: 1}}", "plugins.lsc.quantile"),
        ("{lsc: {references: 1}}", "plugins.lsc.references"),
    ],
)
def test_a_wrong_setting_is_one_sentence(toy, settings, said):
    with pytest.raises(ostinato.UserError, match=said) as caught:
        toy(settings)
    assert "\n" not in str(caught.value)
