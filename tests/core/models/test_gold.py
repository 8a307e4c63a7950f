"""The gold: checkpoints of decoders and of classifiers, functions, and what is no gold."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from ostinato.config.draws import Draws
from ostinato.config.errors import NonFiniteError, UserError
from ostinato.config.sections import GoldSection, RewardModelSection
from ostinato.models import gold as gold_module
from ostinato.models.gold import SIGNATURE, GoldFunction, gold_scores, load_gold, try_gold
from ostinato.models.loading import load_model, load_tokenizer, save_model
from ostinato.models.reward import Calibration
from ostinato.models.reward_model import RewardModel
from ostinato.models.samples import Samples

CPU = torch.device("cpu")
PROMPTS = ["x", "yz", "zzxy", "yyyyyyy"]
RESPONSES = ["abc", "d", "aaaabbbb", "c"]
FINISHED = [True, False, True, True]
WORDS = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", *"abcdxyz"])}
BODY = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def pair_tokenizer():
    """As published classifiers have it: letters, [CLS] prompt [SEP] response [SEP], no eos."""
    core = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_bert(folder, kind=BertForSequenceClassification, **config):
    with Draws(0).forked("bert"):
        model = kind(BertConfig(**BODY, max_position_embeddings=32, **config)).eval()
    save_model(model, pair_tokenizer(), folder)
    return model


# --- Checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_gives_raw_scores(kit, tmp_path):
    model = kit.make().initial()
    raw = model.score(PROMPTS, RESPONSES, FINISHED)
    model.calibration = Calibration((3.0,), 1.0, 9.0)
    model.save(tmp_path)
    gold = load_gold(GoldSection(model=str(tmp_path)), CPU)
    torch.testing.assert_close(gold.score(PROMPTS, RESPONSES, FINISHED), raw, atol=1e-5, rtol=0)


def test_a_language_model_is_no_gold(kit, tmp_path):
    """transformers would give it a head of random numbers, and the run a gold of noise."""
    section = kit.make().ctx.config.policy
    tokenizer = load_tokenizer(section, "policy")
    save_model(load_model(AutoModelForCausalLM, section, tokenizer, "policy"), tokenizer, tmp_path)
    with pytest.raises(UserError) as caught:
        load_gold(GoldSection(model=str(tmp_path)), CPU)
    assert str(caught.value) == (
        f"gold.model: '{tmp_path}' is no whole GPTNeoXForSequenceClassification: its checkpoint "
        "holds no 'score.weight'"
    )
    body = RewardModelSection(model=str(tmp_path))  # a proxy gets its head in training
    assert RewardModel.load(body).model.config.num_labels == 1


def test_a_classifier_scores_the_pair_one_by_one_as_in_a_batch(tmp_path, monkeypatch):
    """Against BERT's own forward pass on ids that are put together here, without padding."""
    model = save_bert(tmp_path, num_labels=1)
    alone = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        first = [1, *(WORDS[w] for w in prompt), 2]
        second = [*(WORDS[w] for w in response), 2]
        kinds = [0] * len(first) + [1] * len(second)
        with torch.no_grad():
            out = model(torch.tensor([first + second]), token_type_ids=torch.tensor([kinds]))
        alone.append(out.logits[0, 0])
    wanted = torch.stack(alone)
    assert wanted.std() > 0.01
    gold = load_gold(GoldSection(model=str(tmp_path)), CPU)
    batch = gold.score(PROMPTS, RESPONSES, FINISHED)
    torch.testing.assert_close(batch, wanted, atol=1e-5, rtol=0)
    monkeypatch.setattr(gold_module, "SCORING_BATCH", 3)
    torch.testing.assert_close(gold.score(PROMPTS, RESPONSES, FINISHED), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_pair_is_cut_to_the_positions_of_the_classifier(tmp_path, family):
    if family == "bert":
        save_bert(tmp_path, num_labels=1)
    else:  # positions begin behind the padding: one fewer than the table has rows
        config = RobertaConfig(**BODY, max_position_embeddings=32, type_vocab_size=2, num_labels=1)
        save_model(RobertaForSequenceClassification(config), pair_tokenizer(), tmp_path)
    gold = load_gold(GoldSection(model=str(tmp_path)), CPU)
    assert gold.max_tokens == {"bert": 32, "roberta": 31}[family]
    assert gold.score(["x" * 90], ["a" * 90], [False]).isfinite().all()


def test_an_encoder_without_its_trained_head_is_no_gold(tmp_path):
    save_bert(tmp_path, BertForMaskedLM)
    with pytest.raises(UserError) as caught:
        load_gold(GoldSection(model=str(tmp_path)), CPU)
    assert str(caught.value) == (
        f"gold.model: '{tmp_path}' is no whole BertForSequenceClassification: its checkpoint holds "
        "no 'classifier.bias'"
    )


def test_a_classifier_of_several_labels_is_no_gold(tmp_path):
    save_bert(tmp_path, num_labels=3)
    with pytest.raises(UserError) as caught:
        load_gold(GoldSection(model=str(tmp_path)), CPU)
    assert str(caught.value) == (
        f"gold.model: '{tmp_path}' has 3 labels, expected a model with one, its score"
    )


def test_random_weights_stand_for_the_checkpoint_where_both_are_given(kit):
    """A run file tried out in small, by an override of gold.random: no checkpoint is looked for."""
    random = kit.make().ctx.config.reward_model.random
    gold = load_gold(GoldSection(model="./nowhere", tokenizer="bytes", random=random), CPU)
    assert gold.score(PROMPTS, RESPONSES, FINISHED).shape == (4,)


def test_a_missing_gold_names_its_own_key():
    with pytest.raises(UserError, match=r"gold\.model: '\./nowhere' cannot be loaded"):
        load_gold(GoldSection(model="./nowhere"), CPU)


# --- Functions ------------------------------------------------------------------------------------


def test_factories_that_fail_are_one_sentence():
    with pytest.raises(UserError, match=r"gold.function: math:factorial\(\) failed: TypeError"):
        load_gold(GoldSection(function="math:factorial"), CPU)
    with pytest.raises(
        UserError,
        match=r"answered a dict without score; expected score\(",
    ):
        load_gold(GoldSection(function="builtins:dict"), CPU)


class Gold:
    """Answers what it was made with, or raises it."""

    def __init__(self, answer):
        self.answer = answer

    def score(self, prompts, responses, finished):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (TypeError("3 were given"), UserError, "failed: TypeError: 3 were given; {signature}"),
        (SystemExit(0), UserError, "failed: SystemExit: 0"),
        (KeyError("length\nmore"), UserError, "failed: KeyError: 'length\\nmore'"),
        (ValueError("two\nlines"), UserError, "failed: ValueError: two"),
        ([1.0, 2.0], UserError, "is a list; {signature}"),
        (torch.zeros(3), UserError, "has shape (3,) for 2 responses; {signature}"),
        (torch.zeros(2, 1), UserError, "has shape (2, 1) for 2 responses; {signature}"),
        (torch.tensor([0.0, math.nan]), NonFiniteError, "is not finite"),
        (torch.tensor([math.inf, 0.0]), NonFiniteError, "is not finite"),
    ],
)
def test_a_function_that_scores_wrongly_is_one_sentence(answer, kind, said):
    gold = GoldFunction("mine:gold", Gold(answer))
    with pytest.raises(UserError) as caught:
        gold.score(["x", "y"], ["a", "b"], [True, True])
    assert type(caught.value) is kind
    said = said.format(signature=SIGNATURE)
    assert str(caught.value) == f"gold.function: the score of mine:gold() {said}"


