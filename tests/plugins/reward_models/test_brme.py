"""brme: heads with means and stds, trained in two stages (Reward-Robust RLHF, 5.1 and B)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import ostinato
from ostinato import RMOutputs, UserError, load_config
from ostinato.contract.batches import RewardBatch
from ostinato.engine.session import check
from ostinato.models.reward_model import Reader, load_reward
from ostinato.models.ruler import calibrated
from ostinato_plugins.reward_models.brme import BRME
from text_samples import scored


def loss_of(one, batch, logits, **at):
    """The preference loss of these outputs, (V, N, outputs)."""
    logits = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    score = logits[..., :1].mean(-1)
    outputs = RMOutputs(score, logits, torch.zeros(*logits.shape[:2], 16))
    answer = one.plugins.one("preference_loss", batch=batch, outputs=outputs, ctx=one.ctx.at(**at))
    return answer.detach().double().numpy()


def stage_two(kit, data, heads=3, **settings):
    """(kit, a batch of the second stage, its columns, random logits of two views)."""
    one = kit.make(("brme", {"heads": heads} | settings))
    draw = np.random.default_rng(0)
    head, belief = draw.integers(0, heads, len(data)), draw.uniform(size=len(data))
    data = data.add_column("brme_head", head.tolist())
    data = data.add_column("brme_belief", belief.tolist())
    batch = one.batch(data, one.initial())
    return one, batch, head, belief, draw.normal(size=(2, len(batch.prompt), 2 * heads))


def softplus(x):
    return np.logaddexp(0, x)


# --- The losses of the two stages -----------------------------------------------------------------


@pytest.mark.parametrize("responses", [2, 3])
def test_equation_8_with_the_noise_known(kit, comparisons, responses):
    """(r+ - alpha (p - 1/2))^2 + (r- - alpha ((1 - p) - 1/2))^2, in float64 and with loops."""
    one, batch, head, belief, logits = stage_two(kit, comparisons(5, responses=responses), alpha=2)
    noise = torch.randn(2, len(head), generator=one.ctx.generator("brme noise")).double().numpy()
    expected = np.zeros_like(noise)
    for v in range(2):
        for c, (plus, minus) in enumerate(batch.pairs.tolist()):
            i, a = head[c], noise[v, c]
            r = [logits[v, n, i] + a * softplus(logits[v, n, 3 + i]) for n in (plus, minus)]
            p = belief[c]
            expected[v, c] = (r[0] - 2 * (p - 0.5)) ** 2 + (r[1] - 2 * ((1 - p) - 0.5)) ** 2
    np.testing.assert_allclose(loss_of(one, batch, logits), expected, rtol=1e-4)


def test_noise_is_standard_normal_and_new_at_every_place(kit, comparisons):
    """E_a of equation 8 in closed form: squared errors of the means, plus both variances."""
    one, batch, head, belief, logits = stage_two(kit, comparisons(3))
    many = np.repeat(logits[:1], 20000, axis=0)
    plus, minus = (logits[0, rows] for rows in batch.pairs.T.numpy())
    at = np.arange(3), head
    errors = (plus[at] - (belief - 0.5)) ** 2 + (minus[at] + (belief - 0.5)) ** 2
    variances = softplus(plus[:, 3:][at]) ** 2 + softplus(minus[:, 3:][at]) ** 2
    np.testing.assert_allclose(loss_of(one, batch, many).mean(0), errors + variances, rtol=0.05)
    here = loss_of(one, batch, logits)
    assert np.array_equal(here, loss_of(one, batch, logits))  # asked again, the same noise
    assert not np.allclose(*loss_of(one, batch, np.repeat(logits[:1], 2, axis=0)))
    for place in ({"step": 1}, {"micro_batch": 1}, {"member": 1}):
        assert not np.allclose(here, loss_of(one, batch, logits, **place))


def test_stage_one_is_bradley_terry_with_soft_labels_and_margins(kit, comparisons):
    data = comparisons(6).remove_columns(["label", "margin"])
    label, margin = [1.0, 0.9, 0.4, 0.0, 1.0, 0.5], [0.0, 1.0, -2.0, 0.5, 0.0, 0.0]
    data = data.add_column("label", label).add_column("margin", margin)
    one = kit.make("brme")
    batch = one.batch(data, one.initial())
    r = np.random.default_rng(1).normal(size=(1, 12, 1))
    z = r[0, batch.pairs[:, 0], 0] - r[0, batch.pairs[:, 1], 0] - margin
    p = np.array(label)
    expected = p * softplus(-z) + (1 - p) * softplus(z)
    np.testing.assert_allclose(loss_of(one, batch, r)[0], expected, rtol=1e-4)


# --- Training -------------------------------------------------------------------------------------


def train(kit, data, *others, seed=0, at=None, updates=2, brme=None, **settings):
    """(kit, the trained model, what each of the two fits was given and made)."""
    one = kit.make(("brme", brme or {}), *others, **{"batch": 16, "updates": updates} | settings)
    fit, seen = one.trainer(**at or {}), []

    def spy(model, data, **arguments):
        seen.append({"model": model, "data": data, "made": fit(model, data, **arguments)})
        return seen[-1]["made"]

    start = one.initial(seed)
    model = one.plugins.one("train_rm", fit=spy, initial=start, data=data, ctx=fit.ctx)
    return one, model, seen


@pytest.fixture(scope="module")
def made(kit, comparisons):
    data = comparisons(32)
    return *train(kit, data), data


@pytest.mark.parametrize(("pairs", "heads"), [(20, 4), (23, 5), (5, 5)])
def test_every_pair_goes_to_one_head_in_equal_shares(kit, comparisons, pairs, heads):
    _, _, seen = train(kit, comparisons(pairs), brme={"heads": heads}, updates=1)
    assert "brme_head" not in seen[0]["data"].column_names
    given = seen[1]["data"]["brme_head"][:]
    assert len(given) == pairs
    counts = np.bincount(given, minlength=heads)
    assert set(counts) <= {pairs // heads, -(-pairs // heads)}
    assert given != sorted(given)


def test_the_partition_is_drawn_once_for_an_iteration_and_a_member(kit, comparisons, made):
    *_, seen, data = made
    heads = seen[1]["data"]["brme_head"][:]

    def again(**at):
        return train(kit, data, updates=1, at=at)[2][1]["data"]["brme_head"][:]

    assert again() == heads  # what a run that is resumed draws
    assert again(member=1) != heads


def test_the_second_stage_starts_from_the_first_and_learns_its_beliefs(made):
    """Body of stage 1 with a fresh head of 2H outputs, and p = s(r+ - r-) under stage 1."""
    _, model, seen, data = made
    first, start = seen[0]["made"], seen[1]["model"]
    body = first.model.base_model.state_dict()
    assert all(torch.equal(v, body[n]) for n, v in start.model.base_model.state_dict().items())
    assert start.model.score.weight.shape == model.model.score.weight.shape == (10, 16)
    r = [first.score(data["prompt"], data[s], [True] * 32).double() for s in ("chosen", "rejected")]
    p = 1 / (1 + np.exp(-(r[0] - r[1]).numpy()))
    np.testing.assert_allclose(seen[1]["data"]["brme_belief"], p, atol=1e-6)
    trained = model.model.base_model.state_dict()
    assert any(not torch.equal(v, body[n]) for n, v in trained.items())  # stage 2 trains it too
    assert seen[0]["model"].model.score.weight.shape == (1, 16)


def test_stage_two_has_a_length_and_a_learning_rate_of_its_own(kit, comparisons):
    one, _, _ = train(kit, comparisons(32), brme={"epochs": 3, "lr": 1e-4}, lr=3e-3)
    stages = [[r for r in one.rows if r["purpose"] == p] for p in ("reward model", "brme")]
    assert [len(rows) for rows in stages] == [2, 6]
    assert [rows[0]["lr"] for rows in stages] == [3e-3, 1e-4]


def test_what_is_logged_is_the_std_and_the_spread_on_training_responses(made):
    one, model, _, data = made
    with torch.no_grad():
        tokens = model.encode(data["prompt"], data["chosen"], [True] * 32)
        logits = model.raw(*tokens)[0].double().numpy()
    assert one.ctx.logged["brme/std"] == pytest.approx(softplus(logits[:, 5:]).mean(), rel=1e-4)
    spread = logits[:, :5].std(1, ddof=1).mean()
    assert one.ctx.logged["brme/spread"] == pytest.approx(spread, rel=1e-4)


def test_auxiliary_terms_and_displacements_act_in_both_stages(kit, comparisons):
    encode = kit.make().trainer().policy_tokenizer.encode
    words = ["ab", "cd", "aab"]
    meta = {"prompt": "x", "prompt_ids": encode("x")[:-1], "responses": words}
    meta |= {"response_ids": [encode(w) for w in words], "finished": [True] * 3}
    data = comparisons(16)
    rows = type(data).from_list([meta] * 4)
    others, settings = ("simcse", "metarm"), {"batch": 8, "accumulate": 2}
    one, _, _ = train(kit, data, *others, at={"meta": rows}, **settings)
    for purpose in ("reward model", "brme"):
        stage = [r for r in one.rows if r["purpose"] == purpose]
        assert len(stage) == 2
        for row in stage:
            assert set(row["terms"]) == {"brme", "simcse/contrastive"}
            assert row["actions"]["simcse.rm_loss"] > 0
            assert row["actions"]["metarm.meta_update"] > 0


def test_fewer_pairs_than_heads_is_one_sentence(kit, comparisons):
    with pytest.raises(UserError, match=r"plugins\.brme\.heads: 5 heads share 4 pairs; expected a"):
        train(kit, comparisons(4))


def test_check_refuses_more_heads_than_an_iteration_has_pairs():
    settings = ["plugins=[brme]", "prompts.preference=2", "preferences.responses=3"]
    check(load_config("toy", [*settings, "plugins.brme.heads=6"]), "toy")
    with pytest.raises(UserError, match=r"^toy: plugins\.brme\.heads: 7 heads share 6 pairs"):
        check(load_config("toy", [*settings, "plugins.brme.heads=7"]), "toy")


def test_a_trade_off_outside_its_bounds_is_told(kit):
    with pytest.raises(UserError, match=r"plugins\.brme\.trade_off.*1"):
        kit.make(("brme", {"trade_off": 1.5}))


# --- Reading --------------------------------------------------------------------------------------

MEANS = [[1.0, -2.0, 4.0], [0.5, 0.0, -1.0]]
STDS = [[0.3, 0.1, 0.9], [2.0, 1.0, 0.5]]  # the surest heads: the second, then the third


@pytest.mark.parametrize(
    ("integration", "trade_off", "expected"),
    [
        ("min", 0.0, [-2, -1]),
        ("max", 0.0, [4, 0.5]),
        ("mean", 0.0, [1, -1 / 6]),
        ("min", 0.4, [-2, -1]),
        ("max", 0.4, [0.4 * -2 + 0.6 * 4, 0.4 * -1 + 0.6 * 0.5]),
        ("mean", 0.4, [0.4 * -2 + 0.6, -0.4 - 0.1]),
        ("min", 1.0, [-2, -1]),
        ("max", 1.0, [-2, -1]),
    ],
)
def test_read_by_hand(integration, trade_off, expected):
    raw = torch.tensor(STDS).expm1().log()  # softplus of it is STDS
    logits = torch.cat([torch.tensor(MEANS), raw], dim=1)
    scores = BRME.read(logits, torch.zeros(3), {}, trade_off, integration)
    np.testing.assert_allclose(scores.score, expected, atol=1e-6)
    np.testing.assert_allclose(scores.parts[:, 0], MEANS)
    np.testing.assert_allclose(scores.part_std[:, 0], STDS, atol=1e-6)


def test_the_surest_head_is_nominal_even_where_it_is_not_the_least():
    raw = torch.tensor([0.1, 0.5]).expm1().log()
    logits = torch.tensor([[3.0, 1.0, *raw.tolist()]])
    assert BRME.read(logits, torch.zeros(2), {}, 0.4, "min").score.item() == pytest.approx(
        0.4 * 3 + 0.6 * 1
    )


# --- Checkpoints, and what stands on the heads ----------------------------------------------------


def texts(data):
    return data["prompt"][:6], data["chosen"][:6], [True] * 6


def test_a_checkpoint_keeps_every_head_and_gives_them_in_one_pass(kit, comparisons, tmp_path):
    data, brme = comparisons(16), {"trade_off": 0.3, "integration": "mean"}
    _, model, _ = train(kit, data, brme=brme, updates=1)
    calibrated(model, kit.make().ruler(data))
    model.save(tmp_path)
    again, calls = load_reward(tmp_path, model.readers), []
    again.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    ours, theirs = model.score_text(*texts(data)), again.score_text(*texts(data))
    assert len(calls) == 1
    assert (again.reader, again.settings) == ("brme", brme)
    for a, b in ((ours.score, theirs.score), (ours.parts, theirs.parts)):
        assert torch.equal(a, b)
    assert torch.equal(ours.part_std, theirs.part_std)
    assert ours.parts.shape == (6, 1, 5)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids, mask, _ = model.joined(*model.encode(*texts(data)))
    with torch.no_grad():
        logits = plain(input_ids=ids, attention_mask=mask.long()).logits
    assert plain.config.num_labels == logits.shape[1] == 10
    scale = model.calibration
    read = BRME.read(logits, torch.tensor(scale.zeros), {}, **brme)
    torch.testing.assert_close((read.score - scale.mean) / scale.unit, ours.score)


@pytest.fixture(scope="module")
def two(kit, comparisons):
    """Two iterations' reward models, calibrated."""
    found = []
    for seed in range(2):
        data = comparisons(16, seed=seed)
        model = train(kit, data, seed=seed, updates=1)[1]
        found.append(calibrated(model, kit.make().ruler(data)))
    return found, comparisons(16)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("take_last_rm", lambda s, h: s[:, 1]),
        ("ensemble", lambda s, h: s.mean(1)),
        ("worst_case", lambda s, h: s.min(1)),
        (("worst_case", {"over": "heads"}), lambda s, h: h.min(1)),
        (("uwo", {"coefficient": 2}), lambda s, h: s.mean(1) - 2 * s.var(1)),
        (
            ("uwo", {"coefficient": 2, "over": "heads"}),
            lambda s, h: h.mean(1) - 2 * h.var(1),
        ),
    ],
    ids=lambda x: str(x) if not callable(x) else "",
)
def test_every_combination_takes_the_traded_off_scores(kit, two, name, expected):
    """In float64 from the members' raw outputs."""
    models, data = two
    one = kit.make("brme", name)
    reward = one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)
    scores, heads = [], []
    for model in models:
        logits = model.raw(*model.encode(*texts(data)))[0].double().numpy()
        means, stds = logits[:, :5] - model.calibration.zeros, softplus(logits[:, 5:])
        nominal = means[np.arange(6), stds.argmin(1)]
        scale = model.calibration
        scores.append((0.5 * nominal + 0.5 * means.min(1) - scale.mean) / scale.unit)
        heads.append(means / scale.unit)
    found = scored(reward, *texts(data))
    wanted = expected(np.stack(scores, 1), np.concatenate(heads, 1))
    np.testing.assert_allclose(found.score, wanted, rtol=1e-4, atol=1e-4)
    members = len(reward.members)
    assert found.parts.shape == found.part_std.shape == (6, members, 5)


