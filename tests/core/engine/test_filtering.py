"""Rows that filters leave of a rollout, and how it is filled again."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from distributions import offered, plugin
from ostinato.config.errors import UserError

RAGGED = [[100, 101, 102], [104], [105, 106], [107], [100, 104], [103], [102, 103, 101], [99]]
SMALL = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1, "lr": 1e-2}


def share_of_b(samples):
    """Real tokens above 130, as a share of the response."""
    hits = (samples.response_ids > 130) & samples.mask
    return hits.float().sum(1) / samples.lengths


def spy(kit):
    """Every (micro-)batch that the algorithm's loss is given."""
    algorithm, seen = kit.plugins["ppo"].instance, []
    loss = algorithm.loss

    def watched(batch, *rest):
        seen.append(batch)
        return loss(batch, *rest)

    algorithm.loss = watched
    return seen


def train(kit, function_reward, **arguments):
    return kit.engine(RAGGED)(kit.policy(), function_reward(share_of_b), **arguments)


def filtering(monkeypatch, *answers, refill=0, names=("made",)):
    """Plugins that filter by these functions of the rollout and the context."""

    def hook(answer):
        return lambda self, rollout, ctx: answer(rollout, ctx)

    for name, answer in zip(names, answers, strict=True):
        made = plugin(filter_rollout=hook(answer))
        made.refill = refill
        offered(monkeypatch, made, name)


def state(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("minibatch", [8, 2])
def test_what_a_filter_leaves_is_trained_on(policies, function_reward, monkeypatch, minibatch):
    rl = {**SMALL, "rollouts": 2, "epochs": 2, "minibatch": minibatch}
    whole, kept = [], [torch.tensor([6, 1, 3]), torch.tensor([0, 7, 2, 4, 5])]

    def answer(rollout, ctx):
        whole.append(rollout)
        return kept[ctx.step]

    filtering(monkeypatch, answer)
    kit = policies.make(plugins=["ppo", "made"], rl=rl)
    seen = spy(kit)
    train(kit, function_reward)
    updates = {8: [1, 1], 2: [2, 3]}[minibatch]  # an epoch
    assert [row["updates"] for row in kit.rows] == [2 * updates[0], 2 * sum(updates)]
    assert [row["kept"] for row in kit.rows] == [3, 5]
    assert [row["attempts"] for row in kit.rows] == [1, 1]
    dropped = [row["actions"]["made.filter_rollout"] for row in kit.rows]
    assert dropped == pytest.approx([5 / 8, 3 / 8])
    batches = iter(seen)
    for rollout, rows, count, row in zip(whole, kept, updates, kit.rows, strict=True):
        assert len(rollout.mask) == 8
        assert float(rollout.advantages.abs().sum()) > 0
        assert row["score"] == pytest.approx(float(share_of_b(rollout.samples).mean()))
        texts = sorted(rollout.samples.responses[i] for i in rows.tolist())
        for _ in range(2):
            epoch = [text for _ in range(count) for text in next(batches).samples.responses]
            assert sorted(epoch) == texts
    assert not list(batches)


def test_each_filter_sees_what_is_left(policies, function_reward, monkeypatch):
    seen = []

    def first(rollout, ctx):
        seen.append((rollout.group.tolist(), rollout.advantages))
        return torch.tensor([7, 2, 5, 4])

    def second(rollout, ctx):
        seen.append((rollout.group.tolist(), rollout.advantages))
        return torch.tensor([2, 0, 1])

    filtering(monkeypatch, first, second, names=("first", "second"))
    kit = policies.make(plugins=["ppo", "first", "second"], rl=SMALL)
    batches = spy(kit)
    train(kit, function_reward)
    (batch,) = batches
    assert [groups for groups, _ in seen] == [[*range(8)], [7, 2, 5, 4]]
    width = seen[1][1].shape[1]
    assert torch.equal(seen[1][1], seen[0][1][[7, 2, 5, 4], :width])  # computed before any filter
    assert sorted(batch.group.tolist()) == [2, 5, 7]
    actions = kit.rows[0]["actions"]
    assert actions["first.filter_rollout"] == pytest.approx(0.5)
    assert actions["second.filter_rollout"] == pytest.approx(0.25)


def test_the_learning_rate_follows_the_share_of_rollouts_however_many_rows_are_left(
    policies, function_reward, monkeypatch
):
    rl = {**SMALL, "rollouts": 2, "minibatch": 2, "schedule": "linear", "lr": 1.0, "lr_final": 0.0}
    filtering(monkeypatch, lambda rollout, ctx: torch.arange((2, 8)[ctx.step]))
    kit = policies.make(plugins=["ppo", "made"], rl={**rl, "eps": 1e6})
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda o, *a: (rates.append(o.param_groups[0]["lr"]), step(o, *a))
    )
    train(kit, function_reward)
    assert rates == pytest.approx([1.0, 0.5, 0.375, 0.25, 0.125])


