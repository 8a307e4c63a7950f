"""What a stage expects of a hook that it asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ostinato import hookimpl, run
from ostinato.config.errors import UserError
from ostinato.contract import activation
from ostinato.contract.batches import PolicyHandle, PolicyHistory
from ostinato.engine import stages


@pytest.fixture
def session(policies, monkeypatch):
    """Makes what a stage needs of a session whose one plugin, ``made``, has these hooks."""

    def make(**hooks):
        made = type("Made", (), {name: hookimpl(function) for name, function in hooks.items()})
        entry = SimpleNamespace(load=lambda: made, value="nowhere:Made")
        found, real = activation.Found("made", entry, "a-test", "1"), activation.find
        monkeypatch.setattr(
            activation, "find", lambda name, *rest: found if name == "made" else real(name, *rest)
        )
        kit = policies.make(plugins=["made"])
        sft = kit.policy()
        return SimpleNamespace(
            config=kit.config,
            plugins=kit.plugins,
            ctx=kit.ctx,
            sft_policy=sft,
            sft=PolicyHandle("sft", lambda: sft),
            backend=SimpleNamespace(device=torch.device("cpu")),
            name=lambda stage: f"iteration-1/{stage}",
            log_actions=lambda stage: None,
        )

    return make


def initial(s):
    return stages.initial_policy(s, PolicyHistory(s.sft))


def test_a_handle_or_a_new_policy_may_be_where_the_policy_starts(session):
    s = session(init_policy=lambda self, history: history.sft)
    assert initial(s) is s.sft

    def moved(self, history):
        policy = history.sft.load().copy()
        with torch.no_grad():
            next(policy.lm.parameters()).add_(1.0)
        return policy

    s = session(init_policy=moved)
    assert initial(s).name == "iteration-1/policy_init"
    count = next(s.sft_policy.lm.parameters()).numel()
    assert s.plugins.taken_actions()["made.init_policy"] == pytest.approx(count**0.5)


@pytest.mark.parametrize("change", ["add", "negate", "one"])
def test_an_init_policy_that_changes_the_sft_policy_is_refused(session, change):
    def init_policy(self, history):
        *_, last = history.sft.load().lm.parameters()
        with torch.no_grad():
            if change == "add":
                last.add_(1e-3)
            elif change == "negate":  # the norm stays
                last.neg_()
            else:
                last.view(-1)[0] += 1e-4
        return history.sft

    s = session(init_policy=init_policy)
    with pytest.raises(UserError) as caught:
        initial(s)
    assert str(caught.value) == (
        "plugin 'made': hook 'init_policy' changed the weights of the SFT policy, which it is "
        "given to read; change a copy, as `policy.copy()` makes it"
    )


def test_an_init_policy_of_another_kind_is_refused(session):
    s = session(init_policy=lambda self, history: "sft")
    with pytest.raises(UserError) as caught:
        initial(s)
    assert str(caught.value) == (
        "plugin 'made': hook 'init_policy' answered a str, expected a policy or one of the "
        "history's handles"
    )


def test_a_trained_model_of_another_kind_is_refused(session, monkeypatch):
    s = session(train_rm=lambda self: "model", train_policy=lambda self: {})
    s.log = s.tokenizer = s.draws = s.directory = s.ruler = None
    s.tell = lambda *args, **data: None
    s.initial_reward_model = SimpleNamespace(with_head=lambda draws, purpose: None)
    s.prompts = SimpleNamespace(evaluation=None, rl=None)
    with pytest.raises(UserError) as caught:
        stages.train_reward_model(s, None, SimpleNamespace(meta=None))
    assert str(caught.value) == (
        "plugin 'made': hook 'train_rm' answered a str, expected a RewardModel"
    )
    monkeypatch.setattr(stages, "Evaluator", lambda *args: None)  # it scores before it is asked
    with pytest.raises(UserError) as caught:
        stages.train_policy(s, s.sft, None, None, None)
    assert str(caught.value) == (
        "plugin 'made': hook 'train_policy' answered a dict, expected a Policy"
    )


def test_a_reward_model_that_cannot_be_loaded_ends_the_run_before_the_sft(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"reward_model\.\w+: '.*empty' cannot be loaded"):
        run("toy", tmp_path / "run", [f"reward_model.model={tmp_path / 'empty'}"])
    assert not (tmp_path / "run" / "sft").exists()