def test_a_plain_function_is_gold(tmp_path):
    """It is told by its parameter `completions`; columns come by prompt."""
    rules = tmp_path / "rules.py"
    rules.write_text(
        "def verify(completions, answer, finished=None):\n"
        "    assert finished is None\n"
        "    return [float(c == a) for c, a in zip(completions, answer, strict=True)]\n"
    )
    answers = {"x": "abc", "yz": "e"}
    section = GoldSection(function=f"{rules}:verify")
    gold = load_gold(section, CPU, lambda prompts: {"answer": [answers[p] for p in prompts]})
    found = gold.score(["yz", "x", "x"], ["d", "abc", "ab"], [True] * 3)
    assert found.tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(UserError) as caught:
        load_gold(section, CPU).score(["x"], ["abc"], [True])
    assert str(caught.value) == (
        f"gold.function: {rules}:verify asks for 'answer', which it is not given; valid names are "
        "completions, prompts"
    )
    try_gold(section, ["x", "y"], {"answer": ["a", "b"]})
    with pytest.raises(UserError, match="asks for 'answer', which it is not given"):
        try_gold(section, ["x", "y"], {})


def test_a_sentence_of_the_function_itself_is_kept():
    gold = GoldFunction("mine:gold", Gold(UserError("mine: no lexicon here")))
    with pytest.raises(UserError, match=r"^mine: no lexicon here$"):
        gold.score(["x"], ["a"], [True])


def test_a_function_is_asked_in_batches_and_its_numbers_are_kept():
    class Length:
        def score(self, prompts, responses, finished):
            assert len(prompts) <= 2
            return torch.tensor(
                [float(len(r)) + d for r, d in zip(responses, finished, strict=True)]
            )

    tokens = torch.tensor([[5], [6], [7]])
    samples = Samples(
        load_tokenizer(GoldSection(tokenizer="bytes", random={"model_type": "gpt2"}), "gold"),
        tokens,
        tokens > 0,
        tokens.expand(3, 2),
        torch.tensor([[1, 1], [1, 0], [1, 1]]).bool(),
        torch.tensor([True, False, False]),
    )  # the first ends with its stop token, which is no text
    assert gold_scores(GoldFunction("mine:gold", Length()), samples, 2).tolist() == [2.0, 1.0, 2.0]