@pytest.mark.parametrize("refill", [0, 3])
def test_leaving_every_row_changes_nothing(policies, function_reward, monkeypatch, refill):
    found = []
    for plugins in (["ppo", "made"], ["ppo"]):
        filtering(monkeypatch, lambda rollout, ctx: torch.arange(8), refill=refill)
        kit = policies.make(plugins=plugins, rl={**SMALL, "epochs": 2, "minibatch": 4})
        found.append(state(train(kit, function_reward)))
        assert (kit.rows[0]["kept"], kit.rows[0]["attempts"]) == (8, 1)
    for name, p in found[0].items():
        assert torch.equal(p, found[1][name])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            torch.tensor([], dtype=torch.int64),
            "left no row of the rollout, expected at least one",
        ),
        (torch.tensor([0, 8]), "answered row 8, expected row numbers from 0 to 7, none twice"),
        (torch.tensor([-1]), "answered row -1, expected"),
        (torch.tensor([3, 3]), "answered a row twice, expected"),
        (
            torch.ones(8, dtype=torch.bool),
            r"answered a torch.bool \(8,\), expected an int64 tensor",
        ),
        (torch.tensor([[1]]), r"answered a torch.int64 \(1, 1\), expected an int64 tensor"),
        ([1, 2], "answered a list, expected an int64 tensor"),
        (None, "answered None"),
    ],
)
def test_a_wrong_answer_names_its_plugin(policies, function_reward, monkeypatch, answer, said):
    filtering(monkeypatch, lambda rollout, ctx: answer)
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    with pytest.raises(UserError, match=f"^plugin 'made': hook 'filter_rollout' {said}") as caught:
        train(kit, function_reward)
    assert "\n" not in str(caught.value)


# --- Refills --------------------------------------------------------------------------------------


def watched_rollouts(kit):
    """Every rollout of which advantages are computed, with its context."""
    algorithm, seen = kit.plugins["ppo"].instance, []
    compute = algorithm.advantages

    def advantages(rollout, ctx):
        seen.append((rollout, ctx))
        return compute(rollout, ctx)

    algorithm.advantages = advantages
    return seen


def texts_of(rollout):
    return list(zip(*(map(tuple, rows) for rows in rollout.samples.tokens), strict=True))


