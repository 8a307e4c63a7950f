"""Steps of random words for tests of `orm` and `prm`: functions by name, losses by hand."""

from __future__ import annotations

import numpy as np

SEPARATOR = "b"
HERE = __file__


def right(prompts: list[str], completions: list[str]) -> list[float]:
    """An outcome: more c's than d's."""
    return [float(text.count("c") > text.count("d")) for text in completions]


def steps(completions: list[str]) -> list[list[bool]]:
    """A step, between two b's, is right if it holds an a."""
    return [["a" in step for step in text.split(SEPARATOR)] for text in completions]


def too_few(completions: list[str]) -> list[list[bool]]:
    return [[True] for _ in completions]


def numbers(completions: list[str]) -> list[float]:
    return [1.0 for _ in completions]


def ends_by_hand(text: str, length: int) -> list[int]:
    """Where steps end in a text of one token a character with ``length`` tokens, the stop's too."""
    ends = [place for place, letter in enumerate(text) if letter == SEPARATOR]
    return ends if ends[-1:] == [length - 1] else [*ends, length - 1]


def by_hand(batch, outputs, wanted) -> np.ndarray:
    """The loss of each comparison (V, C) in float64: ``wanted[row]`` is {place: right}.

    Places count from the response's first token.
    """
    states = outputs.states.detach().double().numpy()
    head = outputs.head.detach().double().numpy()
    made = np.zeros((len(states), len(batch.pairs)))
    for v, view in enumerate(states):
        for c, pair in enumerate(batch.pairs.tolist()):
            for row in pair:
                first = np.flatnonzero(batch.response_mask[row])[0]
                nats = []
                for place, verdict in wanted[row].items():
                    for weights in head:
                        p = 1 / (1 + np.exp(-(view[row, first + place] @ weights)))
                        nats.append(-np.log(p if verdict else 1 - p))
                made[v, c] += np.mean(nats) / 2
    return made