def test_weights_average_head_by_head(kit, two):
    models, data = two
    one = kit.make("brme", "weight_average")
    made = one.plugins.one("combine_rm", reward_models=models, datasets=[], ctx=one.ctx)
    mean = sum(m.model.score.weight.detach().double() for m in models) / 2
    np.testing.assert_allclose(made.model.score.weight.detach(), mean, atol=1e-7)
    logits = made.raw(*made.encode(*texts(data)))[0]
    expected = BRME.read(logits, torch.zeros(5), {}, 0.5, "min").score
    torch.testing.assert_close(made.score_text(*texts(data)).score, expected)


def test_sharpe_weighs_the_penalty_by_the_variance_of_the_heads_means(kit, two):
    models, data = two
    scores = models[0].score_text(*texts(data))
    one = kit.make("brme", "sharpe")
    zeros = torch.zeros(6, 2)
    batch = RewardBatch(
        None,  # type: ignore[arg-type]
        scores.score,
        scores.parts,
        scores.part_std,
        zeros,
        zeros,
        zeros.bool(),
        zeros[:, 0].bool(),
        zeros[:, 0],
        torch.ones(6),
        1,
        0,
    )
    made = one.plugins.call("sharpe", "reward_transform", rewards=batch, ctx=one.ctx)
    variance = scores.parts[:, 0].double().numpy().var(1, ddof=1)
    np.testing.assert_allclose(made.kl_scale, variance, rtol=1e-4)
    assert variance.min() > 0


