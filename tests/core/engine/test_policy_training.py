"""The engine: rollouts, rewards, updates, and what stops a run."""

from __future__ import annotations

import pytest
import torch

from ostinato.config.errors import NonFiniteError, UserError
from ostinato.engine.policy_update import PolicyUpdate, learning_rate
from ostinato.models.samples import Samples, Scores

RAGGED = [[100, 101, 102], [104], [105, 106], [107], [100, 104], [103], [102, 103, 101], [99]]
SMALL = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1, "lr": 1e-2}


def share_of_b(samples: Samples) -> torch.Tensor:
    """Real tokens above 130, as a share of the response."""
    hits = (samples.response_ids > 130) & samples.mask
    return hits.float().sum(1) / samples.lengths


def train(kit, policy, function_reward, reward=share_of_b, **arguments):
    optimise = kit.engine(RAGGED)
    return optimise(policy, function_reward(reward), **arguments)


def spy(kit, monkeypatch):
    """Every (rollout or micro-batch, outputs) that the algorithm's loss is given."""
    algorithm = kit.plugins["ppo"].instance
    seen, loss = [], algorithm.loss

    def watched(batch, outputs, ctx):
        seen.append((batch, outputs))
        return loss(batch, outputs, ctx)

    monkeypatch.setattr(algorithm, "loss", watched)
    return seen


def state(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


# --- A rollout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("minibatch", [8, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_minibatch_has_ratio_1_and_no_kl(
    policies, function_reward, monkeypatch, family, minibatch, temperature
):
    rl = {**SMALL, "minibatch": minibatch}
    kit = policies.make(family, ["ppo"], rl=rl, generation={"temperature": temperature})
    seen = spy(kit, monkeypatch)
    policy = kit.policy()
    train(kit, policy, function_reward)
    batch, outputs = seen[0]
    assert len(seen) == 8 // minibatch
    real = batch.mask
    ratio = (outputs.logprobs - batch.logprobs)[real].exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
    assert torch.equal(batch.logprobs, batch.ref_logprobs)
    assert kit.rows[0]["kl"] == 0.0
    # policy, rollout and reference are all divided by the temperature
    fresh = policy.logprobs(batch.samples)
    torch.testing.assert_close(batch.logprobs, fresh.detach(), atol=1e-5, rtol=0)


def test_the_logged_kl_is_the_kl_that_is_trained_on(policies, function_reward, monkeypatch):
    kit = policies.make(plugins=["ppo"], rl=SMALL, kl={"coefficient": 0.3})
    seen = spy(kit, monkeypatch)
    train(kit, kit.policy(), function_reward, reference=kit.policy(seed=1))
    batch, _ = seen[0]
    trained = (batch.score - batch.rewards.sum(1)) / 0.3
    assert kit.rows[0]["kl"] == pytest.approx(float(trained.mean()), rel=1e-4)
    assert abs(kit.rows[0]["kl"]) > 0.1
    assert kit.rows[0]["kl_coefficient"] == 0.3


def test_the_kl_coefficient_is_asked_with_the_kl_of_the_rollout_before(
    policies, function_reward, monkeypatch
):
    kit = policies.make(plugins=["fixed_kl"], rl={**SMALL, "rollouts": 3})
    asked, one = [], kit.plugins.one

    def watched(hook, **arguments):
        if hook == "kl_coefficient":
            asked.append((arguments["kl"], arguments["step"]))
        return one(hook, **arguments)

    monkeypatch.setattr(kit.plugins, "one", watched)
    train(kit, kit.policy(), function_reward, reference=kit.policy(seed=1))
    kls = [row["kl"] for row in kit.rows]
    assert asked == [(None, 0), (kls[0], 1), (kls[1], 2)]
    assert len(set(kls)) == 3


