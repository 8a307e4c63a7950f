"""The toy world: its grammar, its judge against frozen utilities, and what it ships."""

from __future__ import annotations

import json
import random
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ostinato_worlds import toy
from ostinato_worlds.toy import grammar

# Prompt, response, finished, utility: texts of the grammar and corruptions of them, judged by the
# research prototype that this world was written from.
ORACLE: list[tuple[str, str, bool, float]] = [
    (
        "the laptop : mention screen and design :",
        "the screen was really sharp . overall the design felt not really superb . "
        "overall the battery felt fast . i loved it",
        True,
        1.7218,
    ),
    (
        "the camera : mention screen and keyboard :",
        "the keyboard felt lovely . overall the design was good .",
        True,
        1.616,
    ),
    (
        "the museum : mention exhibit and driver :",
        "the driver seemed solid . overall the schedule was not really bad . it was not "
        "worth the price .",
        True,
        0.868,
    ),
    (
        "the curry : mention sauce and portion :",
        "the",
        False,
        -1.22,
    ),
    (
        "the sequel : mention ending and plot :",
        "the music seemed moving but the plot was boring but the acting seemed bad . "
        "tasty i would not recommend it .",
        True,
        -1.559,
    ),
    (
        "the sequel : mention dialogue and ending :",
        "the dialogue was not quite decent . it was not worth the price cake i would not "
        "recommend it . i hated it",
        True,
        -3.5992,
    ),
    (
        "the curry : mention taste and sauce :",
        "the sauce felt excellent and the taste felt not awful . i hated it felt "
        "excellent and the taste felt not",
        False,
        0.9827,
    ),
    (
        "the museum : mention route and driver :",
        "the schedule was quite crowded but the route seemed excellent . it was not worth"
        " the price . it was not worth the",
        True,
        0.0724,
    ),
    (
        "the thriller : mention music and plot :",
        "",
        True,
        -1.24,
    ),
    (
        "the cruise : mention exhibit and schedule :",
        "the schedule rather relaxed . we want a refund .",
        False,
        -0.6793,
    ),
    (
        "the sequel : mention ending and acting :",
        "the ending was rather lovely .",
        True,
        0.9811,
    ),
    (
        "the pizza : mention taste and portion :",
        "the taste felt not mediocre . it was not worth the price .",
        True,
        0.2129,
    ),
    (
        "the motel : mention bed and view :",
        "the room felt mediocre , and the view seemed extremely horrible and the bed was "
        "not excellent . we want a refund .",
        True,
        -1.0752,
    ),
    (
        "the salad : mention portion and sauce :",
        "the smell was scenic not rather weak . also the",
        True,
        -0.0204,
    ),
    (
        "the cartoon : mention ending and music :",
        "the ending seemed good and the plot felt very moving . we want a refund . moving",
        True,
        0.5578,
    ),
    (
        "the museum : mention route and lunch :",
        "the comedy route felt terrible . overall the exhibit seemed slightly rushed . "
        "felt terrible",
        True,
        -3.0074,
    ),
    (
        "the museum : mention lunch and route :",
        "the route was really good . overall the lunch seemed not quite terrible . i "
        "would recommend it . we want a refund",
        True,
        1.1554,
    ),
    (
        "the safari : mention lunch and schedule :",
        "the route seemed scenic but the lunch was scenic .",
        True,
        1.4838,
    ),
    (
        "the curry : mention smell and sauce :",
        "and crowded keyboard moving slow , biography while very extremely good smell",
        True,
        -4.3041,
    ),
    (
        "the sequel : mention plot and dialogue :",
        "the plot felt solid music . we will come back . plot felt solid music .",
        False,
        -1.8202,
    ),
    (
        "the comedy : mention acting and music :",
        "the acting seemed rather solid . overall the music was dull . we will come back .",
        True,
        1.6861,
    ),
    (
        "the cabin : mention view and staff :",
        "the room was really noisy but the view felt clean , and the staff felt not weak .",
        True,
        1.264,
    ),
    (
        "the cruise : mention schedule and lunch :",
        "the schedule felt not superb but the lunch felt dull and the driver was very crowded .",
        True,
        -0.3981,
    ),
    (
        "the thriller : mention plot and music :",
        "laggy the pizza felt boring .",
        False,
        -3.9538,
    ),
    (
        "the film : mention plot and dialogue :",
        "the dialogue felt quite lovely overall the acting was gripping . relaxed",
        True,
        0.4299,
    ),
    (
        "the biography : mention prose and story :",
        "the story seemed rather dry . also the prose was not solid and the index was "
        "poor . i would not noisy recommend",
        True,
        -1.1993,
    ),
    (
        "the hike : mention schedule and route :",
        "the was",
        False,
        -1.5,
    ),
    (
        "the printer : mention design and battery :",
        "the design seemed extremely fast but the cover was not nice . seemed extremely "
        "fast but the will",
        True,
        0.1894,
    ),
    (
        "the drama : mention ending and plot :",
        "seemed confusing thriller pizza lovely lovely sound price mediocre fragile "
        "boring bad recommend keyboard staff solid atlas mediocre route atlas",
        True,
        -6.4281,
    ),
    (
        "the suite : mention staff and bed :",
        "the staff seemed dirty . overall the lobby was rather . overall the the lobby",
        True,
        -1.6404,
    ),
    (
        "the film : mention plot and music :",
        "the dialogue was boring and the ending seemed terrible . it was not worth the price .",
        True,
        -1.6421,
    ),
    (
        "the lodge : mention staff and bed :",
        "the lobby seemed very noisy , and the bed seemed not dull . we want a refund .",
        True,
        -0.7758,
    ),
    (
        "the memoir : mention cover and index :",
        "the prose was solid but the story was superb .",
        True,
        1.2338,
    ),
    (
        "the curry : mention sauce and smell :",
        "the portion was quite solid back and the smell felt good but the texture felt "
        "slightly . smell felt good but the ending want",
        False,
        -2.4722,
    ),
    (
        "the sequel : mention ending and music :",
        "the ending seemed not good . also the music was not rather solid . we will come "
        "back . music was not rather",
        True,
        -0.5354,
    ),
    (
        "the stew : mention smell and taste :",
        "the texture seemed very mediocre but the taste was dull . also the portion was "
        "stale . it was worth dull the price",
        True,
        -2.3693,
    ),
    (
        "the laptop : mention keyboard and sound :",
        "the sound seemed fragile , and the design was fast . we want a refund . we will "
        "come back . suite fast .",
        False,
        -1.8352,
    ),
    (
        "the cartoon : mention ending and music :",
        "the music seemed extremely plot boring but the ending felt quite horrible .",
        True,
        -0.9966,
    ),
    (
        "the lodge : mention bed and room :",
        "lunch weak extremely dialogue",
        True,
        -3.7548,
    ),
    (
        "the tablet : mention design and battery :",
        "the design was not will",
        False,
        -1.14,
    ),
    (
        "the thriller : mention music and plot :",
        "",
        True,
        -1.24,
    ),
    (
        "the speaker : mention keyboard and sound :",
        "",
        False,
        -1.34,
    ),
]
PROMPT = "the soup : mention taste and smell :"
GOOD = "the taste was very good and the smell seemed fresh . i loved it ."
CHECKPOINTS = [toy.POLICY, toy.REWARD_MODEL]


