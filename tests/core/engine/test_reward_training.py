"""Training a reward model: losses, accumulation, schedules, displacements, views, calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from distributions import offered, plugin
from ostinato import NonFiniteError, UserError
from ostinato.engine import calibration
from ostinato.engine.calibration import held_out_accuracy, score
from ostinato.engine.reward_training import set_dropout


def with_plugin(kit, monkeypatch, needs=None, wanted=(), **hooks):
    """A kit whose active plugins include one with these hook functions ``(self, ...)``."""
    offered(monkeypatch, plugin(needs, **hooks))
    return kit.make("made", *wanted)


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# --- The whole loss -------------------------------------------------------------------------------


def softplus(z):
    return np.logaddexp(0, z)


@pytest.mark.parametrize(("responses", "accumulate"), [(2, 1), (3, 1), (3, 3)])
def test_first_logged_loss_is_the_weighted_mean_of_the_paper(
    kit, comparisons, responses, accumulate
):
    """sum_i w_i l_i / sum_i w_i with l = -[p log s(z) + (1-p) log s(-z)], z = r_c - r_r - m."""
    data = comparisons(8, responses=responses)
    draw, count = np.random.default_rng(0), len(data)
    columns = {"label": draw.uniform(0.5, 1, count), "margin": draw.normal(size=count)}
    columns["weight"] = draw.uniform(0.1, 3, count)
    table = data.to_dict() | {name: value.tolist() for name, value in columns.items()}
    data = Dataset.from_dict(table, features=data.features)
    one = kit.make(batch=count, updates=1, accumulate=accumulate)
    model = one.initial()
    fit = one.trainer()
    raw = [
        score(model, data, side, fit.policy_tokenizer, "cpu").double().numpy()
        for side in ("chosen", "rejected")
    ]
    z = raw[0] - raw[1] - columns["margin"]
    each = columns["label"] * softplus(-z) + (1 - columns["label"]) * softplus(z)
    expected = (columns["weight"] * each).sum() / columns["weight"].sum()
    fit(model, data)
    assert one.rows[0]["terms"] == {"bradley_terry": pytest.approx(expected, abs=1e-6)}
    assert one.rows[0]["loss"] == pytest.approx(expected, abs=1e-6)
    assert one.rows[0]["accuracy"] == np.mean(raw[0] > raw[1])


@pytest.mark.parametrize(
    ("responses", "prompts", "accumulate"),
    [(2, 8, 2), (2, 8, 3), (2, 8, 8), (3, 4, 3), (3, 2, 4)],  # 3 do not divide 8, nor 4; 4 have 2
)
def test_accumulation_changes_nothing(
    kit, comparisons, monkeypatch, responses, prompts, accumulate
):
    """Micro-batches give the parameters of one batch, weights and terms too, equal or not."""
    data = comparisons(prompts, responses=responses)
    weight = np.random.default_rng(0).uniform(0.1, 4, len(data)).tolist()
    data = Dataset.from_dict(data.to_dict() | {"weight": weight}, features=data.features)

    def rm_loss(self, batch, outputs):
        chosen, rejected = outputs.score[0][batch.pairs].T
        return {"centre": 0.1 * (chosen + rejected).square().mean()}

    # Adam divides by |g| at its first step, so that a gradient of 0 (a key bias) is pure noise
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, **_: torch.optim.SGD(p, lr=10 * lr))
    ends = []
    for parts in (1, accumulate):
        one = with_plugin(kit, monkeypatch, rm_loss=rm_loss)
        section = one.ctx.config.reward_model
        section.updates, section.epochs, section.accumulate = 1, None, parts
        section.batch = len(data)
        ends.append((parameters(one.trainer()(one.initial(), data)), one.rows[0]))
    (whole, row), (split, other) = ends
    assert distance(whole, split) < 1e-6
    assert distance(whole, parameters(one.initial())) > 1e-4
    assert other["terms"] == pytest.approx(row["terms"], abs=1e-6)
    assert set(row["terms"]) == {"bradley_terry", "made/centre"}
    assert other["loss"] == pytest.approx(sum(row["terms"].values()), abs=1e-6)
    assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-5)


def test_training_learns_and_the_held_out_accuracy_says_so(kit, comparisons):
    one = kit.make(batch=16, updates=80, lr=1e-2)
    fit = one.trainer()
    held = comparisons(64, seed=9)
    start = one.initial()
    before = held_out_accuracy(start, held, fit.policy_tokenizer)["accuracy"]
    trained = fit(start, comparisons(128))
    after = held_out_accuracy(trained, held, fit.policy_tokenizer)["accuracy"]
    assert after > 0.85 > 0.75 > before
    assert one.rows[-1]["loss"] < 0.5 * one.rows[0]["loss"]
    assert distance(parameters(start), parameters(one.initial())) == 0  # fit trains a copy


def test_held_out_accuracy_follows_gold_not_noisy_labels_and_counts_ties_half(kit, comparisons):
    one = kit.make()
    model, tokenizer = one.initial(), one.trainer().policy_tokenizer
    data = comparisons(40, noise=0.5)
    sides = ("chosen", "rejected")
    chosen, rejected = (score(model, data, side, tokenizer, "cpu") for side in sides)
    gold = torch.tensor(data["chosen_gold"][:]) - torch.tensor(data["rejected_gold"][:])
    expected = float(((chosen > rejected) == (gold > 0)).float().mean())
    assert held_out_accuracy(model, data, tokenizer)["accuracy"] == pytest.approx(expected)
    table = data.to_dict()
    table["chosen_gold"] = table["rejected_gold"] = [None] * 40
    unknown = Dataset.from_dict(table)
    by_label = float((chosen > rejected).float().mean())
    assert held_out_accuracy(model, unknown, tokenizer)["accuracy"] == pytest.approx(by_label)
    model.model.score.weight.data.zero_()
    assert held_out_accuracy(model, data, tokenizer)["accuracy"] == 0.5
    undecided = Dataset.from_dict(table | {"label": [0.5] * 40})
    assert held_out_accuracy(model, undecided, tokenizer)["accuracy"] is None


def test_accuracy_on_labels_that_err_stands_beside_that_on_gold(kit, comparisons, monkeypatch):
    """Five pairs, two labelled wrongly, one with a label that ties; a model that knows gold."""
    one = kit.make()
    model, tokenizer = one.initial(), one.trainer().policy_tokenizer
    table = comparisons(5).to_dict()
    for side, gold in (
        ("chosen", [2.0, 1.0, -1.0, 0.0, 3.0]),
        ("rejected", [1.0, 0.0, 4.0, 2.0, 0.0]),
    ):
        table[f"{side}_gold"] = gold
    data = Dataset.from_dict(table | {"label": [1.0, 0.8, 1.0, 0.6, 0.5]})

    def scores(_model, data, side, *_):
        return torch.tensor(data[f"{side}_gold"][:])

    monkeypatch.setattr(calibration, "score", scores)
    assert held_out_accuracy(model, data, tokenizer)["accuracy"] == 1.0
    assert held_out_accuracy(model, data, tokenizer)["accuracy_labels"] == 2 / 4
    monkeypatch.setattr(calibration, "score", lambda *a: -scores(*a))
    assert held_out_accuracy(model, data, tokenizer)["accuracy"] == 0.0
    tied = Dataset.from_dict(table | {"label": [0.5] * 5})
    assert held_out_accuracy(model, tied, tokenizer)["accuracy_labels"] is None


# --- How long, how fast, in which order -----------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"epochs": 2}, 6),  # 10 groups in batches of 4: 3 updates a pass, the last one short
        ({"epochs": 0.5}, 2),
        ({"updates": 5}, 5),
    ],
)
def test_epochs_and_updates(kit, comparisons, settings, updates):
    one = kit.make(batch=4, **settings)
    one.trainer()(one.initial(), comparisons(10))
    assert [row["step"] for row in one.rows] == list(range(1, updates + 1))
    assert {row["total"] for row in one.rows} == {updates}


def test_every_comparison_once_an_epoch(kit, comparisons):
    one = kit.make(batch=4, epochs=3)
    order = one.trainer()._order(10, 4, "reward model")
    for _ in range(3):
        assert sorted(group for _ in range(3) for group in next(order)) == list(range(10))


def test_warm_up_and_linear_decay(kit, comparisons):
    one = kit.make(updates=8, warmup=3, lr=0.01, lr_final=0.002)
    one.trainer()(one.initial(), comparisons(8))
    expected = [min(1, (step + 1) / 4) * (0.01 + (0.002 - 0.01) * step / 8) for step in range(8)]
    assert [row["lr"] for row in one.rows] == pytest.approx(expected)


def test_stop_loss_ends_at_the_running_mean_of_the_preference_loss(kit, comparisons, monkeypatch):
    """A large auxiliary term does not keep training going."""

    def rm_loss(self, outputs):
        return {"large": 100 + 0 * outputs.score.sum()}

    one = with_plugin(kit, monkeypatch, rm_loss=rm_loss)
    section = one.ctx.config.reward_model
    section.updates, section.epochs, section.lr = 200, None, 1e-2
    one.trainer()(one.initial(), comparisons(64), stop_loss=0.5)
    loss = [row["terms"]["bradley_terry"] for row in one.rows]
    assert len(loss) < 200
    means = [np.mean(loss[max(0, i - 9) : i + 1]) for i in range(len(loss))]
    assert means[-1] < 0.5 <= min(means[:-1])


def test_order_differs_by_member_and_purpose_and_is_the_same_at_every_iteration(kit):
    one = kit.make(batch=4)

    def first(purpose="reward model", **at):
        return next(one.trainer(**at)._order(32, 32, purpose))

    from ostinato.config.draws import Draws

    assert first() == first(iteration=3, draws=Draws(0, 3))
    assert first() != first(member=1)
    assert first() != first("strength 1")
    assert first() != first(draws=Draws(1, 1))


def test_head_only_training_leaves_the_body_alone(kit, comparisons):
    one = kit.make(updates=3)
    start = one.initial()
    trained = one.trainer()(start, comparisons(8), train="head")
    before, after = parameters(start), parameters(trained)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model.score.weight"}
    assert all(p.requires_grad for p in trained.parameters())


def test_batch_counts_comparisons(kit, comparisons):
    """A batch of 8 comparisons holds two groups of three responses."""
    one = kit.make(batch=8, epochs=1)
    one.trainer()(one.initial(), comparisons(6, responses=3))
    assert len(one.rows) == 3


# --- Displaced gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_gradient_is_taken_at_the_displaced_point_and_applied_at_theta(
    kit, comparisons, monkeypatch, accumulate
):
    """SAM in float64 by hand: with a frozen body the loss is a logistic regression of the head.

    grad L(w) = -mean s(-w.d) d over the differences d of features; SAM (Foret et al. 2021) takes it
    at w + rho grad L / |grad L|.
    """
    rho, calls = 0.5, []

    def meta_update(self, parameters, loss):
        calls.append(1)
        gradients = torch.autograd.grad(loss(), list(parameters.values()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        return {n: rho * g / norm for n, g in zip(parameters, gradients, strict=True)}

    one = with_plugin(kit, monkeypatch, meta_update=meta_update)
    section = one.ctx.config.reward_model
    section.updates, section.epochs, section.accumulate = 1, None, accumulate
    section.max_grad_norm = 1e9
    data, model = comparisons(8), one.initial()
    seen = {}
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_: seen.update(grads(self)))
    trained = one.trainer()(model, data, train="head")
    batch = one.batch(data, model)
    with torch.no_grad():
        hidden = model(batch.input_ids, batch.mask).hidden[0].double().numpy()
    d = hidden[batch.pairs[:, 0].numpy()] - hidden[batch.pairs[:, 1].numpy()]
    w = model.model.score.weight.detach().double().numpy()[0]

    def gradient(at):
        return -(d / (1 + np.exp(d @ at))[:, None]).mean(0)

    plain = gradient(w)
    expected = gradient(w + rho * plain / np.linalg.norm(plain))
    np.testing.assert_allclose(seen["gradient"], expected, atol=1e-6)
    assert np.abs(expected - plain).max() > 1e-3
    assert len(calls) == 1
    assert distance(parameters(trained), parameters(model)) == 0  # theta itself, bit for bit
    assert one.rows[0]["actions"]["made.meta_update"] == pytest.approx(rho, rel=1e-5)


def grads(optimiser):
    (parameter,) = optimiser.param_groups[0]["params"]
    return {"gradient": parameter.grad.double().numpy()[0].copy()}


def test_displacement_of_an_unknown_parameter_is_refused(kit, comparisons, monkeypatch):
    one = with_plugin(kit, monkeypatch, meta_update=lambda self: {"nobody": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'made': hook 'meta_update' names no parameter 'nobody'"):
        one.trainer()(one.initial(), comparisons(8))


def test_non_finite_displacement_names_the_plugin(kit, comparisons, monkeypatch):
    def meta_update(self, parameters):
        return {n: torch.full_like(p, math.inf) for n, p in parameters.items()}

    one = with_plugin(kit, monkeypatch, meta_update=meta_update)
    with pytest.raises(NonFiniteError, match=r"plugin 'made': .* iteration 1, step 1"):
        one.trainer()(one.initial(), comparisons(8))


@pytest.mark.parametrize("vocabulary", ["same", "other"])
def test_meta_scores_are_those_of_each_prompts_own_responses(
    kit, comparisons, words, monkeypatch, vocabulary
):
    """By tokens where the policy has the reward model's, by text where it has not: alike."""
    seen = []

    def meta_update(self, score, meta_batch):
        seen.append((score().detach(), meta_batch))
        return {}

    one = with_plugin(kit, monkeypatch, meta_update=meta_update)
    fit = one.trainer()
    encode, end = fit.policy_tokenizer.encode, [fit.policy_tokenizer.eos_token_id]
    rows = []
    for prompt in ("x", "yzz", "zy"):
        texts, finished = [f"{prompt}a", "bb", "abcd"], [prompt != "x", prompt == "x", True]
        tokens = [encode(t)[:-1] + (end if f else []) for t, f in zip(texts, finished, strict=True)]
        row = {"prompt": prompt, "prompt_ids": encode(prompt)[:-1], "responses": texts}
        rows.append(row | {"response_ids": tokens, "finished": finished})
    fit.meta = Dataset.from_list(rows)
    if vocabulary == "other":
        fit.policy_tokenizer = words()
    model = one.initial()
    fit(model, comparisons(8))
    found, batch = seen[0]
    assert sorted(batch["prompt"]) == ["x", "yzz", "zy"]
    assert len(found) == 3
    for scores, prompt, texts, finished in zip(
        found, batch["prompt"], batch["responses"], batch["finished"], strict=True
    ):
        torch.testing.assert_close(
            scores, model.score([prompt] * 3, texts, finished), atol=1e-5, rtol=0
        )
    assert float(found.std()) > 0.05


