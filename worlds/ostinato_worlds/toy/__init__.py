"""The toy world: two-sentence reviews in 144 words, judged by rules, small enough for tests.

`POLICY` and `REWARD_MODEL` are transformers checkpoints (each with its tokenizer), `PROMPTS` holds
one ``{"prompt": ...}`` a line, `CORPUS` one ``{"prompt": ..., "text": ...}`` (reviews such as the
policy was fine-tuned on), and `gold` makes the judge. `worlds/build_toy.py` rebuilds them all.
"""

from __future__ import annotations

from pathlib import Path

from ostinato_worlds.toy.judge import ToyGold

__all__ = ["CORPUS", "POLICY", "PROMPTS", "REWARD_MODEL", "ToyGold", "gold"]

_HERE = Path(__file__).resolve().parent

POLICY = _HERE / "policy"
REWARD_MODEL = _HERE / "reward_model"
PROMPTS = _HERE / "prompts.jsonl"
CORPUS = _HERE / "corpus.jsonl"


def gold() -> ToyGold:
    """The gold reward of this world."""
    return ToyGold()
