"""Rebuild every artefact of the quickstart world from vaderSentiment's source distribution.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python worlds/build_quickstart.py --source vaderSentiment-3.3.2.tar.gz --out DIR

The distribution holds 10,605 movie-review snippets with the mean of 20 human ratings each. They
are split once into train, dev (where every choice was made) and test (only measured, at the end of
this script). Seeds and step counts are fixed; one thread, about 15 minutes.
"""

import argparse
import copy
import io
import json
import math
import random
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from ostinato_worlds.quickstart import BOS, EOS, PAD, UNK, GoldModel, QuickstartGold, hash_pairs

SPECIAL = ["<bos>", "<eos>", "<pad>", "<unk>"]
VOCABULARY = 2500
TEST, DEV = 1200, 1000
PIECE = 24  # words in a piece: a prompt of 5 and a response of 19 words and <eos>
PROMPT_WORDS = (4, 5, 6)
RESPONSE = 20
BUCKETS = 1 << 15

TEMPERATURE = 0.75  # built into the policy: at 1 a model of this size wanders off in mid-sentence
WORD_DROPOUT = 0.1
LM_WEIGHT = 0.5
SAMPLING = GenerationConfig(
    do_sample=True,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    max_new_tokens=RESPONSE,
    bos_token_id=BOS,
    eos_token_id=EOS,
    pad_token_id=PAD,
)

# How the gold's terms are weighed; units are standard deviations of the predicted rating.
TERMS = {
    "rating_limit": 3.0,
    "fluency": 1.0,
    "gain_floor": -3.0,
    "gain_cap": 2.5,
    "repetition": -0.5,
    "lists": -0.4,
    "commas_free": 3.0,
    "unfinished": -1.0,
    "short": -0.3,
    "short_below": 4.0,
}
STOP_WORDS = 60
FLUENCY_QUANTILE = 0.4  # of human dev texts; what is as fluent as that is not penalised
RIDGE = 0.5

GENERAL_SHARE = 0.4  # of a language model's steps also see Amazon reviews and editorials
# hidden size, layers, steps, learning rate, dropout
POLICY = (96, 2, 3300, 3e-3, 0.15)
REWARD_MODEL = (64, 2, 2000, 4e-3, 0.1)
GOLD = (128, 3, 2700, 2e-3, 0.15)
REGRESSION = (700, 7e-4, 0.25)  # steps, learning rate, dropout

NOTICE = """\
The models and prompts in this folder were derived from the movie-review snippets and human ratings
in the source distribution of vaderSentiment 3.3.2 (additional_resources/hutto_ICWSM_2014.tar.gz),
whose authors ask to be cited:

  Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis
  of Social Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14).
  Ann Arbor, MI, June 2014.

vaderSentiment is distributed under this licence:

"""

MOVIES = "movieReviewSnippets"
GENERAL = ("amazonReviewSnippets", "nytEditorialSnippets")
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[.,!?;:]")
STOPS, BREAKS = set(".!?"), set(".!?,;:")


@dataclass(frozen=True)
class Rated:
    """A text, as words, and the mean of its human ratings."""

    words: tuple[str, ...]
    rating: float


# --- text ---------------------------------------------------------------------------------------


def split_words(text: str) -> tuple[str, ...]:
    """Lower-cased words and punctuation; in these files three or more spaces stood for a dash."""
    text = text.lower().replace("''", " ").replace("/", " ")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"\s{3,}|--+", " , ", text.strip())
    words: list[str] = []
    for word in WORD.findall(text):
        if word not in BREAKS or (words and words[-1] not in BREAKS):
            words.append(word)
    return tuple(words)


def read_rated(archive: tarfile.TarFile, name: str) -> list[Rated]:
    """One of the corpora, without repeated texts, in the order of the file."""
    member = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
    assert member is not None
    seen: set[tuple[str, ...]] = set()
    rated: list[Rated] = []
    for line in io.TextIOWrapper(member, encoding="latin1"):
        columns = line.rstrip("\n").split("\t")
        words = split_words(columns[2]) if len(columns) > 2 else ()
        key = tuple(word for word in words if word not in BREAKS)
        if len(key) >= 3 and key not in seen:
            seen.add(key)
            rated.append(Rated(words, float(columns[1])))
    return rated