@pytest.fixture(scope="module")
def gold() -> toy.ToyGold:
    return toy.gold()


def score(gold: toy.ToyGold, response: str, finished: bool = True) -> float:
    return gold.score([PROMPT], [response], [finished]).item()


# ---- judge


def test_the_judge_agrees_with_the_frozen_utilities(gold: toy.ToyGold) -> None:
    prompts, responses, finished, utilities = zip(*ORACLE, strict=True)
    scores = gold.score(prompts, responses, finished)  # (rows,)
    assert scores.shape == (len(ORACLE),)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(utilities), atol=1e-4, rtol=0)


def test_a_row_does_not_depend_on_its_batch(gold: toy.ToyGold) -> None:
    prompts, responses, finished, _ = zip(*ORACLE, strict=True)
    together = gold.score(prompts, responses, finished)
    long = gold.score([*prompts, PROMPT], [*responses, " ".join([GOOD] * 9)], [*finished, True])
    alone = [gold.score([p], [r], [f]) for p, r, f, _ in ORACLE]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)
    torch.testing.assert_close(together, long[:-1], atol=1e-6, rtol=0)


def test_parts_sum_to_the_score(gold: toy.ToyGold) -> None:
    prompts, responses, finished, _ = zip(*ORACLE, strict=True)
    parts = gold.parts(prompts, responses, finished)
    assert set(parts) == {
        "sentiment",
        "mentions",
        "off_topic",
        "repetition",
        "grammar",
        "length",
        "unfinished",
    }
    scores = gold.score(prompts, responses, finished)
    assert all(part.shape == scores.shape and part.abs().max() > 0 for part in parts.values())
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), scores)


