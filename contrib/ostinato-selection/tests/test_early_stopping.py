"""Bounds on KL and disagreement against numbers by hand, and in runs that end early."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_selection.early_stopping import EarlyStopping
from ostinato_selection.votes import spread

import ostinato

HOT = {"rollouts": 6, "lr": 0.05, "epochs": 2}  # leaves its reference within some rollouts


def looking(context, ask, now, before):
    """A context in which the policy's responses get the votes ``now``, the SFT policy's others."""
    table = {f"sft {i}": v for i, v in enumerate(before)} | {
        f"pi {i}": v for i, v in enumerate(now)
    }

    def sample(policy, samples, purpose):
        return ask.samples([text.replace("sft", "pi") for text in samples.responses])

    ruler = SimpleNamespace(rl=ask.samples([f"sft {i}" for i in range(len(before))]))
    return context(ruler=ruler, reward=ask.votes(table), sample=sample)


def test_the_spread_is_the_mean_standard_deviation_of_a_response():
    found = np.random.default_rng(0).normal(size=(7, 4))
    assert spread(torch.tensor(found)) == pytest.approx(np.std(found, axis=1, ddof=1).mean())


@pytest.mark.parametrize(("bound", "answer"), [(2.9, ostinato.STOP), (3.1, None)])
def test_it_stops_where_votes_differ_more_than_on_sft_responses(made, context, ask, bound, answer):
    ctx = looking(context, ask, now=[[0.0, 6.0], [2.0, 2.0]], before=[[0.0, 1.0], [3.0, 4.0]])
    plugin = made(EarlyStopping, disagreement=bound, every=2)
    assert plugin.after_rollout({"step": 2, "kl": 0.0}, None, ctx) == answer
    # sqrt(36 / 2) and 0 on average, against sqrt(1 / 2) twice
    assert ctx.logged["early_stopping/disagreement"] == pytest.approx(3.0)
    assert plugin.after_rollout({"step": 3, "kl": 0.0}, None, None) is None  # not its turn


def test_it_looks_at_as_many_prompts_as_it_is_told(made, context, ask):
    ctx = looking(context, ask, now=[[0.0, 4.0]] * 2 + [[0.0, 99.0]], before=[[0.0, 1.0]] * 3)
    made(EarlyStopping, disagreement=9, every=1, prompts=2).after_rollout(
        {"step": 1, "kl": 0.0}, None, ctx
    )
    assert ctx.logged["early_stopping/disagreement"] == pytest.approx(4.0)


def test_one_member_has_nothing_to_disagree_on(made, context, ask):
    ctx = looking(context, ask, now=[[0.0]], before=[[0.0]])
    with pytest.raises(ostinato.UserError, match="the reward has one member, expected 2 or more"):
        made(EarlyStopping, disagreement=1, every=1).after_rollout(
            {"step": 1, "kl": 0.0}, None, ctx
        )


def test_a_run_beside_the_defaults_ends_where_kl_passes_the_bound(run):
    listed = ["concat", "worst_case", "from_sft"]
    free = run(listed, "free", rl=HOT)
    kl = [row["kl"] for row in free.metrics if row["kind"] == "policy"]
    assert len(kl) == 6
    over = next(step for step, value in enumerate(kl, 1) if value > 1.0)
    assert over < 6  # else the test says nothing
    held = run([*listed, {"early_stopping": {"kl": 1.0}}], "held", rl=HOT)
    steps = [row["step"] for row in held.metrics if row["kind"] == "policy"]
    assert steps == list(range(1, over + 1))
    assert [row["kl"] for row in held.metrics if row["kind"] == "policy"] == kl[:over]
    stopped = [row for row in held.metrics if row["kind"] == "stopped"]
    assert [(row["step"], row["plugin"]) for row in stopped] == [(over, "early_stopping")]
    ends = [[r for r in made.metrics if r["kind"] == "eval"][-1] for made in (held, free)]
    assert ends[0]["step"] == over
    assert ends[0]["kl"] < ends[1]["kl"]


def test_a_run_ends_where_its_members_disagree(run):
    bound = {"early_stopping": {"disagreement": 0.01, "every": 2, "prompts": 4}}
    rows = run(["worst_case", bound]).metrics
    assert [row["step"] for row in rows if row["kind"] == "stopped"] == [2]