def test_a_rollout_is_drawn_anew_until_it_is_full_and_the_surplus_is_cut(
    policies, function_reward, monkeypatch
):
    left = [3, 0, 2, 7]  # 12 rows, of which 8 count
    filtering(monkeypatch, lambda rollout, ctx: torch.arange(left[ctx.attempt]), refill=5)
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    drawn, batches = watched_rollouts(kit), spy(kit)
    train(kit, function_reward)
    assert [ctx.attempt for _, ctx in drawn] == [0, 1, 2, 3]
    whole = [texts_of(rollout) for rollout, _ in drawn]
    assert len({tuple(texts) for texts in whole}) == 4  # other prompts and responses each time
    prompts = [tuple(prompt for prompt, _ in texts) for texts in whole]
    assert len(set(prompts)) == 4
    assert all(sorted(p) == sorted(map(tuple, RAGGED)) for p in prompts)  # each prompt once a draw
    (batch,) = batches
    assert sorted(texts_of(batch)) == sorted([*whole[0][:3], *whole[2][:2], *whole[3][:3]])
    assert sorted(batch.group.tolist()) == [0, 1, 2, 16, 17, 24, 25, 26]  # no two prompts share one
    (row,) = kit.rows
    assert (row["kept"], row["attempts"], row["updates"]) == (8, 4, 1)
    scores = torch.cat([share_of_b(rollout.samples) for rollout, _ in drawn])
    assert row["score"] == pytest.approx(float(scores.mean()))
    assert row["score_std"] == pytest.approx(float(scores.std()))
    assert row["actions"]["made.filter_rollout"] == pytest.approx((5 + 8 + 6 + 1) / 32)
    assert row["actions"]["fixed_kl.kl_coefficient"] == kit.config.kl.coefficient


def test_every_tensor_of_a_refilled_rollout_keeps_its_row(policies, function_reward, monkeypatch):
    """Of responses of other lengths, prompts of other widths: each row is what it was alone."""
    filtering(monkeypatch, lambda rollout, ctx: torch.arange(3), refill=2)
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    drawn, batches = watched_rollouts(kit), spy(kit)
    train(kit, function_reward)
    alone = {}
    for rollout, _ in drawn:
        for i, text in enumerate(texts_of(rollout)[:3]):
            alone[text] = (rollout, i)
    (batch,) = batches
    assert len(batch.mask) == 8
    for i, text in enumerate(texts_of(batch)):
        rollout, j = alone[text]
        real, there = batch.mask[i], rollout.mask[j]
        for name in ("logprobs", "ref_logprobs", "behaviour_logprobs", "rewards", "values"):
            assert torch.equal(getattr(batch, name)[i][real], getattr(rollout, name)[j][there])
        for name in ("score", "kl_coefficient", "group", "finished", "parts"):
            assert torch.equal(getattr(batch, name)[i], getattr(rollout, name)[j])


@pytest.mark.parametrize("refill", [1, 2])
def test_refills_are_bounded(policies, function_reward, monkeypatch, refill):
    filtering(monkeypatch, lambda rollout, ctx: torch.arange(2), refill=refill)
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    train(kit, function_reward)
    assert (kit.rows[0]["attempts"], kit.rows[0]["kept"]) == (1 + refill, 2 * (1 + refill))


def test_nothing_left_after_the_last_refill_names_who_left_nothing(
    policies, function_reward, monkeypatch
):
    none = torch.arange(0)
    filtering(
        monkeypatch,
        lambda rollout, ctx: torch.arange(4),
        lambda rollout, ctx: none,
        names=("some", "none"),
        refill=2,
    )
    kit = policies.make(plugins=["ppo", "some", "none"], rl=SMALL)
    with pytest.raises(UserError) as caught:
        train(kit, function_reward)
    assert str(caught.value) == (
        "plugin 'none': hook 'filter_rollout' left no row of 3 draws of the rollout, expected at "
        "least one"
    )


@pytest.mark.parametrize("whole_groups", [True, False])
def test_a_cut_tears_no_group_that_stays_whole(
    policies, function_reward, monkeypatch, whole_groups
):
    """Groups of four of which a filter leaves three: two and two thirds of them fill a rollout."""
    filtering(
        monkeypatch, lambda rollout, ctx: (torch.arange(8) % 4 > 0).nonzero().flatten(), refill=4
    )
    kit = policies.make(plugins=["ppo", "made"], rl=SMALL)
    algorithm = kit.plugins["ppo"].instance
    algorithm.responses_per_prompt, algorithm.whole_groups = 4, whole_groups
    batches = spy(kit)
    train(kit, function_reward)
    (batch,) = batches
    sizes = sorted(batch.group.unique(return_counts=True)[1].tolist())
    assert sizes == ([3, 3] if whole_groups else [2, 3, 3])
    assert kit.rows[0]["kept"] == sum(sizes)


