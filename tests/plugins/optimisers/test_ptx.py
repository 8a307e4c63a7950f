"""Pretraining gradients in the policy's loss (Book 8.2; InstructGPT)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ostinato
from ostinato import UserError
from ostinato.config.reading import load_config
from ostinato.contract.batches import PolicyOutputs
from ostinato.contract.plugins import activate

SMALL = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1, "lr": 1e-2}
PROMPTS = [[2], [3, 4], [5, 2, 2], [2, 4], [3], [4, 4], [5], [5, 5, 3]]
TEXTS = ["a b c d a b c d", "a b", "d", "c d a"]


def corpus(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(name="data")
def _data(tmp_path):
    return corpus(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])


def make(policies, data, rl=(), generation=(), **settings):
    return policies.make(
        plugins=[{"ptx": {"data": data, **settings}}],
        rl={**SMALL, **dict(rl)},
        generation={"max_new_tokens": 3, **dict(generation)},
    )


def term(kit, policy, **at):
    outputs = PolicyOutputs(None, None, policy, None)
    answer = kit.plugins.call(
        "ptx", "policy_loss", batch=None, outputs=outputs, ctx=kit.ctx.at(**at)
    )
    return answer["nll"]


def mean_nll(policy, ids):
    """Each token given those before it, one text, in float64: -log p by hand."""
    with torch.no_grad():
        logits = policy.lm(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    top = logits.max(1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    return -np.array([logp[i, token] for i, token in enumerate(ids[1:])])


def test_the_term_is_transformers_own_loss_and_a_float64_one(policies, data):
    kit = make(policies, data, gamma=0.7, batch=64)
    policy = kit.word_policy()
    words = {"a": 2, "b": 3, "c": 4, "d": 5}
    rows = [[*(words[w] for w in text.split()), 0] for text in TEXTS]  # the stop token last
    drawn = torch.randint(len(rows), (64,), generator=kit.ctx.generator("ptx")).tolist()
    assert set(drawn) == {0, 1, 2, 3}  # ragged: the mean is over tokens, not over texts
    ids = torch.full((64, 9), 1)
    labels = torch.full((64, 9), -100)
    for place, i in enumerate(drawn):
        ids[place, : len(rows[i])] = labels[place, : len(rows[i])] = torch.tensor(rows[i])
    theirs = policy.lm(input_ids=ids, attention_mask=(ids != 1).long(), labels=labels).loss
    ours = term(kit, policy)
    assert ours.requires_grad
    torch.testing.assert_close(ours, 0.7 * theirs, rtol=1e-5, atol=0)
    flat = np.concatenate([mean_nll(policy, rows[i]) for i in drawn])
    assert ours.item() == pytest.approx(0.7 * flat.mean(), rel=1e-5)


def test_a_text_ends_with_the_stop_token_of_the_run(policies, tmp_path):
    data = corpus(tmp_path / "one.jsonl", [{"text": "a b"}])
    kit = make(policies, data, generation={"stop": "d"}, gamma=1.0, batch=2)
    policy = kit.word_policy()
    wanted = mean_nll(policy, [2, 3, 5])  # d, where the tokenizer's own eos is 0
    assert term(kit, policy).item() == pytest.approx(wanted.mean(), rel=1e-5)


def test_a_context_carries_no_loss(policies, tmp_path):
    rows = [{"question": "a b c", "answer": "d d"}]
    data = corpus(tmp_path / "pairs.jsonl", rows)
    kit = make(policies, data, prompt="question", field="answer", gamma=1.0, batch=2)
    policy = kit.word_policy()
    wanted = mean_nll(policy, [2, 3, 4, 5, 5, 0])[2:]  # d, d and the stop token
    assert term(kit, policy).item() == pytest.approx(wanted.mean(), rel=1e-5)


def test_long_texts_are_cut_into_pieces_and_none_is_lost(policies, data):
    kit = make(policies, data, max_tokens=4)
    tokenizer = kit.word_policy().tokenizer
    pieces = [ids for ids, _ in kit.plugins["ptx"].instance.pieces(tokenizer)]
    # the stop token of the first text stands alone in a third piece: nothing to predict
    assert pieces == [[2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 0], [5, 0], [4, 5, 2, 0]]


def test_every_update_and_micro_batch_draws_anew_and_a_resumed_one_the_same(policies, data):
    kit = make(policies, data, batch=2)
    policy = kit.word_policy()
    places = [(step, update, micro) for step in (0, 1) for update in (0, 1, 2) for micro in (0, 1)]
    found = [term(kit, policy, step=s, update=u, micro_batch=m).item() for s, u, m in places]
    assert len(set(found)) > 4
    again = make(policies, data, batch=2)
    assert found == [
        term(again, policy, step=s, update=u, micro_batch=m).item() for s, u, m in places
    ]


def test_accumulation_changes_nothing(policies, function_reward, tmp_path):
    """With one text every draw is the same one, so what remains is the weights of the parts."""
    data = corpus(tmp_path / "one.jsonl", [{"text": "a c a d b"}])
    found = {}
    for accumulate in (1, 2, 8):
        rl = {"accumulate": accumulate, "epochs": 2, "eps": 1e-2}
        kit = make(policies, data, rl, {"max_new_tokens": 8}, batch=8)
        initial = kit.word_policy()
        trained = kit.engine(PROMPTS)(initial, function_reward(lambda s: s.lengths.float() / 4))
        weights = {name: p.detach().clone() for name, p in trained.named_parameters()}
        found[accumulate] = kit.rows[0]["terms"]["ptx/nll"], weights
    alone, weights = found.pop(1)
    for other, changed in found.values():
        assert other == pytest.approx(alone, rel=1e-5)
        for name, p in changed.items():
            torch.testing.assert_close(p, weights[name], atol=1e-6, rtol=0)


def test_a_micro_batch_gets_its_share_of_the_batch(policies, data, monkeypatch):
    kit = make(policies, data, {"accumulate": 4}, batch=6)
    asked, draw = [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: (asked.append(a), draw(*a, **k))[1])
    term(kit, kit.word_policy())
    assert asked == [(4, (2,))]  # 6 / 4, rounded up


def test_effect_the_policy_forgets_less_of_the_corpus(policies, function_reward, data):
    """InstructGPT: with its gradients the corpus stays likely while the reward still rises."""
    likely, scores = {}, {}
    for gamma in (0.0, 0.2):
        rl = {"rollouts": 20, "rollout_size": 64, "minibatch": 32}
        kit = make(policies, data, rl, gamma=1.0, batch=32)
        settings = kit.plugins["ptx"].instance.config
        initial = kit.word_policy()
        optimiser = torch.optim.Adam(initial.parameters(), lr=1e-2)
        for update in range(60):  # pretrained on the very corpus
            optimiser.zero_grad()
            term(kit, initial, update=update).backward()
            optimiser.step()
        settings.gamma = gamma
        reward = function_reward(lambda s: (s.response_ids == 4).float().mean(1))
        trained = kit.engine(PROMPTS)(initial, reward)
        settings.gamma = 1.0
        likely[gamma] = term(kit, initial, step=99).item(), term(kit, trained, step=99).item()
        scores[gamma] = [row["score"] for row in kit.rows]
    (before, forgotten), (_, kept) = likely[0.0], likely[0.2]
    assert forgotten > before + 0.5  # nats a token
    assert kept < before + 0.5 * (forgotten - before)
    assert sum(scores[0.2][-5:]) / 5 > 2 * scores[0.2][0]  # of .08


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (None, {}, "none.jsonl' is neither a file or folder here nor a data set on the hub"),
        ("", {}, "none.jsonl' should hold at least one row, each a mapping"),
        ('{"text": ""}\n{"text": ""}\n', {}, "all texts of .*none.jsonl' are empty"),
        ('{"text": 3}\n', {}, "row 1 of .* has no text in its column 'text'; its columns are text"),
        ('{"text": "a"}\n', {"prompt": "q"}, "row 1 of .* has no text in its column 'q'"),
        ('{"text": "a"}\n', {"batch": 0}, "batch: input should be greater than or equal to 1"),
        ('{"text": "a"}\n', {"gama": 1}, "gama: unknown key; did you mean 'gamma'"),
    ],
)
def test_what_is_wrong_with_the_corpus_is_one_sentence_at_check(tmp_path, content, settings, said):
    path = tmp_path / "none.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"^test: plugins\.ptx.*{said}") as caught:
        activate([("ptx", {"data": str(path), **settings})], "test")
    assert "\n" not in str(caught.value)


def test_a_corpus_is_asked_for():
    with pytest.raises(UserError, match=r"^test: plugins\.ptx\.data: is missing$"):
        activate([("ptx", {})], "test")


def test_texts_of_no_two_tokens_are_no_corpus(policies, tmp_path):
    kit = make(policies, corpus(tmp_path / "blank.jsonl", [{"text": " "}]))
    with pytest.raises(UserError, match="holds no text of two tokens or more"):
        term(kit, kit.word_policy())


def test_it_runs_on_the_toy_world_with_the_corpus_that_the_world_ships(tmp_path):
    overrides = [
        "iterations=1",
        "plugins=[{ptx: {data: '{world}/corpus.jsonl', prompt: prompt}}]",
        "reward_model.updates=3",
        "prompts.preference=16",
        "prompts.held_out=4",
        "prompts.evaluation=8",
        "rl.rollouts=2",
        "rl.rollout_size=8",
        "rl.minibatch=8",
    ]
    assert len(load_config("toy", overrides).plugins) == 1
    done = ostinato.run("toy", tmp_path / "run", overrides)
    rows = [row for row in done.metrics if row["kind"] == "policy"]
    # about what the policy reached on such texts when it was trained: 1.3 nats a token
    assert all(0.5 * 1.1 < row["terms"]["ptx/nll"] < 0.5 * 1.6 for row in rows)
    assert all(row["actions"]["ptx.policy_loss"] > 0 for row in rows)