def test_meta_score_without_the_need_is_refused(kit, comparisons, monkeypatch):
    one = with_plugin(kit, monkeypatch, meta_update=lambda self, score: {"x": score()})
    with pytest.raises(UserError, match="meta responses that no plugin needs"):
        one.trainer()(one.initial(), comparisons(8))


# --- Non-finite numbers ---------------------------------------------------------------------------


def test_a_non_finite_term_stops_the_run_and_names_its_plugin(kit, comparisons, monkeypatch):
    def rm_loss(self, outputs, ctx):
        return {"bad": outputs.score.sum() * (math.nan if ctx.step == 2 else 0.0)}

    one = with_plugin(kit, monkeypatch, rm_loss=rm_loss)
    with pytest.raises(NonFiniteError, match=r"made/bad is not finite at iteration 1, step 3"):
        one.trainer()(one.initial(), comparisons(32))
    assert len(one.rows) == 2


def test_a_non_finite_gradient_stops_the_run(kit, comparisons, monkeypatch):
    def rm_loss(self, outputs):
        return {"root": (0 * outputs.score).sum().abs().sqrt()}  # value 0, gradient inf * 0

    one = with_plugin(kit, monkeypatch, rm_loss=rm_loss)
    with pytest.raises(NonFiniteError, match=r"gradient is not finite at iteration 1, step 1"):
        one.trainer()(one.initial(), comparisons(8))


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"rm_loss": lambda self, outputs: {"t": outputs.score}}, "'t' of shape"),
        ({"preference_loss": lambda self, outputs: outputs.score.sum()}, r"answered shape \(\)"),
        ({"preference_loss": lambda self, outputs: outputs.score}, "for 8 comparisons"),
    ],
)
def test_answers_of_a_wrong_shape_are_one_sentence(kit, comparisons, monkeypatch, hooks, message):
    one = with_plugin(kit, monkeypatch, **hooks)
    with pytest.raises(UserError, match=message):
        one.trainer()(one.initial(), comparisons(8))