# --- Effect ---------------------------------------------------------------------------------------

# Wide and with strong embeddings, as a pretrained body is: features of unlike texts are unlike.
WIDE = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "initializer_range": 0.1,
}


def unfinished(data):
    """Without the stop token, which would be the last token of all responses, seen or not."""
    rows = []
    for row in data:
        for side in ("chosen", "rejected"):
            row |= {f"{side}_ids": row[f"{side}_ids"][:-1], f"{side}_finished": False}
        rows.append(row)
    return type(data).from_list(rows)


@pytest.mark.parametrize("seed", range(2))
def test_effect_the_std_falls_where_data_is_plentiful(kit, comparisons, seed):
    """B.1: each step on a response lowers its std. Untrained, both regions have the same one."""
    data, fresh = unfinished(comparisons(64, seed=seed)), comparisons(48, seed=100 + seed)
    ratio = []
    for updates in (1, 45):
        _, model, _ = train(kit, data, seed=seed, updates=updates, batch=8, lr=5e-4, random=WIDE)

        def std(letters, model=model):
            words = [w.translate(str.maketrans("abcd", letters)) for w in fresh["chosen"]]
            return float(model.score_text(fresh["prompt"], words, [False] * 48).part_std.mean())

        ratio.append(np.mean([std("QRST"), std("{}~#")]) / std("abcd"))
    assert 0.7 < ratio[0] < 1.4
    assert ratio[1] > 2


