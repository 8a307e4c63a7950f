"""What is kept against votes by hand; in a run the kept policy is the answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_selection import best_checkpoint
from ostinato_selection.best_checkpoint import BestCheckpoint
from ostinato_selection.votes import probe

import ostinato


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_values_are_the_lowest_vote_or_the_mean_less_deviations(made, penalty):
    votes = np.random.default_rng(1).normal(size=(6, 3))
    worst = made(BestCheckpoint).value_of(torch.tensor(votes))
    assert worst.tolist() == votes.min(axis=1).tolist()
    penalised = made(BestCheckpoint, value="penalised", penalty=penalty).value_of(
        torch.tensor(votes)
    )
    expected = votes.mean(axis=1) - penalty * votes.std(axis=1, ddof=1)
    assert penalised.tolist() == pytest.approx(expected.tolist())


def test_one_vote_is_the_value(made):
    plugin = made(BestCheckpoint, value="penalised")
    assert plugin.value_of(torch.tensor([[0.5], [2.0]])).tolist() == [0.5, 2.0]


def test_it_keeps_what_is_better_than_all_before(made, context, monkeypatch):
    """The mean reward rises all the way; the lowest vote falls at the end."""
    votes = iter([[0.0, 0.0], [1.0, 2.0], [0.5, 6.0], [0.0, 9.0], [1.5, 9.0]])
    look = lambda *_: (torch.tensor([next(votes)]), None)  # noqa: E731
    monkeypatch.setattr(best_checkpoint, "probe", look)
    plugin, answers = made(BestCheckpoint, every=1), []
    for step in range(1, 6):
        plugin.load_state_dict(plugin.state_dict())  # as a run that is killed
        row = {"step": step, "name": "policy"}
        answers.append(plugin.after_rollout(row, None, context()))
    assert answers == [ostinato.KEEP, ostinato.KEEP, None, None, ostinato.KEEP]


def test_another_iteration_or_run_begins_anew(made, context, monkeypatch):
    monkeypatch.setattr(best_checkpoint, "probe", lambda *_: (torch.zeros(1, 2), None))
    plugin = made(BestCheckpoint, every=1)
    answers = [
        plugin.after_rollout({"step": 1, "name": name}, None, context(iteration=k))
        for k, name in [(1, "policy"), (1, "policy"), (1, "other"), (2, "policy")]
    ]
    assert answers == [ostinato.KEEP, None, ostinato.KEEP, ostinato.KEEP]


def test_the_stage_answers_the_kept_policy(run):
    """With a rate that breaks the policy, the best is not the last."""
    rl = {"rollouts": 5, "lr": 0.05, "epochs": 2}
    keep = {"best_checkpoint": {"every": 1, "prompts": 8}}
    made = run(["worst_case", keep, {"early_stopping": {"kl": 100}}], rl=rl)
    kept = [row["step"] for row in made.metrics if row["kind"] == "kept"]
    evals = [row["step"] for row in made.metrics if row["kind"] == "eval"]
    assert kept
    assert evals[-1] == kept[-1]


@pytest.mark.parametrize(("rl", "used"), [(["rl 0", "rl 1"], "rl"), ([], "evaluation")])
def test_looks_use_no_evaluation_prompt_while_there_are_others(context, ask, rl, used):
    known = {"rl 0": [1.0], "rl 1": [2.0], "evaluation 0": [3.0]}
    ruler = SimpleNamespace(rl=ask.samples(rl), evaluation=ask.samples(["evaluation 0"]))
    ctx = context(ruler=ruler, reward=ask.votes(known))
    ctx.sample = lambda policy, samples, purpose: samples
    now, before = probe(None, 2, ctx, "here")
    expected = [votes for name, votes in known.items() if name.startswith(used)]
    assert now.tolist() == before.tolist() == expected