# --- Whole groups ---------------------------------------------------------------------------------

SIZES = [
    (minibatch, accumulate, k)
    for minibatch in (4, 8, 16)
    for accumulate in (1, 2, 4)
    for k in (1, 2, 4)
    if minibatch % accumulate == 0 and minibatch // accumulate % k == 0
]


@pytest.mark.parametrize(("minibatch", "accumulate", "k"), SIZES)
def test_groups_are_never_torn(policies, function_reward, minibatch, accumulate, k):
    rl = {**SMALL, "rollout_size": 16, "minibatch": minibatch, "accumulate": accumulate}
    kit = policies.make(plugins=["ppo"], rl={**rl, "epochs": 3})
    algorithm = kit.plugins["ppo"].instance
    algorithm.responses_per_prompt, algorithm.whole_groups = k, True
    seen = spy(kit)
    train(kit, function_reward)
    micro = minibatch // accumulate
    assert [len(batch.group) for batch in seen] == [micro] * (3 * 16 // micro)
    epochs = [seen[i * 16 // micro : (i + 1) * 16 // micro] for i in range(3)]
    orders = []
    for epoch in epochs:
        rows = [batch.group.tolist() for batch in epoch]
        for groups in rows:
            assert all(groups.count(g) == k for g in groups)
        orders.append([g for groups in rows for g in groups])
        assert sorted(orders[-1]) == sorted(list(range(16 // k)) * k)
    if micro < 16:  # where one micro-batch is all, nothing is permuted
        assert all(a != b for a, b in pairwise(orders))


def test_groups_that_a_filter_thinned_stay_together(policies, function_reward, monkeypatch):
    left = [0, 4, 5, 6, 7, 8, 12, 13]  # of groups of four: 1, 4, 1 and 2
    filtering(monkeypatch, lambda rollout, ctx: torch.tensor(left))
    rl = {**SMALL, "rollout_size": 16, "minibatch": 8, "accumulate": 2, "epochs": 4}
    kit = policies.make(plugins=["ppo", "made"], rl=rl)
    algorithm = kit.plugins["ppo"].instance
    algorithm.responses_per_prompt, algorithm.whole_groups = 4, True
    seen = spy(kit)
    train(kit, function_reward)
    assert len(seen) == 4 * 4  # four groups, one a micro-batch
    assert kit.rows[0]["updates"] == 4 * 2
    for i in range(4):
        groups = [batch.group.tolist() for batch in seen[4 * i : 4 * i + 4]]
        assert sorted(groups) == [[0], [1, 1, 1, 1], [2], [3, 3]]


@pytest.mark.parametrize("mean_over", ["tokens", "responses"])
def test_accumulation_over_whole_groups_changes_nothing(policies, function_reward, mean_over):
    found = []
    for accumulate in (1, 4):
        rl = {**SMALL, "rollout_size": 16, "minibatch": 16, "accumulate": accumulate, "eps": 1e-2}
        kit = policies.make(plugins=[{"grpo": {"responses": 4, "mean": mean_over}}], rl=rl)
        kit.plugins["grpo"].instance.whole_groups = True
        found.append(state(train(kit, function_reward, reference=kit.policy(seed=1))))
    for name, p in found[0].items():
        torch.testing.assert_close(p, found[1][name], atol=1e-6, rtol=0)


def test_minibatches_that_would_tear_groups_are_refused(policies, function_reward):
    kit = policies.make(plugins=["ppo"], rl={**SMALL, "minibatch": 4, "accumulate": 2})
    algorithm = kit.plugins["ppo"].instance
    algorithm.responses_per_prompt, algorithm.whole_groups = 4, True
    with pytest.raises(UserError) as caught:
        train(kit, function_reward)
    assert str(caught.value) == (
        "rl.minibatch: 4 / rl.accumulate 2 is no multiple of the 4 responses a prompt of plugin "
        "'ppo', which it keeps together"
    )
