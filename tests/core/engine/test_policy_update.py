"""The learning rate of each update, and its gradient's point; more stands with the trainer."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from distributions import offered, plugin
from ostinato import PolicyAlgorithm
from ostinato.config.errors import UserError
from ostinato.config.sections import RLSection
from ostinato.engine.policy_update import PolicyUpdate, learning_rate
from ostinato.engine.rollouts import Rollouts
from ostinato.measures import masked_mean


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_schedules(schedule):
    settings = RLSection(lr=1.0, lr_final=0.2, schedule=schedule, rollouts=2)
    places = [(0, 0, 2), (0, 1, 2), (1, 0, 7), (1, 2, 4), (2, 0, 3)]  # rollout, update, of how many
    found = [learning_rate(settings, *place) for place in places]
    wanted = {
        "linear": [1.0, 0.8, 0.6, 0.4, 0.2],
        "cosine": [0.2 + 0.4 * (1 + math.cos(math.pi * i / 4)) for i in range(5)],
        "constant": [1.0] * 5,
    }
    assert found == pytest.approx(wanted[schedule])


# --- Displacement: the gradient of a policy at another point --------------------------------------

RHO = 0.3
PROMPTS = [[2], [3, 4], [5, 2, 2], [2, 4], [4], [3], [5, 3], [2, 5]]


class Weighted(PolicyAlgorithm):
    """Log-likelihood, each response weighted by its length less three; no ratio, no clip."""

    def __init__(self, mean_over):
        self.mean_over = mean_over

    def advantages(self, rollout, ctx):
        found = (rollout.samples.lengths - 3.0)[:, None] * rollout.mask
        return found, torch.zeros_like(rollout.values)

    def loss(self, batch, outputs, ctx):
        each = -batch.advantages * outputs.logprobs  # (B, T)
        if self.mean_over == "tokens":
            return {"policy": masked_mean(each, batch.mask)}
        return {"policy": each.sum(1).mean()}


def ascent(loss, parameters):
    """SAM's step: rho along the gradient's own direction."""
    found = dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))
    norm = torch.stack([g.square().sum() for g in found.values()]).sum().sqrt()
    return {name: RHO * g / norm for name, g in found.items()}


def sharpness_aware(self, parameters, loss):
    return ascent(loss(), dict(parameters))


def by_hand(policy, rollout, rows, mean_over):
    """(displacement, gradient of the loss there), in float64, a response at a time."""
    body = copy.deepcopy(policy.lm).double()
    parameters = dict(body.named_parameters())

    def loss():
        total = torch.zeros((), dtype=torch.float64)
        tokens = 0
        for i in rows:
            prompt, response = (of[i] for of in rollout.samples.tokens)
            whole = torch.tensor([prompt + response])
            logits = body(input_ids=whole).logits[0, len(prompt) - 1 : -1] / policy.temperature
            picked = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
            total = total - (len(response) - 3) * picked.sum()
            tokens += len(response)
        return total / (tokens if mean_over == "tokens" else len(rows))

    step = ascent(loss(), parameters)
    with torch.no_grad():
        for name, by in step.items():
            parameters[name].add_(by)
    return step, dict(
        zip(parameters, torch.autograd.grad(loss(), parameters.values()), strict=True)
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mean_over", ["tokens", "responses"])
def test_sam_on_the_policy_is_the_gradient_at_the_displaced_point(
    policies, function_reward, monkeypatch, accumulate, mean_over
):
    offered(monkeypatch, plugin(policy_meta_update=sharpness_aware), "sam")
    algorithm = Weighted(mean_over)
    offered(monkeypatch, plugin(policy_algorithm=lambda self: algorithm), "weighted")
    rl = {"rollouts": 1, "rollout_size": 8, "minibatch": 4, "epochs": 1, "max_grad_norm": 1e9}
    kit = policies.make(plugins=["weighted", "sam"], rl={**rl, "accumulate": accumulate, "lr": 0.1})
    seen, steps = [], []
    rolled = Rollouts.__call__
    monkeypatch.setattr(Rollouts, "__call__", lambda *a: seen.append(rolled(*a)) or seen[-1])
    minibatch, step = PolicyUpdate._minibatch, torch.optim.Adam.step

    def watched(update, rollout, rows, *rest):
        steps.append([rows.tolist(), copy.deepcopy(update.policy)])
        return minibatch(update, rollout, rows, *rest)

    def stepped(optimiser, *rest):
        grads = [p.grad.clone() for p in optimiser.param_groups[0]["params"]]
        before = [p.detach().clone() for p in optimiser.param_groups[0]["params"]]
        steps[-1] += [grads, before]
        return step(optimiser, *rest)

    monkeypatch.setattr(PolicyUpdate, "_minibatch", watched)
    monkeypatch.setattr(torch.optim.Adam, "step", stepped)
    kit.engine(PROMPTS)(kit.word_policy(), function_reward(lambda s: s.lengths.float()))
    ((rollout, whole, _),) = seen
    assert whole is None  # outputs at the policy itself would not be at the displaced point
    assert len(steps) == 2
    lengths = []
    for rows, policy, grads, before in steps:
        displaced, wanted = by_hand(policy, rollout, rows, mean_over)
        lengths.append(float(torch.stack([d.square().sum() for d in displaced.values()]).sum()))
        names = [name for name, _ in policy.named_parameters()]
        for name, grad, start in zip(names, grads, before, strict=True):
            torch.testing.assert_close(
                grad.double(), wanted[name.removeprefix("lm.")], atol=2e-5, rtol=2e-4
            )
            # and the step is taken from where the policy stood, to the last bit
            assert torch.equal(start, dict(policy.named_parameters())[name])
    assert lengths == pytest.approx([RHO**2] * 2)
    assert kit.rows[0]["actions"]["sam.policy_meta_update"] == pytest.approx(RHO, rel=1e-4)


def test_the_loss_of_a_displacement_leaves_no_trace_in_the_log(
    policies, function_reward, monkeypatch
):
    """Terms are computed for it, but the update's own are what is logged and counted."""

    def term(self, outputs, ctx):
        ctx.log(**{"made/asked": 1.0})
        return {"small": outputs.logprobs.mean() * 1e-3}

    def twice(self, loss):
        assert float(loss().detach()) == float(loss().detach())
        return {}

    rl = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 2}
    found = []
    for hooks in ({}, {"policy_meta_update": twice}):
        offered(monkeypatch, plugin(policy_loss=term, **hooks))
        kit = policies.make(plugins=["ppo", "made"], rl={**rl, "accumulate": 2})
        kit.engine(PROMPTS)(kit.word_policy(), function_reward(lambda s: s.lengths.float()))
        found.append({k: v for k, v in kit.rows[0].items() if k != "seconds"})
    assert found[1]["actions"].pop("made.policy_meta_update") == 0.0
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([], "answered a list, expected a mapping"),
        ({"lm.none": torch.zeros(1)}, "names no parameter 'lm.none'"),
        (
            {"lm.lm_head.weight": torch.zeros(3)},
            r"answered 'lm.lm_head.weight' of shape \(3,\), expected the parameter's \(6, 16\)",
        ),
        ({"lm.lm_head.weight": torch.full((6, 16), math.nan)}, None),
    ],
)
def test_a_wrong_displacement_names_its_plugin(
    policies, function_reward, monkeypatch, answer, said
):
    offered(monkeypatch, plugin(policy_meta_update=lambda self: answer))
    rl = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1}
    kit = policies.make(plugins=["made"], rl=rl)
    hook = "plugin 'made': hook 'policy_meta_update'"
    expected = f"^{hook} {said}$" if said else "^plugin 'made': its displacement is not finite at"
    with pytest.raises(UserError, match=expected):
        kit.engine(PROMPTS)(kit.word_policy(), function_reward(lambda s: s.lengths.float()))