def read_source(source: Path) -> tuple[dict[str, list[Rated]], str]:
    """The rated corpora and the licence in vaderSentiment's source distribution."""
    with tarfile.open(source) as outer:
        root = outer.getnames()[0].split("/")[0]

        def read(name: str) -> bytes:
            member = outer.extractfile(f"{root}/{name}")
            assert member is not None
            return member.read()

        data = read("additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(data)) as inner:
            corpora = {name: read_rated(inner, name) for name in (MOVIES, *GENERAL)}
        return corpora, read("LICENSE.txt").decode()


def pieces(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Cut a snippet at punctuation into sentences of 6 to PIECE words that end in . ! or ?

    Where no punctuation comes in time, the piece is the first PIECE words, without an end.
    """
    start = 0
    while start < len(words):
        breaks = [i for i in range(start + 7, len(words)) if words[i] in BREAKS]
        stop = next((i for i in breaks if words[i] in STOPS), len(words))
        if stop - start < PIECE:
            end = stop
        else:
            within = [i for i in breaks if i - start < PIECE]
            end = within[-1] if within else next(iter(breaks), len(words))
        if end - start < PIECE:
            last = words[end] if end < len(words) and words[end] in STOPS else "."
            body = words[start : end - (words[end - 1] in BREAKS)]
            if len(body) >= 5:
                yield (*body, last)
        else:
            yield tuple(words[start : start + PIECE])
        start = end + 1


def make_tokenizer(texts: Iterable[Sequence[str]]) -> PreTrainedTokenizerFast:
    counts = Counter(word for text in texts for word in text)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {w: i for i, w in enumerate(SPECIAL + ranked[: VOCABULARY - len(SPECIAL)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        padding_side="left",
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[Sequence[str]], *, eos: bool
) -> Tensor:
    """Right-padded ids (N, T) with <bos> before each text and, if asked, <eos> after a full one."""
    vocabulary = tokenizer.get_vocab()
    rows = [[BOS, *(vocabulary.get(word, UNK) for word in text)] for text in texts]
    if eos:
        rows = [row + [EOS] * (text[-1] in STOPS) for row, text in zip(rows, texts, strict=True)]
    length = max(map(len, rows))
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


# --- language models ----------------------------------------------------------------------------


def neox_config(hidden: int, layers: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def set_dropout(model: nn.Module, p: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        elif hasattr(module, "attention_dropout"):
            vars(module)["attention_dropout"] = p


def next_token_log_probs(model: GPTNeoXForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, V) where something is to be predicted in ids (B, T), and what (N,).

    <unk>, <pad> and <bos> are never targets: the model learns the distribution of the next known
    word, so sampling never yields them.
    """
    ids = ids[:, : int((ids != PAD).sum(1).max())]
    targets = ids[:, 1:]
    wanted = (targets != PAD) & (targets != UNK)
    hidden = model.gpt_neox(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return model.lm_head(hidden[wanted]).log_softmax(-1), targets[wanted]


@torch.no_grad()
def nats_per_token(model: GPTNeoXForCausalLM, ids: Tensor) -> float:
    losses = [
        F.nll_loss(*next_token_log_probs(model, chunk), reduction="none")
        for chunk in ids.split(256)
    ]
    return float(torch.cat(losses).mean())


def stack_padded(a: Tensor, b: Tensor) -> Tensor:
    """Two sets of right-padded ids, one below the other."""
    width = max(a.shape[1], b.shape[1])
    return torch.cat([F.pad(x, (0, width - x.shape[1]), value=PAD) for x in (a, b)])


def batches(ids: Tensor, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of `steps` batches: epochs in random order, texts of like length together."""
    lengths = (ids != PAD).sum(1)
    while True:
        noise = torch.rand(len(ids), generator=generator) * 6
        order = (lengths + noise).argsort()
        order = order[len(order) % size :].view(-1, size)
        for row in order[torch.randperm(len(order), generator=generator)]:
            yield row
            steps -= 1
            if not steps:
                return


def cosine(step: int, steps: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def train_language_model(
    hidden: int,
    layers: int,
    steps: int,
    lr: float,
    dropout: float,
    train: Tensor,
    general: Tensor,
    dev: Tensor,
) -> GPTNeoXForCausalLM:
    """A language model of the ids train (N, T), begun on these and general ones together.

    dev is for the log only.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = GPTNeoXForCausalLM(neox_config(hidden, layers))
    model.train()
    set_dropout(model, dropout)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.98), fused=True
    )
    everything = stack_padded(train, general)
    begin = int(steps * GENERAL_SHARE)
    schedule = chain(
        (everything[rows] for rows in batches(everything, 64, begin, generator)),
        (train[rows] for rows in batches(train, 64, steps - begin, generator)),
    )
    for step, ids in enumerate(schedule):
        optimizer.param_groups[0]["lr"] = lr * cosine(step, steps, 100)
        log_probs, targets = next_token_log_probs(model, ids)
        loss = F.nll_loss(log_probs, targets)
        # What is never a target is only ever pushed down in proportion to its probability, and
        # <unk>, a frequent input with tied embeddings, would stay at a few in ten thousand.
        stray = (log_probs[:, [BOS, PAD, UNK]] + 12).clamp(min=0).mean()
        optimizer.zero_grad()
        (loss + 0.05 * stray).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, steps // 5) == 0:
            model.eval()
            print(
                f"  {hidden}x{layers} step {step + 1}: {nats_per_token(model, dev):.3f}", flush=True
            )
            model.train()
    set_dropout(model, 0.0)
    model.eval()
    return model


def sharpen(model: GPTNeoXForCausalLM, temperature: float) -> None:
    """Divide the model's logits by a temperature, for good: they are linear in the last norm."""
    with torch.no_grad():
        for parameter in model.gpt_neox.final_layer_norm.parameters():
            parameter.div_(temperature)


@torch.no_grad()
def sample(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> tuple[list[str], list[bool], float]:
    """Responses, whether each finished, and the mean probability of <bos>, <pad> and <unk>."""
    torch.manual_seed(2)
    untyped: Any = model  # the declared types of generate do not cover what it returns
    settings = copy.deepcopy(SAMPLING)
    settings.update(return_dict_in_generate=True, output_logits=True)
    texts: list[str] = []
    finished: list[bool] = []
    stray: list[float] = []
    for start in range(0, len(prompts), 256):
        batch = tokenizer(list(prompts[start : start + 256]), return_tensors="pt", padding=True)
        out = untyped.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=settings,
        )
        response = out.sequences[:, batch["input_ids"].shape[1] :]  # (B, T)
        texts += tokenizer.batch_decode(response, skip_special_tokens=True)
        finished += (response == EOS).any(1).tolist()
        running = (response != PAD).T  # (T, B)
        probs = torch.stack(out.logits).softmax(-1)[..., [BOS, PAD, UNK]].sum(-1)
        stray += probs[running].tolist()
    return texts, finished, float(np.mean(stray))


# --- gold ---------------------------------------------------------------------------------------


def word_mask(ids: Tensor) -> Tensor:
    return ((ids != BOS) & (ids != EOS) & (ids != PAD)).float()


def unigram_log_probs(ids: Tensor) -> Tensor:
    """Log-frequencies (V,) of the words and <eos> in ids, with one added to each."""
    counts = torch.bincount(ids.flatten(), minlength=VOCABULARY).float()
    counts[[BOS, PAD, UNK]] = 0
    return ((counts + 1) / (counts + 1).sum()).log()


def fit_linear(gold: GoldModel, ids: Tensor, ratings: Tensor, ridge: float) -> None:
    """Ridge regression of ratings (N,) on words and hashed pairs, as `linear_rating` uses them."""
    mask = word_mask(ids).bool()
    pair_mask = mask[:, 1:] & mask[:, :-1]
    pairs = hash_pairs(ids, gold.pair.num_embeddings) + VOCABULARY
    count = (mask.sum(1) + pair_mask.sum(1)).clamp(min=1)
    row = torch.cat([mask.nonzero()[:, 0], pair_mask.nonzero()[:, 0]])
    column = torch.cat([ids[mask], pairs[pair_mask]])
    shape = (len(ids), VOCABULARY + gold.pair.num_embeddings)
    features = csr_matrix(
        (count[row].float().rsqrt().numpy(), (row.numpy(), column.numpy())), shape
    )
    mean = ratings.mean()
    solution = lsqr(features, (ratings - mean).numpy(), damp=math.sqrt(ridge), iter_lim=80)[0]
    weights = torch.from_numpy(solution).float()[:, None]
    with torch.no_grad():
        gold.word.weight.copy_(weights[:VOCABULARY])
        gold.pair.weight.copy_(weights[VOCABULARY:])
        gold.bias.copy_(mean)


def fit_transformer(
    gold: GoldModel, ids: Tensor, ratings: Tensor, steps: int, lr: float, dropout: float
) -> None:
    """Train the body on ratings (N,) of ids (N, T) while it goes on as a language model of them."""
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    nn.init.normal_(gold.head.weight, std=0.02)
    nn.init.constant_(gold.head.bias, float(ratings.mean()))
    trained = [*gold.lm.parameters(), *gold.head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.1, betas=(0.9, 0.98), fused=True)
    gold.train()
    set_dropout(gold, dropout)
    for step, rows in enumerate(batches(ids, 64, steps, generator)):
        optimizer.param_groups[0]["lr"] = lr * cosine(step, steps, 50)
        clean = ids[rows][:, : int((ids[rows] != PAD).sum(1).max())]
        mask = word_mask(clean)
        hidden_word = (torch.rand(clean.shape) < WORD_DROPOUT) & mask.bool()
        hidden = gold.hidden(clean.masked_fill(hidden_word, UNK))
        targets = clean[:, 1:]
        wanted = (targets != PAD) & (targets != UNK)
        nats = -gold.log_probs(hidden, clean, wanted).sum() / wanted.sum()
        error = F.mse_loss(gold.transformer_rating(hidden, mask), ratings[rows])
        optimizer.zero_grad()
        (error + LM_WEIGHT * nats).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    set_dropout(gold, 0.0)
    gold.eval()


@torch.no_grad()
def ratings_of(gold: GoldModel, ids: Tensor) -> dict[str, Tensor]:
    mask = word_mask(ids)
    transformer = torch.cat(
        [
            gold.transformer_rating(gold.hidden(i), m)
            for i, m in zip(ids.split(256), mask.split(256), strict=True)
        ]
    )
    linear = gold.linear_rating(ids, mask)
    return {"transformer": transformer, "linear": linear, "rating": (transformer + linear) / 2}


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def build_gold(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    gold: GoldModel,
    train: Sequence[Rated],
    dev: Sequence[Rated],
    policy_samples: tuple[list[str], list[str], list[bool]],
) -> QuickstartGold:
    """Write the gold's weights and settings, on the scale of the SFT policy's samples."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    weights = {n: w.half().contiguous() for n, w in gold.state_dict().items() if "lm_head" not in n}
    save_file(weights, directory / "gold.safetensors")
    counts = Counter(word for rated in train for word in rated.words)
    vocabulary = tokenizer.get_vocab()
    common = [vocabulary[word] for word, _ in counts.most_common(STOP_WORDS)]
    neutral = {"fluency_floor": 0.0, "rating_std": 1.0, "mean": 0.0, "std": 1.0}
    terms = TERMS | neutral | {"comma": float(vocabulary[","])}
    settings = {
        "terms": terms,
        "stop_words": sorted(common),
        "buckets": gold.pair.num_embeddings,
        "config": gold.lm.config.to_diff_dict(),
    }

    def write() -> QuickstartGold:
        (directory / "gold.json").write_text(json.dumps(settings, indent=1) + "\n")
        return QuickstartGold(directory)

    scorer = write()
    raw = scorer.measure(*policy_samples)
    terms["rating_std"] = float(raw["rating"].std())
    human = scorer.measure(*as_continuations(dev))
    terms["fluency_floor"] = float(human["fluency"].quantile(FLUENCY_QUANTILE))
    score = write().score(*policy_samples)
    terms["mean"], terms["std"] = float(score.mean()), float(score.std())
    return write()


def as_continuations(rated: Sequence[Rated]) -> tuple[list[str], list[str], list[bool]]:
    """Human texts as if their first words, five at most, were the prompt; all end in . ! or ?"""
    prompts, responses = [], []
    for r in rated:
        words = r.words if r.words[-1] in STOPS else (*r.words, ".")
        cut = min(5, len(words) // 2)
        prompts.append(" ".join(words[:cut]))
        responses.append(" ".join(words[cut:]))
    return prompts, responses, [True] * len(rated)


def make_prompts(
    train: Iterable[tuple[str, ...]], test: Iterable[tuple[str, ...]], known: set[str]
) -> list[str]:
    """Distinct beginnings of training sentences, none of which begins a test sentence."""
    draw = random.Random(5)
    held_out = {piece[:n] for piece in test for n in PROMPT_WORDS}
    prompts: dict[str, None] = {}
    for piece in train:
        prefix = piece[: draw.choice(PROMPT_WORDS)]
        if set(prefix) <= known - STOPS and prefix not in held_out:
            prompts[" ".join(prefix)] = None
    return list(prompts)


def correlations(
    scorer: QuickstartGold, tokenizer: PreTrainedTokenizerFast, rated: Sequence[Rated]
) -> dict[str, float]:
    """Pearson correlation of each predictor with the human ratings."""
    human = torch.tensor([r.rating for r in rated])
    predicted = ratings_of(scorer.model, encode(tokenizer, [r.words for r in rated], eos=False))
    predicted["full_gold"] = scorer.score(*as_continuations(rated))
    return {name: round(pearson(value, human), 4) for name, value in predicted.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("--out", type=Path, required=True, help="the folder to fill")
    arguments = parser.parse_args()
    out: Path = arguments.out
    torch.set_num_threads(1)

    corpora, licence = read_source(arguments.source)
    rated = corpora[MOVIES]
    random.Random(0).shuffle(rated)
    test, dev, train = rated[:TEST], rated[TEST : TEST + DEV], rated[TEST + DEV :]
    sentences = {
        name: [piece for r in part for piece in pieces(r.words)]
        for name, part in (("train", train), ("dev", dev), ("test", test))
    }
    print(f"snippets: {len(train)} train, {len(dev)} dev, {len(test)} test")
    tokenizer = make_tokenizer([r.words for r in train])
    prompts = make_prompts(sentences["train"], sentences["test"], set(tokenizer.get_vocab()))
    print(f"prompts: {len(prompts)}")
    ids = {name: encode(tokenizer, texts, eos=True) for name, texts in sentences.items()}
    general = encode(
        tokenizer, [p for name in GENERAL for r in corpora[name] for p in pieces(r.words)], eos=True
    )
    nats: dict[str, dict[str, float]] = {}

    policy = train_language_model(*POLICY, ids["train"], general, ids["dev"])
    nats["policy"] = {name: nats_per_token(policy, ids[name]) for name in ("train", "dev")}
    sharpen(policy, TEMPERATURE)
    nats["policy"]["dev_as_shipped"] = nats_per_token(policy, ids["dev"])
    start = train_language_model(*REWARD_MODEL, ids["train"], general, ids["dev"])
    nats["reward_model"] = {name: nats_per_token(start, ids[name]) for name in ("train", "dev")}
    for name, model in (("policy", policy), ("reward_model", start)):
        model.generation_config = SAMPLING
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    (out / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    )
    (out / "NOTICE").write_text(NOTICE + licence.strip() + "\n")

    some = random.Random(6).sample(prompts, 1024)
    responses, finished, stray = sample(policy, tokenizer, some)

    whole = [r.words for r in train]
    gold = GoldModel(neox_config(*GOLD[:2]), BUCKETS)
    gold.lm = train_language_model(
        *GOLD, encode(tokenizer, sentences["train"] + whole, eos=True), general, ids["dev"]
    )
    snippets, ratings = encode(tokenizer, whole, eos=True), torch.tensor([r.rating for r in train])
    gold.unigram.data = unigram_log_probs(ids["train"])
    fit_linear(gold, snippets, ratings, RIDGE)
    fit_transformer(gold, snippets, ratings, *REGRESSION)
    nats["gold"] = {name: nats_per_token(gold.lm, ids[name]) for name in ("train", "dev")}
    scorer = build_gold(out / "gold", tokenizer, gold, train, dev, (some, responses, finished))

    parts = scorer.parts(some, responses, finished)
    human = scorer.parts(*as_continuations(dev))
    known = {" ".join(piece) for piece in sentences["train"]}
    texts = [f"{p} {r}" for p, r in zip(some, responses, strict=True)]
    measured = {
        "snippets": {"train": len(train), "dev": len(dev), "test": len(test)},
        "prompts": len(prompts),
        "nats_per_token": nats,
        "unknown_words": float((ids["dev"] == UNK).sum() / (ids["dev"] != PAD).sum()),
        "sft_samples": {
            "finished": float(np.mean(finished)),
            "words": float(np.mean([len(r.split()) for r in responses])),
            "verbatim_from_training": float(np.mean([text in known for text in texts])),
            "probability_of_bos_pad_unk": stray,
            "parts": {name: float(part.mean()) for name, part in parts.items()},
        },
        "penalised_human_texts": {
            name: float((part < 0).float().mean())
            for name, part in human.items()
            if name != "sentiment"
        },
        "correlation_with_human_ratings": {
            "dev": correlations(scorer, tokenizer, dev),
            "test": correlations(scorer, tokenizer, test),
        },
    }
    measured = json.loads(json.dumps(measured), parse_float=lambda x: float(f"{float(x):.4g}"))
    (out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))
    for text, done in list(zip(texts, finished, strict=True))[:20]:
        print(" ", text, "" if done else "[unfinished]")


if __name__ == "__main__":
    main()
