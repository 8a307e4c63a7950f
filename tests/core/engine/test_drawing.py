"""Which prompts a rollout answers, and from which distribution its tokens are drawn."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from distributions import offered, plugin
from ostinato.config.errors import NonFiniteError, UserError

RAGGED = [[2, 3, 4], [5], [3, 2], [4], [2, 5], [3], [4, 3, 5], [2]]
SMALL = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1, "lr": 1e-2}


def trained(kit, function_reward, prompts=RAGGED, policy=None, **arguments):
    """Every rollout that PPO computes advantages of."""
    seen, algorithm = [], kit.plugins["ppo"].instance
    compute = algorithm.advantages
    algorithm.advantages = lambda rollout, ctx: (seen.append(rollout), compute(rollout, ctx))[1]
    optimise = kit.engine(prompts)
    policy = policy or kit.word_policy()
    optimise(policy, function_reward(lambda s: s.lengths.float()), **arguments)
    return seen


def log_softmax(logits):
    """In float64."""
    logits = np.asarray(logits, dtype=np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def next_logits(policy, tokens):
    """The logits after these tokens, over the temperature."""
    with torch.no_grad():
        found = policy.lm(input_ids=torch.tensor([tokens])).logits[0, -1]
    return found.double().numpy() / policy.temperature


# --- choose_prompts -------------------------------------------------------------------------------


def test_the_owner_chooses_the_prompts_of_each_rollout(policies, function_reward, monkeypatch):
    asked = []

    def choose_prompts(self, prompts, count, step, ctx):
        asked.append((len(prompts), count, step, ctx.step, ctx.attempt, ctx.policy is not None))
        return torch.tensor([7, 0, 0, step])

    offered(monkeypatch, plugin(choose_prompts=choose_prompts))
    kit = policies.make(plugins=["ppo", "made"], rl={**SMALL, "rollouts": 2})
    kit.plugins["ppo"].instance.responses_per_prompt = 2
    rollouts = trained(kit, function_reward)
    assert asked == [(8, 4, 0, 0, 0, True), (8, 4, 1, 1, 0, True)]
    for step, rollout in enumerate(rollouts):
        wanted = [RAGGED[i] for i in (7, 7, 0, 0, 0, 0, step, step)]
        assert rollout.samples.tokens[0] == wanted
        assert rollout.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("rows", "share"), [(range(8), 0.0), ([0] * 8, 7 / 8), ([*range(7), 0], 1 / 8)]
)
def test_its_magnitude_is_the_share_of_prompts_that_the_default_would_not_draw(
    policies, function_reward, monkeypatch, rows, share
):
    """Eight prompts in a rollout of eight: the default takes each once, in some order."""
    offered(monkeypatch, plugin(choose_prompts=lambda self: list(rows)))
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    trained(kit, function_reward)
    assert kit.rows[0]["actions"]["made.choose_prompts"] == pytest.approx(share)


def test_a_choice_that_is_none_names_the_plugin(policies, function_reward, monkeypatch):
    offered(monkeypatch, plugin(choose_prompts=lambda self: [8] * 8))
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    with pytest.raises(UserError) as caught:
        trained(kit, function_reward)
    assert str(caught.value) == (
        "plugin 'made': hook 'choose_prompts' answered 8, expected 8 row numbers of prompts from 0 "
        "to 7"
    )


# --- sampling_logits ------------------------------------------------------------------------------


def half_and_half(self, logits, reference):
    """The mixture of two policies, half of the tokens each."""
    return (0.5 * logits.softmax(-1) + 0.5 * reference.softmax(-1)).log()


def test_a_mixture_of_two_policies_is_drawn_from(policies, function_reward, monkeypatch):
    """Over all responses of two tokens: the second is drawn from the mixture at its own prefix."""
    offered(monkeypatch, plugin({"reference_logits": True}, sampling_logits=half_and_half))
    rl = {**SMALL, "rollout_size": 8000, "minibatch": 8000}
    kit = policies.make(plugins=["ppo", "made"], rl=rl, generation={"max_new_tokens": 2})
    policy, reference = kit.word_policy(), kit.word_policy(1)
    (rollout,) = trained(kit, function_reward, [[2, 3]], policy, reference=reference)

    def chances(*policies, prefix=(2, 3)):
        return np.mean([np.exp(log_softmax(next_logits(p, list(prefix)))) for p in policies], 0)

    def table(*policies):
        """Chance of each response: the stop token 0 alone, or two tokens."""
        first = chances(*policies)
        found = {(0,): first[0]}
        for a, b in product(range(1, 6), range(6)):
            found[(a, b)] = first[a] * chances(*policies, prefix=(2, 3, a))[b]
        return found

    drawn = [tuple(row) for row in rollout.samples.tokens[1]]
    wanted = table(policy, reference)
    assert sum(wanted.values()) == pytest.approx(1)
    counts = np.array([drawn.count(response) for response in wanted])
    expected = np.array(list(wanted.values())) * len(drawn)
    common = expected > 5
    assert counts.sum() == len(drawn)
    observed = [*counts[common], counts[~common].sum()]
    by_chance = [*expected[common], expected[~common].sum()]
    assert chisquare(observed, by_chance).pvalue > 0.01
    own = np.array(list(table(policy).values())) * len(drawn)
    assert (
        chisquare(counts[common], own[common] * counts[common].sum() / own[common].sum()).pvalue
        < 1e-6
    )


@pytest.mark.parametrize("batch", [256, 3])
def test_behaviour_log_probabilities_are_those_of_the_draw(
    policies, function_reward, monkeypatch, batch
):
    """Of ragged prompts, in chunks, against a token at a time in float64 without a cache."""

    def sampling_logits(self, logits, reference):
        shaped = 0.5 * logits + 0.8 * reference
        shaped[:, 3] = -torch.inf
        return shaped

    offered(monkeypatch, plugin({"reference_logits": True}, sampling_logits=sampling_logits))
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL, generation={"batch": batch})
    policy, reference = kit.word_policy(), kit.word_policy(1)
    (rollout,) = trained(kit, function_reward, RAGGED, policy, reference=reference)
    prompts, responses = rollout.samples.tokens
    assert len({len(r) for r in responses}) > 1
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert 3 not in response
        for t, token in enumerate(response):
            own, other = (next_logits(p, prompt + response[:t]) for p in (policy, reference))
            shaped = 0.5 * own + 0.8 * other
            shaped[3] = -np.inf
            assert float(rollout.behaviour_logprobs[i, t]) == pytest.approx(
                log_softmax(shaped)[token], abs=1e-4
            )
            assert float(rollout.logprobs[i, t]) == pytest.approx(log_softmax(own)[token], abs=1e-4)
    assert (rollout.behaviour_logprobs[~rollout.mask] == 0).all()
    assert (rollout.behaviour_logprobs - rollout.logprobs).abs().max() > 0.1


def test_without_a_shape_the_behaviour_is_the_policys(policies, function_reward):
    kit = policies.make(plugins=["ppo"], rl=SMALL)
    (rollout,) = trained(kit, function_reward)
    assert rollout.samples.logprobs is None
    assert torch.equal(rollout.behaviour_logprobs, rollout.logprobs)


def test_logits_that_stay_change_nothing(policies, function_reward, monkeypatch):
    offered(monkeypatch, plugin(sampling_logits=lambda self, logits: logits))
    found = []
    for plugins in (["ppo"], ["ppo", "made"]):
        kit = policies.make(plugins=plugins, rl={**SMALL, "rollouts": 2, "minibatch": 4})
        rollouts = trained(kit, function_reward)
        found.append([r.samples.response_ids for r in rollouts])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kit.rows[0]["actions"]["made.sampling_logits"] == 0
    torch.testing.assert_close(
        rollouts[0].behaviour_logprobs, rollouts[0].logprobs, atol=1e-5, rtol=0
    )


def test_shapes_are_a_chain_whose_links_are_measured_apart(policies, function_reward, monkeypatch):
    given = []

    def colder(self, logits, reference):
        given.append((logits.clone(), reference))
        return 2 * logits

    def never_two(self, logits):
        given.append((logits.clone(), None))
        return logits.index_fill(1, torch.tensor(2), -torch.inf)

    offered(monkeypatch, plugin(sampling_logits=colder), "colder")
    offered(monkeypatch, plugin(sampling_logits=never_two), "never_two")
    kit = policies.make(
        plugins=["ppo", "colder", "never_two"], rl=SMALL, generation={"max_new_tokens": 1}
    )
    (rollout,) = trained(kit, function_reward)
    (logits, reference), (colder_logits, _) = given
    assert reference is None  # no plugin needs them
    assert torch.equal(colder_logits, 2 * logits)
    p, q = (np.exp(log_softmax(x.numpy())) for x in (logits, colder_logits))
    actions = kit.rows[0]["actions"]
    wanted = np.abs(p - q).sum(1).mean() / 2
    assert actions["colder.sampling_logits"] == pytest.approx(wanted, rel=1e-4)
    # all that token 2 had has moved to the others
    assert actions["never_two.sampling_logits"] == pytest.approx(q[:, 2].mean(), rel=1e-4)
    assert not (rollout.samples.response_ids == 2).any()


def test_chance_in_a_shape_is_fresh_at_every_token_and_the_same_again(
    policies, function_reward, monkeypatch
):
    seen = []

    def sampling_logits(self, logits, ctx):
        noise = torch.rand(logits.shape, generator=ctx.generator("noise"))
        seen.append(noise)
        return logits + noise

    offered(monkeypatch, plugin(sampling_logits=sampling_logits))
    runs = []
    for _ in range(2):
        seen.clear()
        kit = policies.make(plugins=["ppo", "made"], rl=SMALL, generation={"batch": 4})
        trained(kit, function_reward)
        runs.append([noise.flatten().tolist() for noise in seen])
    assert len(runs[0]) > 4  # two chunks of several tokens
    assert runs[0] == runs[1]
    assert len({tuple(noise) for noise in runs[0]}) == len(runs[0])


def test_weights_that_change_while_tokens_are_drawn_name_the_plugin(
    policies, function_reward, monkeypatch
):
    def sampling_logits(self, logits, ctx):
        with torch.no_grad():
            next(ctx.policy.parameters()).mul_(2)
        return logits

    offered(monkeypatch, plugin(sampling_logits=sampling_logits))
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    said = "plugin 'made': hook 'sampling_logits' changed the weights of ctx.policy in place"
    with pytest.raises(UserError, match=said):
        trained(kit, function_reward)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x[:4], r"answered a torch.float32 \(4, 6\), expected logits \(8, 6\)"),
        (lambda x: x.long(), r"answered a torch.int64 \(8, 6\), expected logits \(8, 6\)"),
        (lambda x: [1.0], r"answered a list, expected logits \(8, 6\)"),
        (lambda x: x * float("nan"), "answered a logit that is NaN or inf at iteration 1, step 1"),
        (lambda x: x + float("inf"), "answered a logit that is NaN or inf at iteration 1, step 1"),
        (lambda x: x - float("inf"), "left a response no token; one logit of each row should be"),
    ],
)
def test_a_wrong_shape_names_its_plugin(policies, function_reward, monkeypatch, answer, said):
    offered(monkeypatch, plugin(sampling_logits=lambda self, logits: answer(logits)))
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    with pytest.raises(UserError, match=f"^plugin 'made': hook 'sampling_logits' {said}") as caught:
        trained(kit, function_reward)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, NonFiniteError) == ("NaN" in said)
