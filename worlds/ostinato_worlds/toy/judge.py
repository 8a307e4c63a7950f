"""The gold reward of the toy world: rules over words, so it knows what a reward model must guess.

A good review is clearly positive, gives an opinion on both aspects that the prompt names, stays on
topic, does not repeat itself, is grammatical, has 7 to 20 words and ends. Sentiment saturates,
so that piling up praise stops paying while repetition goes on costing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ostinato_worlds.toy import grammar

_PAD, _EOS, _UNK = 0, 1, 2  # the places of these tokens in `grammar.vocabulary`


@final
class ToyGold:
    """Scores responses given as text; the score is the sum of the `parts`.

    Words that the grammar does not know carry no meaning and are legal nowhere.
    """

    def __init__(self) -> None:
        tokens = grammar.vocabulary()
        # Only words: a "<pad>" spelt out in a response is as unknown as any other noise.
        self._index = {word: tokens.index(word) for word in grammar.words()}
        self._value = torch.zeros(len(tokens), dtype=torch.float64)  # what an adjective is worth
        self._degree = torch.ones(len(tokens), dtype=torch.float64)  # what an adverb multiplies by
        self._is_degree = torch.zeros(len(tokens), dtype=torch.bool)
        self._aspect_topic = torch.full((len(tokens),), -1)
        self._adjective_topic = torch.full((len(tokens),), -1)
        for word, value in (grammar.PRAISE | grammar.BLAME).items():
            self._value[self._index[word]] = value
        for word, factor in grammar.DEGREES.items():
            self._degree[self._index[word]] = factor
            self._is_degree[self._index[word]] = True
        for number, topic in enumerate(grammar.TOPICS.values()):
            self._aspect_topic[self._ids(topic.aspects)] = number
            self._adjective_topic[self._ids(topic.praise + topic.blame)] = number
            self._value[self._ids(topic.praise)] = 0.9
            self._value[self._ids(topic.blame)] = -0.9
        self._is_content = (self._aspect_topic >= 0) | (self._value != 0) | self._is_degree
        self._closers = [
            (self._ids(closer.split()), verdict) for closer, verdict in grammar.CLOSERS.items()
        ]
        self._legal = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
        index = {**self._index, grammar.EOS: _EOS}
        for left, right in grammar.legal_pairs():
            self._legal[index[left], index[right]] = True

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> Tensor:
        """The gold reward of each response.

        Args:
            prompts: (batch,) prompts of the grammar.
            responses: (batch,) words separated by spaces, without special tokens.
            finished: (batch,) whether the response ended with its stop token.

        Returns:
            (batch,) float32.
        """
        terms = self._terms(prompts, responses, finished)
        return torch.stack(list(terms.values())).sum(0).float()  # (batch,)

    def parts(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> dict[str, Tensor]:
        """What each rule adds to (or takes from) the score, as {rule: (batch,) float32}."""
        terms = self._terms(prompts, responses, finished)
        return {name: term.float() for name, term in terms.items()}

    def _ids(self, words: Sequence[str]) -> Tensor:
        """The ids of `words`: (len(words),)."""
        return torch.tensor([self._index.get(word, _UNK) for word in words], dtype=torch.long)

    def _terms(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> dict[str, Tensor]:
        """The parts in double precision, each (batch,)."""
        batch = len(responses)
        if not len(prompts) == batch == len(finished):
            raise ValueError(
                f"expected as many prompts and finished flags as responses, got {len(prompts)} "
                f"prompts, {batch} responses and {len(finished)} flags"
            )
        ended = torch.as_tensor(finished, dtype=torch.bool, device="cpu")  # (batch,)
        topic, wanted = self._read_prompts(prompts)  # (batch,), (batch, 2)
        ids, length = self._read_responses(responses)  # (batch, width), (batch,)
        colon = torch.full((batch, 1), self._index[":"])
        previous = torch.cat([colon, ids[:, :-1]], 1)  # (batch, width)
        before = torch.cat([colon, previous[:, :-1]], 1)  # (batch, width): two words back

        value = self._value[ids]  # (batch, width)
        after_degree = self._is_degree[previous]
        not_ = self._index["not"]
        negated = (previous == not_) | (after_degree & (before == not_))
        opinion = value * self._degree[previous] * torch.where(negated, -0.7, 1.0)
        verdict, closers = self._closing(ids)  # (batch,), (batch,)

        # An aspect is talked about when an adjective stands two to four words after it.
        judged = torch.zeros_like(ids, dtype=torch.bool)
        for distance in (2, 3, 4):
            judged[:, :-distance] |= value[:, distance:] != 0
        mentioned = (ids[:, :, None] == wanted[:, None, :]) & judged[:, :, None]

        strays = sum(
            ((of_word[ids] >= 0) & (of_word[ids] != topic[:, None])).sum(1)
            for of_word in (self._aspect_topic, self._adjective_topic)
        )

        counts = torch.zeros(batch, len(self._value), dtype=torch.float64)  # (batch, vocabulary)
        counts.scatter_add_(1, ids, self._is_content[ids].double())
        repeats = (counts - 1).clamp(min=0).sum(1) + 2 * (closers - 1).clamp(min=0)

        inside = torch.arange(ids.shape[1]) < length[:, None]  # (batch, width)
        errors = (~self._legal[previous, ids] & inside).sum(1)
        # The last word, or the prompt's colon where there is none.
        last = torch.cat([colon, ids], 1).gather(1, length[:, None])[:, 0]  # (batch,)
        errors = errors + (ended & ~self._legal[last, _EOS])

        too_far = (7 - length).clamp(min=0) + (length - 20).clamp(min=0)
        return {
            "sentiment": 2.0 * torch.tanh((opinion.sum(1) + verdict) / 2.5),
            "mentions": 0.6 * mentioned.any(1).sum(1).double(),
            "off_topic": -0.5 * torch.as_tensor(strays).clamp(max=4).double(),
            "repetition": -0.35 * repeats,
            "grammar": -0.4 * errors.clamp(max=6).double(),
            "length": -0.12 * too_far.double(),
            "unfinished": -0.5 * (~ended).double(),
        }

    def _read_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The topic's number (batch,) and the ids of the two aspects asked for (batch, 2)."""
        parsed = {text: grammar.parse_prompt(text) for text in set(prompts)}
        numbers = {name: number for number, name in enumerate(grammar.TOPICS)}
        topics = [numbers[parsed[text].topic] for text in prompts]
        aspects = [
            [self._index[parsed[text].first], self._index[parsed[text].second]] for text in prompts
        ]
        return (
            torch.tensor(topics, dtype=torch.long),
            torch.tensor(aspects, dtype=torch.long).reshape(len(prompts), 2),
        )

    def _read_responses(self, responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The responses' ids, padded (batch, width), and their lengths in words (batch,)."""
        rows = [[self._index.get(word, _UNK) for word in text.split()] for text in responses]
        lengths = [len(row) for row in rows]
        width = max([grammar.RESPONSE_TOKENS, *lengths])  # wide enough for any closer
        padded = [row + [_PAD] * (width - len(row)) for row in rows]
        return (
            torch.tensor(padded, dtype=torch.long).reshape(len(rows), width),
            torch.tensor(lengths, dtype=torch.long),
        )

    def _closing(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The verdict of the closers in `ids` (batch, width), each kind counted once, (batch,),
        and how many closers there are, repeats included, (batch,)."""
        verdict = torch.zeros(len(ids), dtype=torch.float64)
        number = torch.zeros(len(ids), dtype=torch.long)
        for closer, worth in self._closers:
            windows = ids.unfold(1, len(closer), 1)  # (batch, places, words of the closer)
            found = (windows == closer).all(2)  # (batch, places)
            verdict += worth * found.any(1)
            number += found.sum(1)
        return verdict, number
