"""Log-probabilities and values against plain transformers, whatever the batch looks like."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from ostinato.config.errors import UserError
from ostinato.models.loading import padded
from ostinato.models.policy import Policy, spread
from ostinato.models.reward import Calibration
from ostinato.models.samples import Samples

FAMILIES = ["gpt2", "gpt_neox", "llama"]
RAGGED = [[100, 101, 102, 103], [104], [1, 105, 106], [107, 1]]  # 1 is eos
RESPONSES = [[110, 111, 1], [112, 113, 114, 115, 1], [116], [0, 117, 118]]  # 0 is pad, sampled


def batch(policy, prompts, responses):
    prompt_ids, prompt_mask = padded(prompts, policy.tokenizer.pad_token_id, left=True)
    ids, mask = padded(responses, policy.tokenizer.pad_token_id)
    finished = torch.tensor([r[-1] == policy.tokenizer.eos_token_id for r in responses])
    return Samples(policy.tokenizer, prompt_ids, prompt_mask, ids, mask, finished)


def by_hand(lm, prompt, response, temperature=1.0):
    """log softmax(logits / temperature) of each response token: one row, float64, no padding."""
    wide = copy.deepcopy(lm).double()
    with torch.no_grad():
        logits = wide(input_ids=torch.tensor([prompt + response])).logits[0]
    table = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return table.gather(1, torch.tensor(response)[:, None])[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "prompts", [RAGGED, [[*p[:1], 99] for p in RAGGED]], ids=["ragged", "equal"]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_plain_transformers(policies, family, prompts, temperature):
    policy = policies.make(family).policy(temperature=temperature)
    found = policy.logprobs(batch(policy, prompts, RESPONSES))
    assert found.shape == (4, 5)
    for i, (prompt, response) in enumerate(zip(prompts, RESPONSES, strict=True)):
        wanted = by_hand(policy.lm, prompt, response, temperature)
        torch.testing.assert_close(found[i, : len(response)].double(), wanted, atol=1e-5, rtol=0)
        assert (found[i, len(response) :] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_values_depend_on_neither_padding_nor_batch_nor_neighbours(policies, family):
    policy = policies.make(family).policy().with_value("shared")
    weight = policy.value_head.weight
    torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    whole = policy.evaluate(batch(policy, RAGGED, RESPONSES))
    for i, response in enumerate(RESPONSES):
        alone = policy.evaluate(batch(policy, [RAGGED[i]], [response]))
        others = [[120] * 9, RAGGED[i]], [[121] * 11, response]
        beside = policy.evaluate(batch(policy, *others))
        for found, single, second in zip(whole, alone, beside, strict=True):
            real = found[i, : len(response)]
            torch.testing.assert_close(real, single[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(real, second[1, : len(response)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_ragged_prompts_are_those_of_single_rows(policies, family):
    policy = policies.make(family).policy()

    def gradients(logprobs):
        policy.zero_grad()
        logprobs.sum().backward()
        return {name: p.grad.clone() for name, p in policy.named_parameters()}

    together = gradients(policy.logprobs(batch(policy, RAGGED, RESPONSES)))
    pairs = zip(RAGGED, RESPONSES, strict=True)
    alone = gradients(torch.cat([policy.logprobs(batch(policy, [p], [r]))[0] for p, r in pairs]))
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-3, rtol=1e-4)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("family", "dropout"),
    [
        ("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
        ("gpt_neox", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
        ("llama", {"attention_dropout": 0.5}),
    ],
)
def test_dropout_is_off_even_for_a_model_in_train_mode(policies, family, dropout):
    loaded = policies.make(family, model=dropout).policy()
    assert not torch.equal(*(loaded.lm.train()(torch.tensor([[100, 101]])).logits for _ in "ab"))
    for policy in (Policy(loaded.lm.train(), loaded.tokenizer), loaded.copy()):
        policy.with_value("separate")
        samples = batch(policy, RAGGED, RESPONSES)
        torch.nn.init.normal_(policy.value_head.weight)
        first, second = policy.evaluate(samples), policy.evaluate(samples)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_policy_loads_with_transformers_and_gives_the_same_logprobs(
    policies, family, tmp_path
):
    policy = policies.make(family).policy().with_value("shared")
    policy.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(loaded.state_dict()) == set(policy.lm.state_dict())
    for prompt, response in zip(RAGGED, RESPONSES, strict=True):
        found = policy.logprobs(batch(policy, [prompt], [response]))[0]
        wanted = by_hand(loaded, prompt, response, policy.temperature)
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)
    samples = batch(policy, RAGGED, RESPONSES)
    again = Policy.load_checkpoint(tmp_path, policy.temperature)
    assert torch.equal(again.logprobs(samples), policy.logprobs(samples))


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_value_head_starts_at_zero_on_the_trunk_or_a_copy_of_it(policies, kind):
    policy = policies.make().policy().with_value(kind)
    samples = batch(policy, RAGGED, RESPONSES)
    logprobs, values = policy.evaluate(samples)
    assert (values == 0).all()
    torch.testing.assert_close(logprobs, policy.logprobs(samples))

    torch.nn.init.normal_(policy.value_head.weight)
    _, values = policy.evaluate(samples)
    assert (values[samples.mask] != 0).all()
    values.sum().backward()
    touched = policy.lm.base_model.embed_in.weight.grad is not None
    assert touched == (kind == "shared")
    if kind == "separate":
        assert policy.value_trunk.embed_in.weight.grad.abs().sum() > 0


def test_values_stand_at_the_state_that_predicts_their_token(policies):
    policy = policies.make().policy().with_value("shared")
    torch.nn.init.normal_(policy.value_head.weight)
    _, values = policy.evaluate(batch(policy, RAGGED, RESPONSES))
    for i, (prompt, response) in enumerate(zip(RAGGED, RESPONSES, strict=True)):
        states = policy.lm.base_model(input_ids=torch.tensor([prompt + response]))[0][0]
        wanted = policy.value_head(states[len(prompt) - 1 : -1])[:, 0]
        torch.testing.assert_close(values[i, : len(response)], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "separate", "reward_model"])
def test_several_value_heads_stand_side_by_side(policies, kit, kind):
    """Two heads: each value is that of a policy with this head alone."""
    latest, samples = kit.make().initial(), None
    alone = [policies.make().policy().with_value(kind, latest) for _ in range(2)]
    both = policies.make().policy().with_value(kind, latest, heads=2)
    samples = batch(both, RAGGED, RESPONSES)
    start = both.evaluate(samples)[1]
    torch.testing.assert_close(start[..., 0], alone[0].evaluate(samples)[1])
    torch.testing.assert_close(start[..., 1], start[..., 0])
    torch.nn.init.normal_(both.value_head.weight)
    torch.nn.init.normal_(both.value_head.bias)
    for i, one in enumerate(alone):
        one.value_head.weight.data = both.value_head.weight.data[i : i + 1].clone()
        one.value_head.bias.data = both.value_head.bias.data[i : i + 1].clone()
    values = both.evaluate(samples)[1]
    assert values.shape == (*samples.mask.shape, 2)
    for i, one in enumerate(alone):
        found = one.evaluate(samples)[1]
        assert found.shape == samples.mask.shape
        torch.testing.assert_close(values[..., i], found, atol=1e-5, rtol=1e-5)
    assert (values[~samples.mask] == 0).all()
    assert not torch.allclose(values[..., 0], values[..., 1])


def test_another_temperature_is_another_policy_with_the_same_weights(policies):
    policy = policies.make(generation={"temperature": 0.7}).policy()
    hot = policy.at(2.0)
    samples = batch(policy, RAGGED, RESPONSES)
    fresh = type(policy)(policy.lm, policy.tokenizer, 2.0)
    assert torch.equal(hot.logprobs(samples), fresh.logprobs(samples))
    assert not torch.equal(hot.logprobs(samples), policy.logprobs(samples))
    assert (policy.temperature, hot.lm) == (0.7, policy.lm)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_value_model_from_the_reward_model_starts_with_its_calibrated_scores(
    policies, kit, family, outputs
):
    """The value at a token is the score of all that stands before it: by hand, row by row."""
    latest = kit.make(family=family).initial(outputs=outputs)
    zeros = torch.arange(outputs) - 0.3
    latest.calibration = Calibration(tuple(zeros.tolist()), unit=0.25)
    policy = policies.make(family).policy().with_value("reward_model", latest)
    with torch.no_grad():
        _, values = policy.evaluate(batch(policy, RAGGED, RESPONSES))
    body = copy.deepcopy(latest.model).double().requires_grad_(False)
    for i, (prompt, response) in enumerate(zip(RAGGED, RESPONSES, strict=True)):
        for t in range(len(response)):
            text = torch.tensor([prompt + response[:t]])
            heads = body.score(body.base_model(input_ids=text)[0])[0, -1]
            wanted = float((heads - zeros).mean() / 0.25)
            assert float(values[i, t]) == pytest.approx(wanted, abs=1e-4)
        assert (values[i, len(response) :] == 0).all()
    whole = [p + r[:-1] for p, r in zip(RAGGED, RESPONSES, strict=True)]
    scored = latest._scores(*latest.raw([w[:1] for w in whole], [w[1:] for w in whole])).score
    last = torch.stack([values[i, len(r) - 1] for i, r in enumerate(RESPONSES)])
    torch.testing.assert_close(last.detach(), scored, atol=1e-4, rtol=0)  # as the model itself does


def test_a_value_model_from_the_reward_model_learns_apart_from_it(policies, kit):
    latest = kit.make().initial()
    before = {name: p.clone() for name, p in latest.named_parameters()}
    policy = policies.make().policy().with_value("reward_model", latest)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.1)
    policy.evaluate(batch(policy, RAGGED, RESPONSES))[1].square().sum().backward()
    moved = [*policy.value_trunk.parameters(), *policy.value_head.parameters()]
    optimiser.step()
    assert sum(float(p.grad.abs().sum()) > 0 for p in moved) > 10
    assert all(p.grad is None for p in latest.parameters())
    assert all(p.grad is None for p in policy.lm.parameters())
    assert all(torch.equal(p, before[name]) for name, p in latest.named_parameters())
    assert not torch.equal(policy.value_head.weight, latest.model.score.weight)
    held = {name for name, _ in policy.named_parameters()}
    assert {"value_head.weight", "value_head.bias"} <= held  # what a checkpoint holds
    assert any(name.startswith("value_trunk.") for name in held)


def test_a_value_model_from_heads_that_a_reader_weighs_starts_with_their_mean(policies, kit):
    """brme's score is no linear function of its outputs; the mean over its heads is."""
    one = kit.make(("brme", {"heads": 3}))
    first = one.initial()
    first.readers = one.plugins.readers
    settings = {"trade_off": 0.5, "integration": "min"}
    latest = first.with_head(one.ctx.draws, 6, reader="brme", settings=settings)
    latest.calibration = Calibration((0.5, -0.3, 0.1), mean=-4.0, unit=2.0)  # mean: of the minimum
    policy = policies.make().policy().with_value("reward_model", latest)
    _, values = policy.evaluate(batch(policy, [[100, 101]], [[102, 103]]))
    states = latest.model.base_model(input_ids=torch.tensor([[100, 101, 102]]))[0][0]
    means = latest.model.score(states)[1:, :3]  # the other three are stds
    torch.testing.assert_close(values[0], (means.mean(-1) - 0.1) / 2.0, atol=1e-5, rtol=0)


def test_a_copy_is_independent_and_has_no_value_head(policies):
    policy = policies.make().policy().with_value("shared")
    made = policy.copy()
    with torch.no_grad():
        next(made.lm.parameters()).add_(1.0)
    assert made.value_head is None
    assert not torch.equal(next(made.lm.parameters()), next(policy.lm.parameters()))


def test_a_model_that_rescales_its_logits_is_refused(policies):
    sizes = {
        "model_type": "granite",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 0.4,
        "logits_scaling": 4.0,
    }
    kit = policies.make()
    section = kit.config.policy.model_copy(update={"random": sizes})
    with pytest.raises(UserError, match="a granite model rescales its logits"):
        Policy.load(section, 1.0)


def test_spread_puts_values_back_and_zero_on_padding():
    mask = torch.tensor([[True, True], [True, False]])
    assert spread(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1.0, 2.0], [3.0, 0.0]]
