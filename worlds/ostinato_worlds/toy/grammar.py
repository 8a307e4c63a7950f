"""The review grammar: prompts such as ``the soup : mention taste and smell :`` and answers to them.

All text is lower-case words separated by single spaces; punctuation marks are words of their own.
Every draw comes from the `random.Random` that is passed in, so a seed names a text for good.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

PROMPT_WORDS = 8
RESPONSE_TOKENS = 24  # including the stop token, hence at most 23 words

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


@dataclass(frozen=True)
class Topic:
    """What one kind of review talks about, and the adjectives that suit nothing else."""

    items: tuple[str, ...]
    aspects: tuple[str, ...]
    praise: tuple[str, ...]
    blame: tuple[str, ...]


def _topic(items: str, aspects: str, praise: str, blame: str) -> Topic:
    return Topic(*(tuple(words.split()) for words in (items, aspects, praise, blame)))


TOPICS = {
    "food": _topic(
        "soup pizza curry cake salad stew",
        "taste portion sauce texture smell",
        "tasty fresh",
        "bland stale",
    ),
    "hotel": _topic(
        "hotel hostel cabin suite lodge motel",
        "room bed staff view lobby",
        "clean cozy",
        "dirty noisy",
    ),
    "film": _topic(
        "film drama comedy thriller sequel cartoon",
        "plot acting music ending dialogue",
        "moving gripping",
        "boring slow",
    ),
    "gadget": _topic(
        "phone laptop camera tablet printer speaker",
        "screen battery sound design keyboard",
        "sharp fast",
        "laggy fragile",
    ),
    "book": _topic(
        "novel memoir guide biography atlas diary",
        "story prose cover chapter index",
        "vivid clever",
        "dry confusing",
    ),
    "tour": _topic(
        "tour cruise hike safari museum gallery",
        "route driver lunch exhibit schedule",
        "scenic relaxed",
        "crowded rushed",
    ),
}

# Adjectives that suit every topic, with how much each praises.
PRAISE = {
    "good": 0.6,
    "nice": 0.5,
    "great": 1.0,
    "lovely": 0.8,
    "excellent": 1.3,
    "superb": 1.4,
    "solid": 0.4,
    "decent": 0.3,
}
BLAME = {
    "bad": -0.7,
    "poor": -0.6,
    "awful": -1.2,
    "terrible": -1.3,
    "weak": -0.5,
    "mediocre": -0.3,
    "horrible": -1.4,
    "dull": -0.5,
}
# Adverbs, with the factor each puts on the adjective that follows.
DEGREES = {
    "very": 1.4,
    "really": 1.3,
    "quite": 0.9,
    "rather": 0.8,
    "extremely": 1.7,
    "slightly": 0.4,
}
# Last sentences, with their verdict.
CLOSERS = {
    "i would recommend it": 1.0,
    "i would not recommend it": -1.0,
    "i loved it": 1.0,
    "i hated it": -1.0,
    "we will come back": 0.8,
    "we want a refund": -1.2,
    "it was worth the price": 0.7,
    "it was not worth the price": -0.7,
}
VERBS = ("was", "was", "felt", "seemed")  # "was" twice: twice as frequent
CONNECTORS = ("and", "but", ", and", ". also", ". overall")


class Prompt(NamedTuple):
    """A request for a review of `item` (of the topic named `topic`) that mentions two aspects."""

    topic: str
    item: str
    first: str
    second: str

    @property
    def text(self) -> str:
        """The prompt as the policy reads it, `PROMPT_WORDS` words long."""
        return f"the {self.item} : mention {self.first} and {self.second} :"


def parse_prompt(text: str) -> Prompt:
    """The prompt that reads `text`; a ValueError for a text that the grammar cannot make."""
    words = text.split()
    for name, topic in TOPICS.items():
        if len(words) == PROMPT_WORDS and words[1] in topic.items:
            prompt = Prompt(name, words[1], words[4], words[6])
            aspects_fit = prompt.first in topic.aspects and prompt.second in topic.aspects
            if aspects_fit and prompt.first != prompt.second and prompt.text.split() == words:
                return prompt
    raise ValueError(
        f"{text!r} is not a prompt of the toy world; they read "
        "'the <item> : mention <aspect> and <aspect> :', such as "
        "'the soup : mention taste and smell :'"
    )


def all_prompts() -> list[Prompt]:
    """Every prompt of the grammar, once each: 6 topics x 6 items x 20 pairs of aspects = 720."""
    return [
        Prompt(name, item, first, second)
        for name, topic in TOPICS.items()
        for item in topic.items
        for first in topic.aspects
        for second in topic.aspects
        if first != second
    ]


def sample_prompt(rng: random.Random) -> Prompt:
    """One prompt, every one equally likely."""
    name = rng.choice(list(TOPICS))
    topic = TOPICS[name]
    item = rng.choice(topic.items)
    first, second = rng.sample(topic.aspects, 2)
    return Prompt(name, item, first, second)


def sample_response(rng: random.Random, prompt: Prompt) -> str:
    """One answer to `prompt`, of any mood and any care: aspects may be missed, or off topic.

    It is cut to the `RESPONSE_TOKENS` - 1 words that leave room for the stop token.
    """
    topic = TOPICS[prompt.topic]
    mood = rng.betavariate(1.0, 1.0)  # the share of praise in this review
    aspects = []
    if rng.random() < 0.6:
        aspects.append(prompt.first)
    if rng.random() < 0.5:
        aspects.append(prompt.second)
    others = [aspect for aspect in topic.aspects if aspect not in aspects]
    while len(aspects) < rng.choice((1, 2, 2, 3)):
        aspects.append(others.pop(rng.randrange(len(others))))
    if rng.random() < 0.08:  # a slip: an aspect of any topic
        slip = rng.choice(TOPICS[rng.choice(list(TOPICS))].aspects)
        aspects[rng.randrange(len(aspects))] = slip
    rng.shuffle(aspects)
    text = ""
    for position, aspect in enumerate(aspects):
        if position:
            text += f" {rng.choice(CONNECTORS)} "
        text += _sample_clause(rng, topic, aspect, mood)
    text += " ."
    if rng.random() < 0.5:
        fitting = [
            closer for closer, verdict in CLOSERS.items() if (verdict > 0) == (rng.random() < mood)
        ]
        text += f" {rng.choice(fitting or list(CLOSERS))} ."
    return " ".join(text.split()[: RESPONSE_TOKENS - 1])


def _sample_clause(rng: random.Random, topic: Topic, aspect: str, mood: float) -> str:
    praises = rng.random() < mood
    if rng.random() < 0.4:
        adjective = rng.choice(topic.praise if praises else topic.blame)
    else:
        adjective = rng.choice(list(PRAISE if praises else BLAME))
    negated = rng.random() < 0.15
    clause = f"the {aspect} {rng.choice(VERBS)}"
    if negated:  # with the opposite adjective, so that the mood stays
        adjective = rng.choice(list(BLAME if praises else PRAISE))
        clause += " not"
    if rng.random() < 0.4:
        clause += f" {rng.choice(list(DEGREES))}"
    return f"{clause} {adjective}"


def corpus(size: int, rng: random.Random) -> list[tuple[str, str]]:
    """`size` pairs of a prompt and a response to it."""
    pairs = []
    for _ in range(size):
        prompt = sample_prompt(rng)
        pairs.append((prompt.text, sample_response(rng, prompt)))
    return pairs


def words() -> list[str]:
    """Every word that a prompt or a response can hold, in a fixed order."""
    texts = ["the : mention and", *VERBS, "not", *CONNECTORS, ".", *CLOSERS, *PRAISE, *BLAME]
    texts += DEGREES
    for topic in TOPICS.values():
        texts += [*topic.items, *topic.aspects, *topic.praise, *topic.blame]
    return list(dict.fromkeys(" ".join(texts).split()))


def vocabulary() -> list[str]:
    """The tokens of the shipped tokenizers: specials, words, then fillers up to a multiple of 8."""
    tokens = [PAD, EOS, UNK, *words()]
    tokens += [f"<filler{number}>" for number in range(-len(tokens) % 8)]
    return tokens


def legal_pairs() -> set[tuple[str, str]]:
    """Every two adjacent words that the grammar can write, with ":" before the first word.

    `EOS` stands after the last word: after a full stop, and, where a response was cut to its
    `RESPONSE_TOKENS`, after any word of a closer (the cut never falls earlier).
    """
    aspects = [aspect for topic in TOPICS.values() for aspect in topic.aspects]
    general = [*PRAISE, *BLAME]
    adjectives = general + [
        word for topic in TOPICS.values() for word in (*topic.praise, *topic.blame)
    ]
    pairs = {(":", "the"), (".", EOS)}

    def follows(lefts: list[str], rights: list[str]) -> None:
        pairs.update((left, right) for left in lefts for right in rights)

    follows(["the"], aspects)
    follows(aspects, list(VERBS))
    follows(list(VERBS), ["not", *DEGREES, *adjectives])
    follows(["not"], [*DEGREES, *general])
    follows(list(DEGREES), adjectives)
    for connector in CONNECTORS:
        chain = connector.split()
        follows(adjectives, [chain[0]])
        pairs.update(pairwise([*chain, "the"]))
    for closer in CLOSERS:
        pairs.update(pairwise([".", *closer.split(), "."]))
        follows(closer.split(), [EOS])
    return pairs