# --- Views and dropout ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_dropout_is_on_only_for_who_needs_it_and_off_again(kit, comparisons, monkeypatch, family):
    """Two views differ in training; without the need the same body is trained without dropout."""
    seen = []

    def rm_loss(self, outputs):
        seen.append([h.detach().clone() for h in outputs.hidden])
        return {}

    for needs in ({"views": 2, "dropout": 0.3}, {}):
        seen.clear()
        one = with_plugin(kit, monkeypatch, needs=needs, rm_loss=rm_loss)
        one.ctx = kit.make(family=family, updates=1).ctx
        start, data = one.initial(), comparisons(8)
        trained = one.trainer()(start, data)
        batch = one.batch(data, start, order_of(one, 8))
        with torch.no_grad():
            clean = start(batch.input_ids, batch.mask).hidden[0]
        if needs:
            first, second = seen[0]
            assert float((first - second).abs().mean()) > 1e-3
            assert float((first - clean).abs().mean()) > 1e-3
        else:
            assert len(seen[0]) == 1
            assert torch.equal(seen[0][0], clean)
        assert not trained.training
        with torch.no_grad():
            twice = [trained(batch.input_ids, batch.mask).score for _ in range(2)]
        assert torch.equal(*twice)


def order_of(one, groups):
    return next(one.trainer()._order(groups, groups, "reward model"))


