"""from_sft, take_last_policy and liti: where each iteration's policy starts (Wolf 2.2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import Policy, PolicyHandle, PolicyHistory, UserError
from ostinato.config.draws import Draws


@pytest.fixture(scope="module")
def policies(kit):
    """sft, pi_1_init, pi_1, pi_2_init, pi_2, by name."""
    section = kit.make().ctx.config.policy
    made = {}
    for seed, name in enumerate(("sft", "initial-1", "final-1", "initial-2", "final-2")):
        with Draws(seed).forked("policy"):
            made[name] = Policy.load(section, 1.0)
    return made


def history(policies, iterations, asked=None):
    """What the hook of iteration ``iterations + 1`` is given."""

    def handle(name):
        def load():
            if asked is not None:
                asked.append(name)
            return policies[name]

        return PolicyHandle(name, load)

    k = range(1, iterations + 1)
    return PolicyHistory(
        handle("sft"), [handle(f"initial-{i}") for i in k], [handle(f"final-{i}") for i in k]
    )


def start(kit, plugin, given):
    one = kit.make(plugin)
    return one.plugins.one("init_policy", history=given, ctx=one.ctx)


@pytest.mark.parametrize("plugin", ["from_sft", "take_last_policy", "liti", "warp"])
def test_the_first_iteration_starts_from_sft(kit, policies, plugin):
    assert start(kit, plugin, history(policies, 0)).name == "sft"


@pytest.mark.parametrize(("plugin", "name"), [("from_sft", "sft"), ("take_last_policy", "final-2")])
def test_a_handle_is_answered_and_no_weights_are_loaded(kit, policies, plugin, name):
    """But for those of the SFT policy, which the run holds and the core watches."""
    asked = []
    assert start(kit, plugin, history(policies, 2, asked)).name == name
    assert set(asked) == {"sft"}


@pytest.mark.parametrize("plugin", ["liti", "warp"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
def test_liti_interpolates_between_the_last_start_and_the_last_end(kit, policies, plugin, eta):
    """pi_3_init = (1 - eta) pi_2_init + eta pi_2 in every parameter, in float64."""
    before = {n: {k: v.clone() for k, v in p.state_dict().items()} for n, p in policies.items()}
    made = start(kit, (plugin, {"eta": eta}), history(policies, 2))
    first, last = (dict(policies[n].named_parameters()) for n in ("initial-2", "final-2"))
    for name, p in made.named_parameters():
        a, b = (x[name].detach().double().numpy() for x in (first, last))
        np.testing.assert_allclose(p.detach(), (1 - eta) * a + eta * b, atol=1e-7, err_msg=name)
    exact = {0.0: "initial-2", 1.0: "final-2"}.get(eta)
    if exact:
        theirs = policies[exact].state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in made.state_dict().items())
    with torch.no_grad():
        for p in made.parameters():
            p.add_(1.0)  # what is done with the answer must not reach what was given
    for name, policy in policies.items():
        assert all(torch.equal(v, before[name][k]) for k, v in policy.state_dict().items())


def test_eta_outside_0_and_1_is_refused(kit):
    with pytest.raises(UserError, match="eta"):
        kit.make(("liti", {"eta": 1.5}))


def test_effect_liti_stays_nearer_to_where_it_started(kit, policies):
    """WARP, Wolf 2.2: with eta < 1 the start drifts more slowly than with take_last_policy.

    The distance of pi_k_init to pi_(k-1)_init is eta times that of pi_(k-1).
    """

    def distance(a, b):
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        return float(sum((x - y).detach().double().square().sum() for x, y in pairs)) ** 0.5

    whole = distance(policies["final-2"], policies["initial-2"])
    for eta in (0.25, 0.5):
        made = start(kit, ("liti", {"eta": eta}), history(policies, 2))
        assert distance(made, policies["initial-2"]) == pytest.approx(eta * whole, rel=1e-5)
