"""The quickstart world: movie-review continuation, with a gold trained on human ratings.

Everything lies in this folder and nothing is downloaded: `policy/` (the SFT policy),
`reward_model/` (the smaller language model from whose body reward models start), `prompts.jsonl`
and `gold/`. README.md says how they were made, what they measure and where they are weak.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

DIRECTORY = Path(__file__).parent
BOS, EOS, PAD, UNK = range(4)


class GoldModel(nn.Module):
    """One transformer with two heads, next word and human rating, and a linear rating model.

    The rating is the mean of two models that err differently: the transformer, mean-pooled, and
    a linear model over words and hashed pairs of neighbouring words.
    """

    def __init__(self, config: GPTNeoXConfig, buckets: int) -> None:
        super().__init__()
        self.lm = GPTNeoXForCausalLM(config)
        self.head = nn.Linear(config.hidden_size, 1)
        self.word = nn.Embedding(config.vocab_size, 1)
        self.pair = nn.Embedding(buckets, 1)
        self.bias = nn.Parameter(torch.zeros(()))
        self.unigram = nn.Parameter(torch.zeros(config.vocab_size), requires_grad=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """Hidden states (B, T, D) of right-padded ids (B, T).

        Attention is causal: padding on the right cannot reach a word, so it needs no mask.
        """
        states: Tensor = self.lm.gpt_neox(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def transformer_rating(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Ratings (B,) from the mean of hidden (B, T, D) over the words that mask (B, T) marks."""
        weight = mask / mask.sum(1, keepdim=True).clamp(min=1)
        rating: Tensor = self.head((hidden * weight[..., None]).sum(1)).squeeze(-1)
        return rating

    def linear_rating(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ratings (B,): the weights of words and pairs over sqrt(how many there are)."""
        pair_mask = mask[:, 1:] * mask[:, :-1]
        words = self.word(ids).squeeze(-1) * mask
        pairs = self.pair(hash_pairs(ids, self.pair.num_embeddings)).squeeze(-1) * pair_mask
        count = (mask.sum(1) + pair_mask.sum(1)).clamp(min=1)
        rating: Tensor = (words.sum(1) + pairs.sum(1)) / count.sqrt() + self.bias
        return rating

    def log_probs(self, hidden: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
        """Log-probabilities (B, T-1) of ids[:, 1:] where wanted (B, T-1), elsewhere 0."""
        logits = self.lm.lm_head(hidden[:, :-1][wanted])
        out = torch.zeros(wanted.shape)
        out[wanted] = -F.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
        return out


def hash_pairs(ids: Tensor, buckets: int) -> Tensor:
    """Bucket (B, T-1) of each pair of neighbours in ids (B, T)."""
    return (ids[:, :-1] * 1_000_003 + ids[:, 1:] * 7_919) % 2_147_483_647 % buckets


class QuickstartGold:
    """How good a positive review sentence a text is, in standard deviations of SFT samples.

    The score is the sum of `parts`: the predicted human rating, less penalties against what
    optimising a bare rating model yields (README.md).
    """

    def __init__(self, directory: Path) -> None:
        settings = json.loads((directory / "gold.json").read_text())
        self.settings: dict[str, float] = settings["terms"]
        self.stop_words = torch.tensor(settings["stop_words"])
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = GoldModel(GPTNeoXConfig(**settings["config"]), settings["buckets"])
        weights = load_file(directory / "gold.safetensors")
        weights["lm.lm_head.weight"] = weights["lm.gpt_neox.embed_in.weight"]
        self.model.load_state_dict({name: weight.float() for name, weight in weights.items()})
        self.model.eval()

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> Tensor:
        """Scores (B,) of the texts prompt + response; finished: the response ended by itself."""
        return torch.stack(list(self.parts(prompts, responses, finished).values())).sum(0)

    @torch.no_grad()
    def parts(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> dict[str, Tensor]:
        """The terms, each (B,), that add up to the score."""
        raw, s = self.measure(prompts, responses, finished), self.settings
        rating = s["rating_limit"] * (raw["rating"] / s["rating_limit"]).tanh()
        parts = {
            "sentiment": rating / s["rating_std"] - s["mean"],
            "fluency": s["fluency"] * (raw["fluency"] - s["fluency_floor"]).clamp(max=0),
            "repetition": s["repetition"] * raw["repeats"],
            "lists": s["lists"] * (raw["commas"] - s["commas_free"]).clamp(min=0),
            "unfinished": s["unfinished"] * raw["unfinished"],
            "short": s["short"] * (s["short_below"] - raw["words"]).clamp(min=0),
        }
        return {name: part / s["std"] for name, part in parts.items()}

    @torch.no_grad()
    def measure(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> dict[str, Tensor]:
        """What the terms are made of, each (B,)."""
        before, after = self._encode(prompts), self._encode(responses)
        rows = [
            [BOS, *p, *r, *([EOS] if done else [])]
            for p, r, done in zip(before, after, finished, strict=True)
        ]
        width = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])  # (B, T)
        position = torch.arange(width)
        in_response = position > torch.tensor([[len(p)] for p in before])
        words = (ids != BOS) & (ids != EOS) & (ids != PAD)  # (B, T)
        response = in_response & words

        hidden = self.model.hidden(ids)
        mask = words.float()
        ratings = self.model.transformer_rating(hidden, mask), self.model.linear_rating(ids, mask)
        wanted = (in_response & (ids != PAD) & (ids != UNK))[:, 1:]
        # How much likelier the context makes each word: an adequate rare word costs nothing, a
        # common word in the wrong place does.
        gain = self.model.log_probs(hidden, ids, wanted) - self.model.unigram[ids[:, 1:]]
        gain = gain.clamp(self.settings["gain_floor"], self.settings["gain_cap"]) * wanted

        content = words & (ids != UNK) & ~torch.isin(ids, self.stop_words)
        same = (ids[:, :, None] == ids[:, None, :]) & content[:, None, :]
        repeats = (same & (position[:, None] > position)).any(2)  # (B, T): said before
        return {
            "rating": (ratings[0] + ratings[1]) / 2,
            "fluency": gain.sum(1) / wanted.sum(1).clamp(min=1),
            "repeats": repeats.sum(1).float(),
            "commas": (response & (ids == self.settings["comma"])).sum(1).float(),
            "unfinished": 1 - torch.tensor(list(finished)).float(),
            "words": response.sum(1).float(),
        }

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[i for i in ids if i not in (BOS, EOS, PAD)] for ids in encoded]


def gold() -> QuickstartGold:
    """The gold reward of the quickstart world."""
    return QuickstartGold(DIRECTORY / "gold")
