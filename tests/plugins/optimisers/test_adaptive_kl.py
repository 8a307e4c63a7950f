"""The adaptive KL controller against Ziegler's rule in float64, and steering a simulated KL."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest

from ostinato.config.errors import UserError
from ostinato.config.reading import load_config
from ostinato.contract.plugins import activate
from ostinato.engine.session import check


def controller(**settings):
    return activate([("adaptive_kl", settings)], "test")


def context(coefficient=0.1, rollout_size=64):
    kl, rl = SimpleNamespace(coefficient=coefficient), SimpleNamespace(rollout_size=rollout_size)
    return SimpleNamespace(config=SimpleNamespace(kl=kl, rl=rl))


def ask(plugins, kl, step=1, ctx=None):
    return plugins.one("kl_coefficient", kl=kl, step=step, ctx=ctx or context())


def test_it_starts_from_the_run_files_coefficient_and_follows_the_rule():
    """Ziegler et al. 2019, section 2.2: e = clip(KL / target - 1, -.2, .2)."""
    plugins, draw = controller(target=3.0, horizon=1000), random.Random(0)
    assert ask(plugins, None, 0) == 0.1
    beta, factors = 0.1, set()
    for step in range(1, 200):
        kl = draw.choice([draw.uniform(2.5, 3.5), draw.uniform(-1, 10)])
        error = kl / 3.0 - 1
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        beta *= 1 + error * 64 / 1000
        factors.add(error)
        assert ask(plugins, kl, step) == pytest.approx(beta, rel=1e-12)
    assert {0.2, -0.2} < factors
    assert len(factors) > 10


def test_by_hand():
    plugins = controller(target=6.0)
    ask(plugins, None, 0, context(0.05, 500))
    assert ask(plugins, 6.6, 1, context(0.05, 500)) == pytest.approx(0.05 * (1 + 0.1 * 0.05))
    assert ask(plugins, 60.0, 2, context(0.05, 500)) == pytest.approx(0.05 * 1.005 * 1.01)


def test_a_resumed_controller_goes_on_and_a_new_policy_starts_anew():
    plugins, resumed = controller(), controller()
    ask(plugins, None, 0)
    ask(plugins, 9.0, 1)
    resumed["adaptive_kl"].instance.load_state_dict(plugins["adaptive_kl"].instance.state_dict())
    assert ask(resumed, 2.0, 2) == ask(plugins, 2.0, 2) != 0.1
    assert ask(plugins, None, 0) == 0.1


@pytest.mark.parametrize("start", [1e-3, 10.0])
def test_it_holds_the_kl_at_the_target(start):
    """A policy whose KL relaxes towards what the coefficient allows, with noisy estimates."""
    plugins, draw = controller(target=4.0, horizon=300), random.Random(1)
    ctx, kl, seen = context(start), None, []
    true = 0.0
    for step in range(600):
        beta = ask(plugins, kl, step, ctx)
        true += 0.1 * (2.0 / (beta + 0.05) ** 0.5 - true)  # weaker penalties drift further
        kl = true + draw.gauss(0, 0.3)
        seen.append(true)
    held = seen[-150:]
    assert sum(held) / len(held) == pytest.approx(4.0, rel=0.05)
    fixed = 2.0 / (start + 0.05) ** 0.5
    assert abs(math.log(fixed / 4.0)) > 0.5  # with the coefficient left alone


@pytest.mark.parametrize("settings", [{"target": 0}, {"target": -1.0}, {"horizon": 0}], ids=str)
def test_settings_out_of_range_are_one_sentence(settings):
    key = next(iter(settings))
    with pytest.raises(UserError, match=rf"^test: plugins\.adaptive_kl\.{key}: ") as caught:
        controller(**settings)
    assert "\n" not in str(caught.value)


SAID = {
    "kl.coefficient=0": "kl.coefficient: is 0, which plugin 'adaptive_kl' cannot raise",
    "plugins=[{adaptive_kl: {horizon: 10}}]": "plugins.adaptive_kl.horizon: 10 is no more than a "
    "fifth of rl.rollout_size; one rollout could turn the coefficient's sign",
}


@pytest.mark.parametrize("setting", SAID)
def test_what_it_could_not_steer_is_refused_before_anything_is_computed(setting):
    settings = ["rl.rollout_size=64", "plugins=[adaptive_kl]", setting]
    with pytest.raises(UserError) as caught:
        check(load_config("toy", settings), "toy")
    assert str(caught.value) == f"toy: {SAID[setting]}"


def test_the_shortest_horizon_keeps_the_sign():
    plugins = check(load_config("toy", ["plugins=[{adaptive_kl: {horizon: 12.9}}]"]), "toy")
    ask(plugins, None, 0)
    assert 0 < ask(plugins, -100.0, 1) < 0.01 * 0.1  # 1 - .2 * 64 / 12.9 of it is left
