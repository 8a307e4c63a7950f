"""The quickstart world: what ships loads offline and the gold behaves as its README says."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ostinato_worlds import quickstart
from ostinato_worlds.quickstart import QuickstartGold

HERE = quickstart.DIRECTORY
GOOD = "is a funny and moving film with great performances ."
BAD = "is a dull and boring mess with bad performances ."


@pytest.fixture(scope="module")
def gold() -> QuickstartGold:
    return quickstart.gold()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(HERE / "policy")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    lines = (HERE / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def score(gold: QuickstartGold, response: str, finished: bool = True) -> float:
    return gold.score(["this is a film that"], [response], [finished]).item()


def test_size() -> None:
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 10e6


def test_text_to_ids_and_back(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> None:
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    special += [tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert len(set(special)) == 4
    for text in [*prompts[:50], GOOD]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[1:] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_prompts(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> None:
    assert len(prompts) >= 3000
    assert len(set(prompts)) == len(prompts)
    for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]:
        assert 4 <= len(ids) <= 6
        assert tokenizer.unk_token_id not in ids
    assert not any(set(prompt.split()) & set(".!?") for prompt in prompts)


@torch.no_grad()
def test_policy_samples(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(HERE / "policy").eval()
    batch = tokenizer(prompts[:24], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    sequences = model.generate(**batch, max_new_tokens=20)
    response = sequences[:, batch["input_ids"].shape[1] :]
    running = response != tokenizer.pad_token_id
    mask = torch.cat([batch["attention_mask"], running.long()], 1)
    logits = model(input_ids=sequences, attention_mask=mask).logits[:, -response.shape[1] - 1 : -1]
    stray = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert logits.softmax(-1)[..., stray].sum(-1)[running].mean() < 1e-4
    assert (response == tokenizer.eos_token_id).any(1).float().mean() > 0.5


def test_reward_models_start_from_a_smaller_one() -> None:
    policy = AutoModelForCausalLM.from_pretrained(HERE / "policy")
    start = AutoModelForCausalLM.from_pretrained(HERE / "reward_model")
    assert start.num_parameters() < policy.num_parameters()
    assert start.config.vocab_size == policy.config.vocab_size
    names = ("policy/tokenizer.json", "reward_model/tokenizer.json")
    assert len({(HERE / name).read_text() for name in names}) == 1


def test_policy_knows_reviews(tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(HERE / "policy").eval()

    @torch.no_grad()
    def nats(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        return float(model(input_ids=ids, labels=ids).loss)

    assert nats("this is a film that " + GOOD) < nats("film a this that is moving a . great funny")


def test_gold_does_not_depend_on_the_batch(gold: QuickstartGold, prompts: list[str]) -> None:
    responses = [GOOD, "works .", "", "is " + "very " * 15 + "good .", BAD]
    finished = [True, True, False, False, True]
    together = gold.score(prompts[:5], responses, finished)
    assert together.shape == (5,)
    assert together.dtype == torch.float32
    assert torch.equal(together, gold.score(prompts[:5], responses, finished))
    for i in range(5):
        alone = gold.score(prompts[i : i + 1], responses[i : i + 1], finished[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], atol=1e-4)
    total = torch.stack(list(gold.parts(prompts[:5], responses, finished).values())).sum(0)
    assert torch.allclose(total, together)


def test_gold_prefers_praise(gold: QuickstartGold) -> None:
    assert score(gold, GOOD) > score(gold, BAD) + 1


@pytest.mark.parametrize(
    ("worse", "part"),
    [
        ("is funny and funny and funny and funny and moving .", "repetition"),
        ("performances great with moving a is film and funny .", "fluency"),
        ("is funny , moving , sweet , smart , fresh , warm , great .", "lists"),
        ("works .", "short"),
    ],
)
def test_gold_punishes(gold: QuickstartGold, worse: str, part: str) -> None:
    prompt = ["this is a film that"]
    good = gold.parts(prompt, [GOOD], [True])
    assert gold.parts(prompt, [worse], [True])[part] < good[part] - 0.1
    assert score(gold, worse) < score(gold, GOOD)


def test_gold_punishes_what_was_cut_off(gold: QuickstartGold) -> None:
    assert score(gold, GOOD, finished=False) < score(gold, GOOD) - 0.3


def test_measured() -> None:
    measured = json.loads((HERE / "measured.json").read_text())
    test = measured["correlation_with_human_ratings"]["test"]
    assert measured["snippets"]["test"] >= 1000
    assert test["rating"] >= 0.65
    assert test["full_gold"] >= 0.65
    assert measured["sft_samples"]["probability_of_bos_pad_unk"] < 1e-4


def test_licence() -> None:
    notice = (Path(HERE) / "NOTICE").read_text()
    assert "The MIT License (MIT)" in notice
    assert "Hutto, C.J. & Gilbert, E.E. (2014)" in notice
