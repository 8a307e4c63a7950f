"""KL between policies: exact over the vocabulary, and the estimates that a run trains on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.config.errors import NonFiniteError
from ostinato.measures import exact_kl
from ostinato.models import kl as kl_module
from ostinato.models.kl import kl_per_response, kl_per_token
from rollout_kit import SENTENCES, logprobs, parameters, tables

PROMPTS = [[2, 3], [4], [5, 2, 2], [3, 3], [2, 5], [4, 4, 4], [5], [3]]
ESTIMATORS = ["k1", "k2", "k3", "exact"]
SMALL = {"rollouts": 2, "rollout_size": 8, "minibatch": 8, "epochs": 1, "lr": 1e-2}


def loop(policy, other, samples, estimator):
    """Each token's KL by NumPy in float64, from transformers' own logits."""
    found = np.zeros(samples.mask.shape)
    for i in range(len(samples)):
        prompt = samples.prompt_ids[i][samples.prompt_mask[i]].tolist()
        response = samples.response_ids[i][samples.mask[i]].tolist()
        logs = []
        for model in (policy, other):
            with torch.no_grad():
                logits = model.lm(input_ids=torch.tensor([prompt + response])).logits[0]
            table = logits.double().numpy() / model.temperature
            table = table - table.max(-1, keepdims=True)
            logs.append(table - np.log(np.exp(table).sum(-1, keepdims=True)))
        for t, token in enumerate(response):
            p, q = (log[len(prompt) - 1 + t] for log in logs)
            gap = p[token] - q[token]
            found[i, t] = {
                "k1": gap,
                "k2": gap**2 / 2,
                "k3": np.exp(-gap) - 1 + gap,
                "exact": float((np.exp(p) * (p - q)).sum()),
            }[estimator]
    return found


def test_exact_kl_is_never_negative_and_is_the_mean_of_log_ratios(policies):
    kit = policies.make(generation={"max_new_tokens": 3})
    policy, other = kit.word_policy(2), kit.word_policy(0)
    samples = kit.sample(policy, [[2, 3]] * 4000)
    exact = kl_per_response(policy, other, samples)
    assert (exact >= 0).all()
    with torch.no_grad():
        k1 = (policy.logprobs(samples) - other.logprobs(samples)).sum(1)
    error = float((k1 - exact).std()) / 4000**0.5
    assert abs(float(k1.mean() - exact.mean())) < 4 * error
    assert float(exact.mean()) > 20 * error
    assert exact.std() < k1.std()
    assert kl_per_response(policy, policy, samples).abs().max() == 0


def test_kl_does_not_depend_on_how_many_logits_are_held_at_once(policies, monkeypatch):
    kit = policies.make(generation={"max_new_tokens": 4})
    policy, other = kit.word_policy(2), kit.word_policy(0)
    samples = kit.sample(policy, PROMPTS)
    whole = kl_per_token(policy, other, samples)
    monkeypatch.setattr(kl_module, "LOGITS", 1)
    monkeypatch.setattr(kl_module, "FORWARD_ROWS", 3)
    torch.testing.assert_close(kl_per_token(policy, other, samples), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimator_is_trained_on_logged_and_told_to_the_controller(
    policies, function_reward, monkeypatch, estimator
):
    section = {"coefficient": 0.3, "estimator": estimator}
    generation = {"max_new_tokens": 8, "temperature": 0.7}
    kit = policies.make(plugins=["ppo"], rl=SMALL, kl=section, generation=generation)
    algorithm, seen, told = kit.plugins["ppo"].instance, [], []
    loss, one = algorithm.loss, kit.plugins.one

    def watched(batch, outputs, ctx):
        seen.append((batch, outputs))
        return loss(batch, outputs, ctx)

    def asked(hook, **arguments):
        if hook == "kl_coefficient":
            told.append(arguments["kl"])
        return one(hook, **arguments)

    monkeypatch.setattr(algorithm, "loss", watched)
    monkeypatch.setattr(kit.plugins, "one", asked)
    initial, reference = kit.word_policy(2), kit.word_policy(0)
    kit.engine(PROMPTS)(initial, function_reward(lambda s: s.lengths.float()), reference=reference)
    batch, _ = seen[0]  # of the first rollout, which `initial` itself sampled
    wanted = loop(initial, reference, batch.samples, estimator)
    assert batch.samples.lengths.min() < batch.samples.lengths.max()
    last = batch.samples.lengths[:, None] - 1
    trained = -batch.rewards.scatter_add(1, last, -batch.score[:, None]) / 0.3
    np.testing.assert_allclose(trained.numpy(), wanted, atol=1e-4, rtol=1e-4)
    assert (trained[~batch.mask] == 0).all()
    assert not trained.requires_grad
    logged = [row["kl"] for row in kit.rows]
    assert logged[0] == pytest.approx(wanted.sum(1).mean(), rel=1e-4)
    assert told == [None, logged[0]]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_broken_reference_is_one_sentence_that_blames_no_plugin(
    policies, function_reward, estimator
):
    kit = policies.make(plugins=["ppo"], rl=SMALL, kl={"estimator": estimator})
    reference = kit.word_policy(0)
    with torch.no_grad():
        reference.lm.get_output_embeddings().weight.fill_(float("nan"))
    said = rf"^kl\.estimator {estimator}: the KL of a token is not finite at iteration 1, step 1$"
    with pytest.raises(NonFiniteError, match=said):
        kit.engine(PROMPTS)(
            kit.word_policy(2), function_reward(lambda s: s.lengths.float()), reference=reference
        )


# --- What each estimator teaches ------------------------------------------------------------------


def gradients(theta, reference):
    """Of the KL of responses; and of next-token KLs at prefixes held fixed, either way round."""
    found = []
    for held, reverse in [(False, False), (True, False), (True, True)]:
        moved = theta.clone().requires_grad_()
        (first, second), (ref_first, ref_second) = tables(moved), tables(reference)
        chances = first.exp().detach() if held else first.exp()
        places = [(1.0, first, ref_first), *zip(chances, second, ref_second, strict=True)]
        whole = torch.zeros((), dtype=torch.float64)
        for chance, p, q in places:
            p, q = (q, p) if reverse else (p, q)
            whole = whole + chance * (p.exp() * (p - q)).sum()
        found.append(torch.autograd.grad(whole, moved)[0])
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_of_each_estimator_as_a_reward(estimator):
    """Over all responses of two tokens, as docs/concepts says; as a loss: the plugin's tests."""
    theta, reference = parameters(0), parameters(1)
    moved = theta.clone().requires_grad_()
    logs, ref = logprobs(moved, SENTENCES), logprobs(reference, SENTENCES)
    chance = logs.detach().sum(1).exp()
    if estimator == "exact":
        (first, second), (ref_first, ref_second) = tables(theta), tables(reference)
        opening = exact_kl(first[None, None], ref_first[None, None])[0, 0]
        following = exact_kl(second[None], ref_second[None])[0]
        kl = torch.stack([opening + following[a] for a, _ in SENTENCES])
    else:
        kl = kl_module.ESTIMATES[estimator](logs, ref).sum(1)
    score_function = (chance * kl.detach() * logs.sum(1)).sum()
    (found,) = torch.autograd.grad(score_function, moved, retain_graph=True)
    whole, fixed, reverse = gradients(theta, reference)
    mean = logs.sum(1).exp() @ (logs - ref).square().sum(1) / 2
    (of_k2,) = torch.autograd.grad(mean, moved)
    wanted = {
        "k1": whole,
        "k2": of_k2 - fixed,
        "k3": whole - reverse,
        "exact": whole - fixed,
    }[estimator]
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    assert ((found - whole).abs().max() > 0.1) == (estimator != "k1")
