"""Additions in steps: ``347+285=`` is answered ``7+5=12;4+8+1=13;3+2+1=6;632``.

A prompt adds two numbers with equally many digits, two or three. A response works through the
columns from the units on, a step a column: the two digits, `+1` where the step before carried one,
and their sum. The answer comes last. Steps end with `;`, and each character is one token.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CHARACTERS = "0123456789+=;"
SEPARATOR = ";"
DIGITS = (2, 3)
PROMPT_TOKENS = 2 * max(DIGITS) + 2
RESPONSE_TOKENS = 32  # an exact answer takes at most 30, the stop token included

_PROMPT = re.compile(r"([1-9]\d{1,2})\+([1-9]\d{1,2})=")


def prompt_text(first: int, second: int) -> str:
    """The prompt that asks for the sum."""
    return f"{first}+{second}="


def parse_prompt(text: str) -> tuple[int, int]:
    """The two numbers of a prompt; a ValueError for a text that is none."""
    found = _PROMPT.fullmatch(text)
    if found is None or len(found[1]) != len(found[2]):
        wanted = "they add two numbers with equally many digits, two or three, such as '347+285='"
        raise ValueError(f"{text!r} is not a prompt of the world of sums; {wanted}")
    return int(found[1]), int(found[2])


def column(digits: tuple[int, int], carry: bool) -> str:
    """What is added in one column, up to its sum."""
    return f"{digits[0]}+{digits[1]}{'+1' if carry else ''}="


def columns(first: int, second: int) -> list[tuple[int, int]]:
    """The digits of each column, units first."""
    pairs = zip(reversed(str(first)), reversed(str(second)), strict=True)
    return [(int(a), int(b)) for a, b in pairs]


def solution(first: int, second: int) -> str:
    """The exact response."""
    steps, carry = [], False
    for digits in columns(first, second):
        total = sum(digits) + carry
        steps.append(f"{column(digits, carry)}{total}")
        carry = total >= 10
    return SEPARATOR.join([*steps, str(first + second)])


def judge(prompt: str, response: str) -> list[bool]:
    """Whether each of ``response.split(";")`` is right; the last one is the answer.

    A column's step is right if it follows from the prompt and from the step before as that was
    written: so a mistake counts once, where it was made. The answer is right if it is the sum; if
    every step and the reading of them is right, it is.
    """
    first, second = parse_prompt(prompt)
    wanted = columns(first, second)
    *steps, answer = response.split(SEPARATOR)
    right, carry = [], False
    for place, step in enumerate(steps):
        fits = place < len(wanted)
        if fits:
            total = sum(wanted[place]) + carry
            fits = step == f"{column(wanted[place], carry)}{total}"
        right.append(fits)
        carry = re.fullmatch(r".*=1\d", step, re.ASCII) is not None
    return [*right, answer == str(first + second)]


# How often a pupil errs: for each column that should add a carry, forgetting it; for each other one
# but the first, adding one; for each answer, a digit copied wrongly.
FORGOTTEN, INVENTED, MISREAD = 0.5, 0.12, 0.06


def attempt(rng: random.Random, first: int, second: int) -> str:
    """A pupil's response: mistakes are made at random, and gone on from."""
    steps, read, carry = [], "", False
    for place, digits in enumerate(columns(first, second)):
        adds = carry
        if place:
            adds = rng.random() >= FORGOTTEN if carry else rng.random() < INVENTED
        total = sum(digits) + adds
        steps.append(f"{column(digits, adds)}{total}")
        read = str(total % 10) + read
        carry = total >= 10
    answer = "1" * carry + read
    if rng.random() < MISREAD:
        at = rng.randrange(len(answer))
        digit = rng.choice([d for d in "123456789" if d != answer[at]])
        answer = answer[:at] + digit + answer[at + 1 :]
    return SEPARATOR.join([*steps, answer])


def draw(rng: random.Random) -> tuple[int, int]:
    """Two numbers to add."""
    digits = rng.choice(DIGITS)
    low, high = 10 ** (digits - 1), 10**digits - 1
    return rng.randint(low, high), rng.randint(low, high)


def attempts(size: int, rng: random.Random) -> list[tuple[str, str]]:
    """``size`` pairs of a prompt and a pupil's response."""
    drawn = [draw(rng) for _ in range(size)]
    return [(prompt_text(*numbers), attempt(rng, *numbers)) for numbers in drawn]


def vocabulary() -> Sequence[str]:
    """The tokens of the shipped tokenizers."""
    return [PAD, EOS, UNK, *CHARACTERS]