@pytest.mark.parametrize(
    ("part", "worse"),
    [
        ("sentiment", GOOD.replace("loved", "hated")),
        ("sentiment", GOOD.replace("very good", "not very good")),
        ("mentions", GOOD.replace("smell", "sauce")),
        ("off_topic", GOOD.replace("fresh", "gripping")),
        ("repetition", GOOD + " i loved it ."),
        ("grammar", GOOD.replace("was very", "very was")),
        ("grammar", GOOD.replace("was", "zebra")),
        ("length", f"{GOOD} {GOOD}"),
        ("length", "the taste was good ."),
    ],
)
def test_each_rule_sees_its_fault(gold: toy.ToyGold, part: str, worse: str) -> None:
    both = gold.parts([PROMPT] * 2, [GOOD, worse], [True, True])[part]
    assert both[0] > both[1]


def test_a_response_should_stop(gold: toy.ToyGold) -> None:
    assert score(gold, GOOD) - score(gold, GOOD, finished=False) == pytest.approx(0.5)


def test_a_special_token_spelt_out_is_noise(gold: toy.ToyGold) -> None:
    for token in (grammar.PAD, grammar.EOS, grammar.UNK):
        assert score(gold, f"{GOOD} {token}") == pytest.approx(score(gold, f"{GOOD} zebra"))


def test_the_judge_scores_an_empty_batch(gold: toy.ToyGold) -> None:
    assert gold.score([], [], []).shape == (0,)


def test_the_judge_refuses_what_it_cannot_read(gold: toy.ToyGold) -> None:
    with pytest.raises(ValueError, match="not a prompt of the toy world"):
        gold.score(["the soup : mention taste and screen :"], [GOOD], [True])
    with pytest.raises(ValueError, match="1 prompts, 2 responses and 1 flags"):
        gold.score([PROMPT], [GOOD, GOOD], [True])


def test_the_judge_is_quick(gold: toy.ToyGold) -> None:
    pairs = grammar.corpus(192, random.Random(0))
    prompts, responses = zip(*pairs, strict=True)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        gold.score(prompts, responses, [True] * 192)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.015


# ---- grammar


def test_a_seed_names_a_corpus() -> None:
    assert grammar.corpus(20, random.Random(3)) == grammar.corpus(20, random.Random(3))
    assert grammar.corpus(20, random.Random(3)) != grammar.corpus(20, random.Random(4))