# --- A run ----------------------------------------------------------------------------------------

SETTINGS = [
    "iterations=2",
    "plugins=[{brme: {heads: 3, trade_off: 0.4}}, sharpe]",
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
]


def test_a_run_with_sharpe_resumes_to_the_same_numbers(tmp_path):
    """Cut short in the second stage of the second iteration's reward model."""
    real = BRME.preference_loss

    def stop(self, batch, outputs, ctx):
        if ctx.iteration == 2 and "brme_head" in batch.extra:
            raise RuntimeError("cut short")
        return real(self, batch, outputs, ctx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BRME, "preference_loss", ostinato.hookimpl(stop))
        with pytest.raises(RuntimeError, match="cut short"):
            ostinato.run("toy", tmp_path / "cut", SETTINGS)
    cut = ostinato.run("toy", tmp_path / "cut", SETTINGS)
    whole = ostinato.run("toy", tmp_path / "whole", SETTINGS)
    evals = [[r for r in run.metrics if r["kind"] == "eval"] for run in (cut, whole)]
    assert [r["proxy_sft_std"] for r in evals[0]] == [r["proxy_sft_std"] for r in evals[1]]
    for row in (r for r in cut.metrics if r["kind"] == "policy"):
        assert 0 < row["kl_scale"] != 1
    trained = [r for r in cut.metrics if r["kind"] == "reward_model_trained"]
    assert all(r["brme/std"] > 0 and r["brme/spread"] > 0 for r in trained)
    again = load_reward(cut.directory / "iteration-2" / "reward_model", {"brme": Reader(BRME.read)})
    assert again.settings == {"trade_off": 0.4, "integration": "min"}
    assert json.loads(json.dumps(vars(again.calibration))) == trained[-1]["calibration"][0]
