"""Attention credit: shares worked out head by head, a total that stays, and where it stands."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_shaping.abc_credit import ABCCredit

import ostinato


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A toy run whose reward model can be asked."""
    sizes = ("iterations=1", "rl.rollouts=1", "reward_model.updates=5", "prompts.preference=16")
    return ostinato.run("toy", tmp_path_factory.mktemp("abc") / "run", sizes)


@pytest.fixture(scope="module")
def model(run):
    return ostinato.trained_reward(str(run.directory / "iteration-1/reward_model"), "reward_model")


def given(model, lengths, prompts=((5, 6, 7), (8, 9), (4, 5, 6))):
    """Samples in the reward model's own tokens, padded on both sides."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 20, (n,), generator=draw).tolist() for n in lengths]
    ids, mask = ostinato.padded(rows, model.tokenizer.pad_token_id)
    starts = [list(p) for p in prompts[: len(rows)]]
    before, seen = ostinato.padded(starts, model.tokenizer.pad_token_id, left=True)
    finished = torch.ones(len(rows), dtype=torch.bool)
    return ostinato.Samples(model.tokenizer, before, seen, ids, mask, finished)


def attention_by_hand(model, prompt, response):
    """The last layer's attention of the last token, from its states and weights in float64."""
    body = model.model.base_model
    layer = body.layers[-1]
    states = []
    hook = layer.attention.register_forward_hook(
        lambda module, args, kwargs, out: states.append((args, kwargs)), with_kwargs=True
    )
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        body(input_ids=ids, use_cache=False)
    hook.remove()
    args, kwargs = states[0]
    hidden = (args[0] if args else kwargs["hidden_states"])[0].double()
    attention, size = layer.attention, layer.attention.head_size
    made = hidden @ attention.query_key_value.weight.T.double()
    made = made + attention.query_key_value.bias.double()
    query, key, _ = made.view(len(hidden), -1, 3, size).unbind(2)  # (T, heads, size)
    cos, sin = (x[0].double() for x in kwargs["position_embeddings"])
    turned = cos.shape[-1]

    def rotated(x):
        first, rest = x[..., :turned], x[..., turned:]
        half = torch.cat([-first[..., turned // 2 :], first[..., : turned // 2]], -1)
        return torch.cat([first * cos[:, None] + half * sin[:, None], rest], -1)

    scores = torch.einsum("hd,thd->ht", rotated(query)[-1], rotated(key)) / np.sqrt(size)
    mean = scores.softmax(-1).mean(0)[len(prompt) :]
    return (mean / mean.sum()).detach().numpy()


def rewards(small, samples, score, token_score=None):
    batch = small.rewards(score, torch.zeros(samples.mask.shape).tolist(), token_score=token_score)
    return replace(batch, samples=samples, mask=samples.mask)


def test_tokens_get_the_last_ones_attention_and_the_total_stays(small, model):
    samples, scores = given(model, [4, 7, 1]), [2.0, -1.0, 0.5]
    dense = torch.arange(21.0).view(3, 7)
    before = rewards(small, samples, scores, dense.tolist())
    plugin = small.configured(ABCCredit, beta=0.6, batch=2)
    found = plugin.reward_transform(before, small.context(reward=model))
    np.testing.assert_allclose(found.score, 0.4 * np.array(scores), rtol=1e-5)
    credit = found.token_score - dense
    torch.testing.assert_close(found.score + credit.sum(1), before.score)
    for i, (prompt, response) in enumerate(zip(*samples.tokens, strict=True)):
        wanted = 0.6 * scores[i] * attention_by_hand(model, prompt, response)
        np.testing.assert_allclose(credit[i, : len(response)], wanted, rtol=1e-4, atol=1e-5)
        assert credit[i, len(response) :].abs().sum() == 0


def test_members_count_alike_and_score_as_before(small, model):
    samples = given(model, [4, 7, 1])
    other = model.copy()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.3)
    plugin, batch = small.configured(ABCCredit, beta=1.0), rewards(small, samples, [1.0] * 3)
    before = model.score_samples(samples).score

    def credit(reward):
        return plugin.reward_transform(batch, small.context(reward=reward)).token_score

    both = ostinato.combine([model, other], lambda scores: scores.mean(1))
    torch.testing.assert_close(credit(both), (credit(model) + credit(other)) / 2)
    assert float((credit(model) - credit(other)).abs().max()) > 0.01
    assert torch.equal(model.score_samples(samples).score, before)
    assert model.model.config._attn_implementation == "sdpa"


def test_a_reward_without_a_model_or_in_other_tokens_is_refused(small, model):
    plugin, samples = small.configured(ABCCredit), given(model, [4])
    batch = rewards(small, samples, [1.0])
    with pytest.raises(ostinato.UserError, match="made of no reward model"):
        plugin.reward_transform(batch, small.context(reward=small.told(lambda s: s.lengths)))
    samples.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    with pytest.raises(ostinato.UserError, match="tokens are not the policy's"):
        plugin.reward_transform(batch, small.context(reward=model))


def test_a_run_without_reward_models_is_refused_before_it_begins(toy, tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("def length(completions):\n    return [len(text) for text in completions]\n")
    with pytest.raises(ostinato.UserError) as caught:
        toy(f"{{function_reward: {{functions: ['{rules}:length']}}}}, abc_credit")
    assert str(caught.value).endswith(
        "plugin 'abc_credit' needs the attention of a reward model, and the reward is of plugin "
        "'function_reward', which uses none; leave one of the two out"
    )


def test_credit_stands_before_the_end_in_a_run_of_equal_rewards(toy):
    """What it is for: rewards before the last token, of responses that are worth what they were."""
    plain = toy("take_last_rm", name="plain")
    credited = toy("take_last_rm, {abc_credit: {beta: 1}}", name="credit")
    before, after = (next(r for r in x.metrics if r["kind"] == "policy") for x in (plain, credited))
    assert after["reward"] == pytest.approx(before["reward"], abs=1e-4)
    assert after["actions"]["abc_credit.reward_transform"] > 0.1
    assert 0 < after["abc_credit/at_last_token"] < 0.9
    last = [
        [r for r in x.metrics if r["kind"] == "eval"][-1]["proxy_sft_std"]
        for x in (plain, credited)
    ]
    assert last[0] != last[1]  # the policy has learnt otherwise


def test_a_wrong_setting_is_one_sentence(toy):
    with pytest.raises(ostinato.UserError, match=r"plugins\.abc_credit\.beta") as caught:
        toy("{abc_credit: {beta: 2}}")
    assert "\n" not in str(caught.value)
