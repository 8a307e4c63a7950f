"""The world of sums: additions worked out in steps, each of which can be checked exactly.

`POLICY` and `REWARD_MODEL` are transformers checkpoints (each with its tokenizer), `PROMPTS` holds
one ``{"prompt": ..., "answer": ...}`` a line, and `gold` makes the exact checker. `verify` and
`check_steps` are plain functions of prompts and completions, for what trains on outcomes or on
steps. `worlds/build_sums.py` rebuilds the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ostinato_worlds.sums import arithmetic

__all__ = [
    "POLICY",
    "PROMPTS",
    "REWARD_MODEL",
    "SumsGold",
    "check_steps",
    "gold",
    "verify",
]

_HERE = Path(__file__).resolve().parent

POLICY = _HERE / "policy"
REWARD_MODEL = _HERE / "reward_model"
PROMPTS = _HERE / "prompts.jsonl"

STEPS = 0.2  # what the steps are worth beside a right answer, which is worth 1


class SumsGold:
    """The exact checker: 1 for the right answer, and `STEPS` times the share of right steps.

    The share is of the steps that the exact solution has, so steps beyond them earn nothing. An
    unfinished response has given no answer, right or wrong.
    """

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> Tensor:
        """Scores (B,), between 0 and 1 + `STEPS`."""
        return torch.stack(list(self.parts(prompts, responses, finished).values())).sum(0)

    def parts(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> dict[str, Tensor]:
        """The terms, each (B,), that add up to the score."""
        counts = len(prompts), len(responses), len(finished)
        if len(set(counts)) > 1:
            raise ValueError("{} prompts, {} responses and {} flags".format(*counts))
        answers, shares = [], []
        for prompt, response, done in zip(prompts, responses, finished, strict=True):
            *steps, answer = arithmetic.judge(prompt, response)
            answers.append(float(answer and done))
            shares.append(
                STEPS * sum(steps) / len(arithmetic.columns(*arithmetic.parse_prompt(prompt)))
            )
        return {"answer": torch.tensor(answers), "steps": torch.tensor(shares)}


def gold() -> SumsGold:
    """The gold reward of this world."""
    return SumsGold()


def verify(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """The verifier: 1 where the completion ends with the column `answer` as its answer, else 0."""
    pairs = zip(completions, answer, strict=True)
    return [float(text.split(arithmetic.SEPARATOR)[-1] == str(right)) for text, right in pairs]


def check_steps(
    prompts: Sequence[str], completions: Sequence[str], **_: object
) -> list[list[bool]]:
    """Whether each step of each completion is right: `arithmetic.judge` says what that means."""
    return [arithmetic.judge(*pair) for pair in zip(prompts, completions, strict=True)]
