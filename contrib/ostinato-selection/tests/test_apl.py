"""Entropies against a softmax by hand; prompts and pairs against a sort in Python."""

import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_selection import apl
from ostinato_selection.apl import APL, entropies

import ostinato


class Prompts:
    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def take(self, rows):
        return Prompts([self.texts[row] for row in rows])


def test_an_entropy_is_minus_the_log_probability_of_a_response(run):
    """The policy's own logits, one token after the other, in fp64."""
    made = run([])
    policy = ostinato.Policy.load_checkpoint(made.directory / "iteration-1" / "policy", 1.0)
    prompt = policy.tokenizer.encode("the soup", add_special_tokens=False)
    answers = [
        policy.tokenizer.encode(t, add_special_tokens=False) for t in ("is good", "is cold and bad")
    ]
    data = {
        "prompt_ids": [prompt] * 2,
        "first_ids": answers,
        "first_finished": [False] * 2,
        "prompt": ["the soup"] * 2,
    }
    samples = ostinato.Samples.of(policy.tokenizer, data, "first")
    found = entropies(policy, samples)
    for value, answer in zip(found.tolist(), answers, strict=True):
        expected = 0.0
        for place, token in enumerate(answer):
            logits = policy.lm(torch.tensor([prompt + answer[:place]])).logits[0, -1]
            logits = logits.detach().double().numpy()
            expected -= logits[token] - np.log(np.exp(logits).sum())
        assert value == pytest.approx(expected, rel=1e-4)


def test_the_least_sure_of_the_prompts_that_were_looked_at(made, context, monkeypatch):
    unsure = {f"p{i}": float(x) for i, x in enumerate(np.random.default_rng(0).permutation(12))}
    noise = iter([0.5, -0.5] * 12)

    def sample(policy, prompts, purpose, count):
        return [(text, next(noise)) for text in prompts.texts for _ in range(count)]

    def found(policy, samples):
        return torch.tensor([unsure[text] + extra for text, extra in samples], dtype=torch.double)

    monkeypatch.setattr(apl, "entropies", found)
    ctx = context(sample=sample, policy=None)
    prompts = Prompts(list(unsure))
    rows = made(APL, candidates=4, responses=2).choose_prompts(prompts, 3, 0, ctx)
    assert sorted(unsure[prompts.texts[row]] for row in rows) == [9.0, 10.0, 11.0]
    assert ctx.logged == {"apl/entropy": 10.0, "apl/looked": 5.5}


def test_more_prompts_than_there_are_come_again(made, context, monkeypatch):
    monkeypatch.setattr(apl, "entropies", lambda _, s: torch.arange(float(len(s))))
    sample = lambda policy, prompts, purpose, count: prompts.texts * count  # noqa: E731
    ctx = context(sample=sample, policy=None)
    rows = made(APL, responses=1, candidates=1).choose_prompts(Prompts(["a", "b"]), 5, 0, ctx)
    assert len(rows) == 5
    assert set(rows) == {0, 1}


@pytest.mark.parametrize("trained", [True, False])
def test_pairs_of_unsure_prompts_that_the_reward_tells_apart(
    made, context, ask, pairs, monkeypatch, trained
):
    names = {p: [f"{p}{i}" for i in range(3)] for p in "pqrs"}
    given = pairs([(p, a, b) for p in names for a, b in combinations(names[p], 2)])
    draw = np.random.default_rng(1)
    flat = [name for four in names.values() for name in four]
    unsure = dict(zip(flat, draw.permutation(12).astype(float), strict=True))
    known = {name: draw.normal(size=2).tolist() for name in flat}
    look = lambda _, s: torch.tensor([unsure[t] for t in s.responses]).double()  # noqa: E731
    monkeypatch.setattr(apl, "entropies", look)
    handles = SimpleNamespace(sft=SimpleNamespace(load=lambda: None), final=[])
    ctx = context(responses=ask.responses, policies=handles)
    models = [ask.votes(known)] if trained else []
    kept = made(APL, prompts=0.5, pairs=0.34).select_comparisons(given, models, ctx)
    top = sorted(names, key=lambda p: sum(unsure[n] for n in names[p]), reverse=True)[:2]
    assert len(kept) == 2  # of the six pairs of two prompts
    assert set(kept["prompt"][:]) <= set(top)
    if trained:
        mean = {name: np.mean(votes) for name, votes in known.items()}
        every = [(a, b) for p in top for a, b in combinations(names[p], 2)]
        best = sorted(every, key=lambda two: abs(mean[two[0]] - mean[two[1]]), reverse=True)[:2]
        assert {(r["first"], r["second"]) for r in kept} == set(best)


def test_a_run_takes_prompts_above_the_mean_entropy(run):
    rows = run(["apl"], iterations=2).metrics
    policy = [row for row in rows if row["kind"] == "policy"]
    assert len(policy) == 4
    assert all(row["apl/entropy"] > row["apl/looked"] > 0 for row in policy)
    assert all(math.isfinite(row["actions"]["apl.choose_prompts"]) for row in policy)
    chosen = [row["actions"] for row in rows if "apl.select_comparisons" in row.get("actions", {})]
    assert [actions["apl.select_comparisons"] for actions in chosen] == [6.0, 6.0]
