"""Tokens of prompts and responses, padding, and models that fit their tokenizer."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

from ostinato.config.errors import UserError
from ostinato.config.sections import PolicySection
from ostinato.models.loading import (
    load_model,
    load_tokenizer,
    padded,
    prompt_prefix,
    prompt_texts,
    prompt_tokens,
    response_tokens,
    save_model,
    vocabulary_key,
)

BYTES = PolicySection(tokenizer="bytes", random={"model_type": "gpt2"})


def with_bos(tokenizer):
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    return tokenizer


def test_prompt_tokens_have_no_eos_behind_them_though_the_tokenizer_adds_one():
    tokenizer = ByT5Tokenizer(extra_ids=0)
    assert tokenizer("ab")["input_ids"][-1] == tokenizer.eos_token_id
    assert prompt_tokens(tokenizer, ["ab", "c"]) == [[100, 101], [102]]


def test_an_eos_that_the_prompt_itself_ends_with_stays():
    tokenizer = ByT5Tokenizer(extra_ids=0)
    assert prompt_tokens(tokenizer, ["ab</s>", "a</s>b"]) == [[100, 101, 1], [100, 1, 101]]


def test_a_bos_that_is_the_eos_stays_in_front(words):
    tokenizer = with_bos(words())
    assert prompt_prefix(tokenizer) == [0]
    assert prompt_tokens(tokenizer, ["a b"]) == [[0, 2, 3]]
    assert prompt_tokens(tokenizer, ["a <eos>"]) == [[0, 2, 0]]


def test_prompt_texts_is_the_inverse_of_prompt_tokens(words):
    for tokenizer, texts in (
        (ByT5Tokenizer(extra_ids=0), ["ab</s>c", "é", "x y"]),
        (with_bos(words()), ["a b <eos> c", "d"]),
    ):
        assert prompt_texts(tokenizer, prompt_tokens(tokenizer, texts)) == texts


def test_response_tokens_end_with_eos_only_where_finished():
    tokenizer = ByT5Tokenizer(extra_ids=0)
    assert response_tokens(tokenizer, ["a", "a"], [True, False]) == [[100, 1], [100]]


@pytest.mark.parametrize("left", [True, False])
def test_padded(left):
    ids, mask = padded([[5, 6, 7], [8]], pad=9, left=left)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8] if left else [8, 9, 9]]
    assert mask.tolist() == [[True] * 3, [False, False, True] if left else [True, False, False]]
    assert mask.dtype == torch.bool


def test_padded_of_empty_rows_is_one_column_of_padding():
    ids, mask = padded([[], []], pad=3)
    assert ids.tolist() == [[3], [3]]
    assert not mask.any()


def test_a_tokenizer_whose_pad_is_its_eos_gets_a_pad_and_the_model_a_row_for_it(words, tmp_path):
    tokenizer = words(pad=None)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    size = len(tokenizer)
    section = PolicySection(random={"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1})
    model = load_model(AutoModelForCausalLM, section, tokenizer, "policy")
    save_model(model, tokenizer, tmp_path)

    named = PolicySection(model=str(tmp_path))
    loaded = load_tokenizer(named, "policy")
    assert loaded.pad_token_id == size
    assert loaded.pad_token_id != loaded.eos_token_id == tokenizer.eos_token_id
    resized = load_model(AutoModelForCausalLM, named, loaded, "policy")
    assert resized.get_input_embeddings().num_embeddings == size + 1
    assert resized.get_output_embeddings().weight.shape[0] == size + 1
    assert resized.config.vocab_size == size + 1
    assert resized.config.pad_token_id == size
    kept = resized.get_input_embeddings().weight[:size]
    assert torch.equal(kept, model.get_input_embeddings().weight)


def test_a_pad_token_that_the_vocabulary_already_has_is_taken(words, tmp_path):
    tokenizer = words(words=("a", "<|padding|>"), pad=None)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(PolicySection(model=str(tmp_path)), "policy")
    assert loaded.pad_token == "<|padding|>"
    assert len(loaded) == len(tokenizer)


def test_random_weights_know_the_tokenizers_eos_and_pad():
    tokenizer = load_tokenizer(BYTES, "policy")
    model = load_model(AutoModelForCausalLM, BYTES, tokenizer, "policy")
    assert (model.config.eos_token_id, model.config.pad_token_id) == (1, 0)
    assert model.config.vocab_size == len(tokenizer) == 259
    assert not model.training


def test_vocabulary_key_tells_tokenizers_apart(words, tmp_path):
    tokenizer = words()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert vocabulary_key(tokenizer) == vocabulary_key(again)
    assert vocabulary_key(tokenizer) != vocabulary_key(words(words=("b", "a", "c", "d")))
    assert vocabulary_key(tokenizer) != vocabulary_key(ByT5Tokenizer(extra_ids=0))


@pytest.mark.parametrize(
    ("random", "said"),
    [
        ({"model_type": "gpt_neo_xx"}, "policy.random: transformers cannot build it"),
        ({"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}, "policy.random"),
        ({"model_type": "llama", "hidden_size": "big"}, "policy.random"),
    ],
)
def test_a_config_that_transformers_refuses_is_one_sentence(random, said):
    section = PolicySection(tokenizer="bytes", random=random)
    tokenizer = load_tokenizer(section, "policy")
    with pytest.raises(UserError) as caught:
        load_model(AutoModelForCausalLM, section, tokenizer, "policy")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    section = PolicySection(model=str(tmp_path))
    with pytest.raises(UserError, match=r"policy\.tokenizer: .* cannot be loaded") as caught:
        load_tokenizer(section, "policy")
    with pytest.raises(UserError, match=r"policy\.model: .* cannot be loaded"):
        load_model(AutoModelForCausalLM, section, ByT5Tokenizer(extra_ids=0), "policy")
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_one_sentence(tmp_path):
    tokenizer = load_tokenizer(BYTES, "policy")
    section = PolicySection(
        tokenizer="bytes", random={"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}
    )
    model = load_model(AutoModelForCausalLM, section, tokenizer, "policy")
    save_model(model, tokenizer, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"policy\.model: .* cannot be loaded"):
        load_model(AutoModelForCausalLM, PolicySection(model=str(tmp_path)), tokenizer, "policy")


def test_a_tokenizer_without_eos_is_refused(words, tmp_path):
    tokenizer = words()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no eos token, so no response could ever end"):
        load_tokenizer(PolicySection(model=str(tmp_path)), "policy")