def test_equal_views_are_refused(kit, comparisons, monkeypatch):
    """Views without dropout are the same view twice: a contrastive term would be a no-op."""
    one = with_plugin(kit, monkeypatch, needs={"views": 2}, rm_loss=lambda self: {})
    with pytest.raises(UserError, match="two dropout views are equal"):
        one.trainer()(one.initial(), comparisons(8))


def test_plain_fit_has_neither_views_nor_terms(kit, comparisons):
    one = kit.make("simcse", updates=2)
    one.trainer(plain=True)(one.initial(), comparisons(8))
    assert [set(row["terms"]) for row in one.rows] == [{"bradley_terry"}] * 2


def test_training_with_dropout_and_displacement_is_repeatable(kit, comparisons):
    """Whatever the global generator was left at: a resumed run must train the same model."""
    data = comparisons(16)
    meta = Dataset.from_dict(
        {
            "prompt": ["x"],
            "prompt_ids": [[123]],
            "responses": [["aa", "b"]],
            "response_ids": [[[100, 100, 1], [101, 1]]],
            "finished": [[True, True]],
        }
    )
    ends = []
    for seed in (1, 2):
        one = kit.make("simcse", "metarm", updates=3)
        torch.manual_seed(seed)
        ends.append(parameters(one.trainer(meta)(one.initial(), data)))
        assert torch.initial_seed() == seed
    assert distance(*ends) == 0


def test_set_dropout_reaches_every_layer(kit):
    """Every module that drops anything, in each family, by its own attribute."""
    for family in ("gpt2", "gpt_neox", "llama"):
        model = kit.make(family=family).initial().model
        set_dropout(model, 0.25)
        found = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        found += [
            m.attention_dropout
            for m in model.modules()
            if isinstance(getattr(m, "attention_dropout", None), float)
        ]
        assert found
        assert set(found) == {0.25}
