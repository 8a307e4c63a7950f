"""WARM: the mean of the weights that a run saved, the start that members share, their rates."""

from types import SimpleNamespace

import numpy as np
import pytest
from ostinato_uncertainty.warm import WARM
from safetensors.numpy import load_file
from uncertainty_kit import configured, toy

import ostinato


def test_the_reward_has_the_mean_of_its_members_weights(tmp_path):
    run = toy(tmp_path / "run", "warm", "reward_model.members=3", "rl.rollouts=1")
    files = sorted((tmp_path / "run").rglob("member-*/model.safetensors"))
    members = [load_file(file) for file in files]
    (combined,) = (tmp_path / "run").rglob("*combined/model.safetensors")
    merged = load_file(combined)
    assert len(members) == 3
    apart = 0.0
    for name, weight in merged.items():
        each = np.stack([member[name].astype(np.float64) for member in members])
        assert weight == pytest.approx(each.mean(0), abs=1e-6)
        apart = max(apart, each.std(0).max())
    assert apart > 1e-4  # orders and rates made them differ
    trained = next(row for row in run.metrics if row["kind"] == "reward_model_trained")
    assert len(trained["calibration"]) == 3
    rows = [r for r in run.metrics if r.get("purpose") == "reward model" and r["step"] == 1]
    rates = [row["lr"] for row in rows]
    assert [rate / rates[0] for rate in rates] == pytest.approx([1.0, 0.5, 1.5])


class Start:
    """A model that knows its history."""

    def __init__(self, history=()):
        self.history = history

    def with_head(self, draws, purpose):
        return Start((*self.history, purpose))


def trained(plugin, members):
    """The histories of members, as the core asks for them."""

    def fit(model, data, lr=None, epochs=None, train="all", purpose="reward model"):
        return Start((*model.history, (purpose, train, epochs, lr)))

    section = SimpleNamespace(reward_model=SimpleNamespace(lr=0.1))
    found = []
    for member in range(members):
        ctx = SimpleNamespace(member=member, draws=None, config=section)
        found.append(plugin.train_rm(fit, Start(), None, ctx).history)
    return found


def test_members_share_a_probed_head_and_have_rates_of_their_own():
    found = trained(configured(WARM, rates=[1.0, 0.5]), 3)
    head = ("warm head", ("warm probe", "head", 1.0, None))
    rates = [0.1, 0.05, 0.1]
    assert found == [(*head, ("reward model", "all", None, rate)) for rate in rates]
    again = trained(configured(WARM, probe=0.0), 1)
    assert again == [("warm head", ("reward model", "all", None, 0.1))]


def test_a_new_iteration_probes_anew():
    plugin = configured(WARM)
    first = trained(plugin, 2)
    start = plugin._start
    assert trained(plugin, 2) == first
    assert plugin._start is not start


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ostinato.UserError, match=r"reward_model\.members: is 1, expected 2"):
        toy(tmp_path / "run", "warm")
    two = "reward_model.members=2"
    with pytest.raises(ostinato.UserError, match=r"plugins\.warm\.rates: expected numbers above 0"):
        toy(tmp_path / "run", "{warm: {rates: [1, 0]}}", two)
    with pytest.raises(ostinato.UserError, match=r"'sharpe' needs the variance of members"):
        toy(tmp_path / "run", "warm, sharpe", two)
    with pytest.raises(ostinato.UserError, match=r"hook 'combine_rm' has one owner"):
        toy(tmp_path / "run", "warm, worst_case", two)
