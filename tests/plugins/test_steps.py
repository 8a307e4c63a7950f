"""Where steps end in tokens, and responses broken off there."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ostinato import Samples
from ostinato_plugins.steps import cut, step_ends
from ostinato_worlds import sums
from step_kit import SEPARATOR, ends_by_hand


@pytest.fixture(scope="module")
def merging():
    """A tokenizer whose tokens hold the separator within, twice, or with others."""
    words = ["a", "b", "c", "ab", "ba", "bb", "cba", "abc", "<eos>", "<pad>"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "c"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (["a", "b", "c", "<eos>"], [1, 3]),
        (["a", "c", "ab"], [2]),
        (["ab", "a", "<eos>"], [0, 2]),
        (["cba", "c"], [0, 1]),  # the separator is within the token
        (["a", "bb", "a"], [1, 2]),  # two steps end with one token
        (["a", "b", "<eos>"], [1, 2]),  # an empty last step
        (["c"], [0]),
        (["<eos>"], [0]),
        (["b"], [0]),
    ],
)
def test_a_step_ends_with_the_token_that_completes_its_separator(merging, tokens, ends):
    ids = tuple(merging.convert_tokens_to_ids(tokens))
    assert step_ends(merging, ids, "b") == ends


def test_a_separator_of_several_tokens(merging):
    ids = tuple(merging.convert_tokens_to_ids(["a", "c", "b", "a", "c", "ba", "<eos>"]))
    assert step_ends(merging, ids, "cb") == [2, 5, 6]


def test_against_a_count_of_characters():
    tokenizer = AutoTokenizer.from_pretrained(sums.POLICY)
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choices("12+=;", k=draw.randint(1, 30)))
        ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * draw.randint(0, 1)
        expected = ends_by_hand(text.replace(";", SEPARATOR), len(ids))
        assert step_ends(tokenizer, tuple(ids), ";") == expected


def test_a_cut_response_is_its_beginning():
    tokenizer = AutoTokenizer.from_pretrained(sums.POLICY)
    texts = ["7+5=12;4;632", "1;2"]
    rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    prompts = torch.tensor([[pad, 3, 4], [3, 4, 5]])
    samples = Samples(
        tokenizer, prompts, prompts != pad, ids, ids != pad, torch.tensor([True, True]), ["p", "q"]
    )
    made = cut(samples, [0, 1, 0], [6, 1, 8])
    assert made.responses == ["7+5=12;", "1;", "7+5=12;4;"]
    assert made.prompts == ["p", "q", "p"]
    assert made.finished.tolist() == [False] * 3
    assert made.lengths.tolist() == [7, 2, 9]
    assert made.mask.shape == (3, 9)  # no wider than what is left
    assert bool((made.response_ids[~made.mask] == pad).all())
    assert samples.responses == texts  # it was not changed
    assert samples.finished.tolist() == [True, True]