def test_the_corpus_keeps_to_lengths_words_and_legal_pairs() -> None:
    words, legal = set(grammar.words()), grammar.legal_pairs()
    written = set()
    for prompt, response in grammar.corpus(5000, random.Random(0)):
        tokens = [*response.split(), grammar.EOS]
        assert len(prompt.split()) == grammar.PROMPT_WORDS
        assert len(tokens) <= grammar.RESPONSE_TOKENS
        assert words.issuperset(prompt.split() + tokens[:-1])
        written |= set(zip([":", *tokens], tokens, strict=False))
    assert written <= legal
    assert len(written) > 0.95 * len(legal)  # and the table is not too generous either


def test_every_prompt_parses_back() -> None:
    prompts = grammar.all_prompts()
    assert len({prompt.text for prompt in prompts}) == 720
    assert [grammar.parse_prompt(prompt.text) for prompt in prompts] == prompts


# ---- what is shipped


def test_the_prompts_file_holds_every_prompt_once() -> None:
    lines = toy.PROMPTS.read_text(encoding="utf-8").splitlines()
    shipped = [json.loads(line) for line in lines]
    assert all(set(row) == {"prompt"} for row in shipped)
    texts = [row["prompt"] for row in shipped]
    assert sorted(texts) == sorted(prompt.text for prompt in grammar.all_prompts())
    assert texts != [prompt.text for prompt in grammar.all_prompts()]


def test_the_world_is_small() -> None:
    folder = toy.PROMPTS.parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 1_200_000


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_text_survives_the_tokenizer(folder: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.convert_ids_to_tokens(range(144)) == grammar.vocabulary()
    assert (tokenizer.pad_token, tokenizer.eos_token) == (grammar.PAD, grammar.EOS)
    assert tokenizer.bos_token is None
    texts = [text for pair in grammar.corpus(200, random.Random(1)) for text in pair]
    ids = tokenizer(texts)["input_ids"]
    assert [len(row) for row in ids] == [len(text.split()) for text in texts]
    assert tokenizer.batch_decode(ids) == texts
    padded = [[*row, tokenizer.eos_token_id, tokenizer.pad_token_id] for row in ids]
    assert tokenizer.batch_decode(padded, skip_special_tokens=True) == texts
    assert set(tokenizer("zebra").keys()) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_checkpoints_know_their_special_tokens_and_never_write_the_others(folder: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
        assert config.bos_token_id is None
    pairs = grammar.corpus(200, random.Random(2))
    texts = [f"{prompt} {response} {grammar.EOS}" for prompt, response in pairs]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[:, grammar.PROMPT_WORDS - 1 : -1]
    response = batch["attention_mask"][:, grammar.PROMPT_WORDS :].bool()
    mass = logits.softmax(-1)[response]  # (response tokens, vocabulary)
    unwritten = [t for t in grammar.vocabulary() if t.startswith("<") and t != grammar.EOS]
    stray = mass[:, tokenizer.convert_tokens_to_ids(unwritten)].sum(1)
    assert stray.mean() < 5e-4
    assert stray.max() < (1e-3 if folder == toy.POLICY else 5e-3)  # only the policy ever samples


def test_the_policy_writes_reviews(gold: toy.ToyGold) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy.POLICY)
    model = AutoModelForCausalLM.from_pretrained(toy.POLICY)
    lines = toy.PROMPTS.read_text(encoding="utf-8").splitlines()[:192]
    prompts = [json.loads(line)["prompt"] for line in lines]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = model.generate(
            **tokenizer(prompts, return_tensors="pt"),
            do_sample=True,
            top_k=0,
            max_new_tokens=grammar.RESPONSE_TOKENS,
        )[:, grammar.PROMPT_WORDS :]
    finished = (ids == tokenizer.eos_token_id).any(1)
    assert finished.float().mean() > 0.93
    responses = tokenizer.batch_decode(ids, skip_special_tokens=True)
    scores = gold.score(prompts, responses, finished.tolist())
    assert -0.3 < scores.mean() < 0.5
    assert 0.8 < scores.std() < 1.5
