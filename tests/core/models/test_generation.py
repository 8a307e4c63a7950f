"""Sampling: the right distribution, the right stop, and the cache equal to teacher forcing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ostinato.config.errors import NonFiniteError, UserError
from ostinato.models import generation
from ostinato.models.generation import check_length, draw, nucleus, sample, stop_token

FAMILIES = ["gpt2", "gpt_neox", "llama"]
RAGGED = [[100, 101, 102, 103], [104], [1, 105, 106], [107, 1]]
EQUAL = [[100, 101], [104, 99], [1, 105], [107, 1]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_cache_gives_the_distributions_of_teacher_forcing(
    policies, family, prompts, temperature, monkeypatch
):
    kit = policies.make(family, generation={"temperature": temperature, "max_new_tokens": 8})
    policy = kit.policy()
    seen, draw = [], generation.draw

    def watched(logits, generator):
        seen.append(logits.softmax(-1))
        return draw(logits, generator)

    monkeypatch.setattr(generation, "draw", watched)
    samples = kit.sample(policy, prompts)
    for i, prompt in enumerate(prompts):
        response = samples.response_ids[i][samples.mask[i]]
        whole = torch.tensor([prompt + response.tolist()])
        with torch.no_grad():
            logits = policy.lm(input_ids=whole).logits[0, len(prompt) - 1 : -1] / temperature
        drawn = torch.stack([step[i] for step in seen[: len(response)]])
        torch.testing.assert_close(drawn, logits.softmax(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_frequencies_agree_with_the_softmax(policies, temperature):
    kit = policies.make(generation={"max_new_tokens": 1, "temperature": temperature})
    policy = kit.word_policy()
    prompt, count = [2, 3], 6000
    samples = kit.sample(policy, [prompt] * count)
    with torch.no_grad():
        logits = policy.lm(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    expected = (logits / temperature).softmax(-1) * count
    found = torch.bincount(samples.response_ids[:, 0], minlength=len(expected))
    assert expected.min() > 5
    assert chisquare(found.numpy(), expected.numpy()).pvalue > 0.01
    other = (logits / (1.7 - temperature)).softmax(-1) * count
    assert chisquare(found.numpy(), other.numpy()).pvalue < 1e-6


def test_draw_follows_each_rows_own_softmax_and_never_the_impossible():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 2
    logits[:, 0] = logits[:, 3] = float("-inf")
    count = 20000
    found = draw(logits.repeat(count, 1), torch.Generator().manual_seed(0)).view(count, 3)
    for i, row in enumerate(logits.double().softmax(-1)):
        counts = torch.bincount(found[:, i], minlength=5)
        assert counts[0] == counts[3] == 0
        kept = [1, 2, 4]
        assert chisquare(counts[kept].numpy(), (row[kept] * count).numpy()).pvalue > 0.01


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-53, 2)])
def test_draw_skips_impossible_words_at_both_ends_of_the_unit_interval(monkeypatch, u, token):
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, u, dtype=torch.float64))
    assert draw(logits, torch.Generator()).tolist() == [[token]]


def test_draw_keeps_the_tail_of_a_large_vocabulary():
    """50,000 equal words: every tenth of them is drawn a tenth of the time."""
    found = draw(torch.zeros(1, 50000).expand(500, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(found[:, 0] // 5000, minlength=10)
    assert len(counts) == 10
    assert chisquare(counts.numpy()).pvalue > 0.01


def nucleus_by_hand(logits, top_p):
    """The likeliest tokens until they reach top_p, renormalised, in float64."""
    chances = np.exp(logits.double().numpy() - logits.double().numpy().max())
    chances /= chances.sum()
    kept = np.zeros_like(chances)
    for token in sorted(range(len(chances)), key=lambda t: -chances[t]):
        kept[token] = chances[token]
        if kept.sum() >= top_p:
            return kept / kept.sum()
    return kept


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_the_nucleus_is_renormalised(top_p):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(2)) * 3
    found = nucleus(logits, top_p).double().softmax(-1).numpy()
    wanted = np.stack([nucleus_by_hand(row, top_p) for row in logits])
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert ((found == 0).sum() > 0) == (top_p < 1)


def test_a_nucleus_of_equals_is_the_smallest_that_reaches_top_p():
    found = nucleus(torch.zeros(1, 8), 0.5)
    assert int(found.isfinite().sum()) == 4
    assert nucleus(torch.tensor([[0.0, 9.0]]), 0.9).tolist() == [[-np.inf, 9.0]]


@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_responses_are_drawn_from_the_nucleus(policies, top_p):
    kit = policies.make(generation={"max_new_tokens": 1, "temperature": 0.7})
    policy = kit.word_policy()
    prompt, count = [2, 3], 6000
    generator = torch.Generator().manual_seed(0)
    settings = kit.config.generation
    samples = sample(policy, [prompt] * count, settings, generator, top_p=top_p)
    with torch.no_grad():
        logits = policy.lm(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.7
    wanted = nucleus_by_hand(logits, top_p) * count
    found = np.bincount(samples.response_ids[:, 0].numpy(), minlength=len(wanted))
    assert (wanted == 0).any() == (top_p < 1)
    assert found[wanted == 0].sum() == 0
    kept = wanted > 0
    assert chisquare(found[kept], wanted[kept]).pvalue > 0.01


def test_the_stop_token_is_looked_for_in_the_response_only(policies):
    kit = policies.make(generation={"max_new_tokens": 12})
    policy = kit.word_policy()
    prompts = [[0, 2, 0], [0], [2, 3, 0]] * 40  # eos inside and at the end of prompts
    samples = kit.sample(policy, prompts)
    assert samples.lengths.max() > 1
    for i in range(len(prompts)):
        row = samples.response_ids[i][samples.mask[i]].tolist()
        assert (0 in row) == bool(samples.finished[i])
        assert 0 not in row[:-1]
        assert samples.finished[i] or len(row) == 12
        rest = samples.response_ids[i][~samples.mask[i]]
        assert (rest == policy.tokenizer.pad_token_id).all()
    assert samples.finished.any()


def test_a_stop_token_on_the_last_place_still_finishes_the_response(policies, monkeypatch):
    """Four responses of at most three words, two of them at a time, word by word."""
    kit = policies.make(generation={"max_new_tokens": 3, "batch": 2})
    words = iter([[0, 2], [3, 0], [3, 2], [2, 3], [0, 4]])  # 0 stops
    monkeypatch.setattr(generation, "draw", lambda *_: torch.tensor(next(words))[:, None])
    samples = kit.sample(kit.word_policy(), [[2], [3, 4], [5], [2, 2]])
    rows = [r[m].tolist() for r, m in zip(samples.response_ids, samples.mask, strict=True)]
    assert rows == [[0], [2, 0], [3, 2, 0], [2, 3, 4]]
    assert samples.finished.tolist() == [True, True, True, False]


def test_a_custom_stop_token_ends_a_response_and_eos_does_not(policies):
    kit = policies.make(generation={"max_new_tokens": 12, "stop": "b"})
    policy = kit.word_policy()
    assert stop_token(policy.tokenizer, kit.config.generation) == 3
    samples = kit.sample(policy, [[2, 3]] * 120)
    rows = [r[m].tolist() for r, m in zip(samples.response_ids, samples.mask, strict=True)]
    assert all(3 not in row[:-1] for row in rows)
    assert [row[-1] == 3 for row in rows] == samples.finished.tolist()
    assert any(0 in row[:-1] for row in rows)
    texts = [text.split() for text in samples.responses]
    assert all("b" not in text for text in texts)  # a word like any other, but it ends a response
    assert [len(text) for text in texts] == [sum(t not in {0, 1, 3} for t in row) for row in rows]


def test_an_unknown_stop_token_is_one_sentence_with_the_closest(policies):
    kit = policies.make(generation={"stop": "<eoz>"})
    with pytest.raises(UserError, match=r"generation\.stop: '<eoz>' is no token .*'<eos>'"):
        stop_token(kit.word_policy().tokenizer, kit.config.generation)


def test_a_sampled_pad_token_counts_as_a_real_token(policies):
    kit = policies.make(generation={"max_new_tokens": 6})
    policy = kit.word_policy()
    samples = kit.sample(policy, [[2]] * 60)
    pad = policy.tokenizer.pad_token_id
    assert (samples.response_ids[samples.mask] == pad).any()
    lengths = samples.mask.sum(1)
    assert all(samples.mask[i, :n].all() for i, n in enumerate(lengths))


def test_one_seed_gives_one_sample_and_batches_join_to_one_width(policies):
    kit = policies.make(generation={"max_new_tokens": 9, "batch": 2})
    policy = kit.policy()
    first, again = (kit.sample(policy, RAGGED, seed=3) for _ in "ab")
    assert torch.equal(first.response_ids, again.response_ids)
    assert first.response_ids.shape == first.mask.shape
    assert first.mask.any(0).all()
    assert not torch.equal(first.response_ids, kit.sample(policy, RAGGED, seed=4).response_ids)


def test_texts_keep_what_the_template_put_into_the_prompt(policies):
    kit = policies.make()
    samples = kit.sample(kit.policy(), [[100, 1, 101], [102]])
    assert samples.prompts == ["a</s>b", "c"]


def test_logits_that_are_not_finite_stop_the_sampling(policies):
    kit = policies.make()
    policy = kit.policy()
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the policy's logits are not finite"):
        kit.sample(policy, RAGGED)


def test_a_response_that_outgrows_the_models_context_is_refused_beforehand(policies):
    kit = policies.make("gpt2", generation={"max_new_tokens": 60})  # a context of 64
    policy = kit.policy()
    check_length(policy.lm, 4, kit.config.generation)
    with pytest.raises(UserError, match="after a prompt of 5 tokens exceeds the policy's context"):
        check_length(policy.lm, 5, kit.config.generation)


@pytest.mark.parametrize("key", ["top_k", "top_p", "min_p"])
def test_a_restricted_sampler_is_refused(policies, key):
    """Sampled so, the KL would come out negative: pairs alone have a nucleus."""
    with pytest.raises(UserError, match=f"generation.{key}: unknown key"):
        policies.make(generation={key: 0.9})