def test_every_epoch_permutes_the_rollout_and_uses_each_response_once(
    policies, function_reward, monkeypatch
):
    kit = policies.make(plugins=["ppo"], rl={**SMALL, "minibatch": 2, "epochs": 3})
    seen = spy(kit, monkeypatch)
    train(kit, kit.policy(), function_reward)
    group = [batch.group.tolist() for batch, _ in seen]
    epochs = [[row for rows in group[i : i + 4] for row in rows] for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rollouts_go_through_all_prompts_before_one_comes_again(
    policies, function_reward, monkeypatch
):
    kit = policies.make(
        plugins=["ppo"], rl={**SMALL, "rollouts": 4, "rollout_size": 4, "minibatch": 4}
    )
    seen = spy(kit, monkeypatch)
    train(kit, kit.policy(), function_reward)
    drawn = [
        tuple(ids[m].tolist())
        for batch, _ in seen
        for ids, m in zip(batch.samples.prompt_ids, batch.samples.prompt_mask, strict=True)
    ]
    for turn in (drawn[:8], drawn[8:]):
        assert sorted(turn) == sorted(map(tuple, RAGGED))
    assert drawn[:8] != drawn[8:]


def test_group_rows_of_one_prompt_stand_together_and_odd_sizes_are_refused(
    policies, function_reward, monkeypatch
):
    kit = policies.make(plugins=["ppo"], rl={**SMALL, "rollout_size": 8})
    monkeypatch.setattr(kit.plugins["ppo"].instance, "responses_per_prompt", 4, raising=False)
    seen = spy(kit, monkeypatch)
    train(kit, kit.policy(), function_reward)
    batch, _ = seen[0]
    assert batch.group.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(batch.samples.prompt_ids[:1].expand(4, -1), batch.samples.prompt_ids[:4])
    monkeypatch.setattr(kit.plugins["ppo"].instance, "responses_per_prompt", 3)
    with pytest.raises(UserError, match="8 is no multiple of the 3 responses a prompt of plugin '"):
        train(kit, kit.policy(), function_reward)


# --- Updates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_accumulation_changes_nothing(policies, function_reward, value):
    found = {}
    for accumulate in (1, 2, 8):
        # the wide eps keeps Adam from blowing up gradients that are rounding errors
        rl = {**SMALL, "epochs": 2, "accumulate": accumulate, "eps": 1e-2}
        kit = policies.make(
            plugins=["ppo"], rl=rl, policy={"value": value}, generation={"max_new_tokens": 8}
        )
        initial = kit.word_policy()
        prompts = [[2], [3, 4], [5, 2, 2], [2, 4], [3], [4, 4], [5], [5, 5, 3]]
        optimise = kit.engine(prompts)
        trained = optimise(initial, function_reward(lambda s: s.lengths.float() / 4))
        found[accumulate] = kit.rows[0], state(trained)
    row, parameters = found.pop(1)
    assert row["length"] % 1 != 0  # ragged responses, so means over tokens need weights
    assert row["finished"] > 0
    for other, changed in found.values():
        for name, p in changed.items():
            torch.testing.assert_close(p, parameters[name], atol=1e-6, rtol=0)
        assert other["terms"] == pytest.approx(row["terms"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
    moved = parameters["lm.lm_head.weight"] - state(initial)["lm.lm_head.weight"]
    assert moved.abs().max() > 1e-4


def test_adam_has_eps_1e_5_and_the_learning_rate_is_annealed(
    policies, function_reward, monkeypatch
):
    kit = policies.make(plugins=["ppo"], rl={**SMALL, "rollouts": 2, "epochs": 2, "lr_final": 0.0})
    rates, step = [], torch.optim.Adam.step

    def watched(self, *rest):
        group = self.param_groups[0]
        rates.append(group["lr"])
        assert group["eps"] == 1e-5
        assert group["betas"] == (0.9, 0.95)
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    train(kit, kit.policy(), function_reward)
    assert rates == [learning_rate(kit.config.rl, *divmod(done, 2), 2) for done in range(4)]
    assert rates == sorted(rates, reverse=True)
    assert kit.rows[1]["updates"] == 4


def test_the_reference_is_the_initial_policy_itself_and_neither_is_changed(
    policies, function_reward, monkeypatch
):
    kit = policies.make(plugins=["ppo"], rl={**SMALL, "rollouts": 3})
    seen = spy(kit, monkeypatch)
    initial = kit.policy()
    before = state(initial)
    trained = train(kit, initial, function_reward)
    assert all(outputs.reference is initial for _, outputs in seen)
    for name, p in state(initial).items():
        assert torch.equal(p, before[name])
    batch, _ = seen[-1]
    wanted = initial.logprobs(batch.samples).detach()
    torch.testing.assert_close(batch.ref_logprobs, wanted, atol=1e-5, rtol=0)
    assert not torch.equal(state(trained)["lm.lm_head.weight"], before["lm.lm_head.weight"])


def test_on_update_may_move_the_reference_which_is_never_the_initial_policy(
    policies, function_reward
):
    kit = policies.make(plugins=["ppo"], rl={**SMALL, "minibatch": 4, "epochs": 2})
    initial, calls = kit.policy(), []
    before = state(initial)

    def follow(policy, reference):
        calls.append(reference is initial)
        for p, q in zip(reference.lm.parameters(), policy.lm.parameters(), strict=True):
            p.lerp_(q, 0.5)

    train(kit, initial, function_reward, on_update=follow)
    assert calls == [False] * 4
    for name, p in state(initial).items():
        assert torch.equal(p, before[name])
    _, tensors = kit.directory.checkpoints[-1]
    assert not torch.equal(tensors["reference.lm.lm_head.weight"], before["lm.lm_head.weight"])


def test_dropout_stays_off_while_training(policies, function_reward, monkeypatch):
    kit = policies.make(
        "gpt2", ["ppo"], model={"resid_pdrop": 0.5, "embd_pdrop": 0.5}, rl={**SMALL, "minibatch": 4}
    )
    seen = spy(kit, monkeypatch)
    initial = kit.policy()
    initial.lm.train()
    train(kit, initial.copy(), function_reward)
    batch, outputs = seen[0]
    torch.testing.assert_close(outputs.logprobs, batch.logprobs, atol=1e-5, rtol=0)


# --- What is not finite stops the run -------------------------------------------------------------


def test_a_nan_reward_stops_the_run(policies, function_reward):
    kit = policies.make(plugins=["worst_case"], rl=SMALL)

    def broken(samples):
        return torch.full((len(samples),), float("nan"))

    with pytest.raises(
        NonFiniteError, match=r"^a reward answered a score that .* iteration 1, step 1$"
    ):
        train(kit, kit.policy(), function_reward, broken)


def test_a_nan_from_a_reward_transform_names_its_plugin(policies, function_reward):
    kit = policies.make(plugins=["sharpe"], rl=SMALL)

    def heads_at_odds(samples):  # the score is finite, the variance over heads is not
        score = share_of_b(samples)
        parts = torch.stack([score, torch.full_like(score, 1e30)], dim=1)
        return Scores(score, parts[:, None])

    with pytest.raises(
        NonFiniteError, match=r"^plugin 'sharpe': .* is not finite at iteration 1, step 1$"
    ):
        train(kit, kit.policy(), function_reward, heads_at_odds)


def test_a_nan_kl_coefficient_names_its_plugin(policies, function_reward, monkeypatch):
    kit = policies.make(rl=SMALL)
    one = kit.plugins.one

    def broken(hook, **arguments):
        return float("nan") if hook == "kl_coefficient" else one(hook, **arguments)

    monkeypatch.setattr(kit.plugins, "one", broken)
    with pytest.raises(NonFiniteError, match=r"plugin 'fixed_kl': the KL coefficient .* step 1"):
        train(kit, kit.policy(), function_reward)


@pytest.mark.parametrize("where", ["value", "gradient", "plugin"])
def test_a_nan_in_loss_or_gradient_stops_before_the_step(
    policies, function_reward, monkeypatch, where
):
    kit = policies.make(plugins=["ppo"], rl={**SMALL, "rollouts": 2})
    algorithm = kit.plugins["ppo"].instance
    loss, steps = algorithm.loss, []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda o, *a: (steps.append(1), step(o, *a)))

    def broken(batch, outputs, ctx):
        terms = loss(batch, outputs, ctx)
        if not steps:  # the first rollout is sound
            return terms
        if where == "value":
            return terms | {"value": terms["value"] * float("nan")}
        zero = outputs.logprobs.sum() * 0  # sqrt has an infinite slope at 0
        return terms | ({"root": zero.sqrt()} if where == "gradient" else {})

    monkeypatch.setattr(algorithm, "loss", broken)
    each = kit.plugins.each

    def extra(hook, **arguments):
        if hook == "policy_loss" and where == "plugin" and steps:
            yield "ptx", {"nll": torch.tensor(float("inf"))}
        yield from each(hook, **arguments)

    monkeypatch.setattr(kit.plugins, "each", extra)
    said = {
        "value": "plugin 'ppo': the loss term 'value' is not finite",
        "gradient": "plugin 'ppo': the gradient is not finite",
        "plugin": "plugin 'ptx': the loss term 'nll' is not finite",
    }
    with pytest.raises(NonFiniteError, match=f"^{said[where]} at iteration 1, step 2$"):
        train(kit, kit.policy(), function_reward)
    assert len(steps) == 1


def test_a_non_finite_policy_stops_the_rollout(policies, function_reward):
    kit = policies.make(rl=SMALL)
    policy = kit.policy()
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="logits are not finite at iteration 1, step 1"):
        train(kit, policy, function_reward)


# --- PPO does what it is for ----------------------------------------------------------------------


def bandit(policies, beta, **rl):
    """A policy of six words that answers with exactly one."""
    settings = {
        "rollouts": 60,
        "rollout_size": 128,
        "minibatch": 128,
        "epochs": 4,
        "lr": 1e-2,
        "lr_final": 1e-4,
        **rl,
    }
    return policies.make(
        plugins=[{"ppo": {"whiten": False}}],
        rl=settings,
        kl={"coefficient": beta},
        generation={"max_new_tokens": 1},
    )


def test_with_a_kl_penalty_ppo_finds_the_closed_form_optimum(policies, function_reward):
    beta = 0.5
    kit = bandit(policies, beta)
    rewards = torch.tensor([0.3, -0.5, 1.0, 0.0, 0.5, -1.0])
    initial = kit.word_policy()
    optimise = kit.engine([[2, 3]])
    trained = optimise(initial, function_reward(lambda s: rewards[s.response_ids[:, 0]]))

    def distribution(policy):
        with torch.no_grad():
            logits = policy.lm(input_ids=torch.tensor([[2, 3]])).logits[0, -1]
        return (logits / kit.config.generation.temperature).softmax(-1)

    reference = distribution(initial)
    optimum = reference * (rewards / beta).exp()
    optimum /= optimum.sum()
    found = distribution(trained)
    assert (reference - optimum).abs().sum() / 2 > 0.2  # total variation: it had far to go
    assert (found - optimum).abs().sum() / 2 < 0.05
    kl = float((found * (found / reference).log()).sum())
    assert kit.rows[-1]["kl"] == pytest.approx(kl, abs=0.15)


def test_ppo_raises_the_reward_over_several_tokens(policies, function_reward):
    kit = policies.make(
        rl={"rollouts": 25, "rollout_size": 64, "minibatch": 32, "epochs": 2, "lr": 1e-2},
        kl={"coefficient": 0.01},
        generation={"max_new_tokens": 3},
    )
    optimise = kit.engine([[2], [3, 4], [5, 2]])
    optimise(kit.word_policy(), function_reward(lambda s: (s.response_ids == 4).float().mean(1)))
    scores = [row["score"] for row in kit.rows]
    assert scores[0] < 0.5
    assert sum(scores[-5:]) / 5 > 0.9


def test_minibatches_of_a_rollout_and_its_whole_take_the_same_first_step(
    policies, function_reward, monkeypatch
):
    """The pass that gave the old log-probabilities serves the first update: nothing else moves."""
    found = []
    for reuse in (True, False):
        kit = policies.make(plugins=["ppo"], rl={**SMALL, "epochs": 2})
        if not reuse:
            call = PolicyUpdate.__call__
            monkeypatch.setattr(
                PolicyUpdate, "__call__", lambda u, r, _, *a, c=call: c(u, r, None, *a)
            )
        found.append(state(train(kit, kit.policy(), function_reward)))
    for name, p in found[0].items():
        torch.testing.assert_close(p, found[1][name], atol=1e-4, rtol=0)
