"""Loading transformers models and tokenizers, and turning text into their tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, ByT5Tokenizer

from ostinato.config.errors import UserError
from ostinato.config.sections import ModelSection


def load_tokenizer(section: ModelSection, key: str) -> Any:
    """The section's tokenizer, with a pad token that is not its eos (added where it lacks one)."""
    if section.tokenizer == "bytes" or (section.tokenizer is None and section.model is None):
        tokenizer: Any = ByT5Tokenizer(extra_ids=0)
    else:
        name = section.tokenizer or section.model
        tokenizer = from_checkpoint(
            AutoTokenizer, name, f"{key}.tokenizer", trust_remote_code=section.trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key}: its tokenizer has no eos token, so no response could ever end")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        known = tokenizer.get_vocab()
        name = next((t for t in ("<|padding|>", "<pad>", "<|pad|>") if t in known), "<|pad|>")
        tokenizer.add_special_tokens({"pad_token": name})
    return tokenizer


def load_model(
    auto: Any, section: ModelSection, tokenizer: Any, key: str, fresh: str = "", **config: Any
) -> Any:
    """A model of the transformers class ``auto``: loaded, or built with random weights.

    Its embeddings hold the tokens of ``tokenizer`` and no others; its config names the tokenizer's
    eos and pad. Weights are fp32. Random weights come from torch's global generator. Raises
    UserError where a checkpoint lacks a weight other than ``fresh``.
    """
    size = 1 + max(tokenizer.get_vocab().values())
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if section.random is not None:
        wanted = {"vocab_size": size, **ids, **section.random, **config}
        try:
            model = auto.from_config(AutoConfig.for_model(**wanted))
        except Exception as error:  # whatever a config class or a model makes of wrong sizes
            fault = f"transformers cannot build it: {first_line(error)}"
            raise UserError(f"{key}.random: {fault}") from error
    else:
        trusted = section.trust_remote_code
        model = load_weights(
            auto, section.model, f"{key}.model", fresh, trust_remote_code=trusted, **config
        )
    if model.get_input_embeddings().num_embeddings != size:
        model.resize_token_embeddings(size, mean_resizing=False)
    for name, value in ids.items():
        setattr(model.config, name, value)
        if getattr(model, "generation_config", None) is not None:
            setattr(model.generation_config, name, value)
    return model.eval()


def load_weights(auto: Any, name: Any, key: str, fresh: str = "", **arguments: Any) -> Any:
    """A model with the weights of a checkpoint, in fp32.

    Raises UserError where one other than ``fresh`` is missing, which transformers would fill with
    random numbers.
    """
    model, facts = from_checkpoint(
        auto, name, key, dtype=torch.float32, output_loading_info=True, **arguments
    )
    body = f"{model.base_model_prefix}."
    missing = set(facts["missing_keys"]) - {fresh}
    for first in sorted(missing, key=lambda weight: (weight.startswith(body), weight))[:1]:
        kind = f"no whole {type(model).__name__}"
        raise UserError(f"{key}: '{name}' is {kind}: its checkpoint holds no '{first}'")
    for p in (*model.parameters(), *model.buffers()):
        p.data = p.data.clone()  # safetensors aligns nothing, and sums round by alignment
    return model


def load_saved(auto: Any, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a run's own checkpoint: no pickle, and no code, whatever lies there."""
    model = load_weights(auto, folder, "checkpoint", use_safetensors=True)
    return model, from_checkpoint(AutoTokenizer, folder, "checkpoint")


def from_checkpoint(
    auto: Any, name: Any, key: str, trust_remote_code: bool = False, **arguments: Any
) -> Any:
    """``auto.from_pretrained(name)``; UserError in one sentence where that fails."""
    try:
        return auto.from_pretrained(name, trust_remote_code=trust_remote_code, **arguments)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{key}: '{name}' cannot be loaded: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error of another library says, cut to one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@lru_cache(maxsize=16)
def prompt_prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text: a bos token, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(bare) + 1)
    start = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
    return list(whole[:start])


def prompt_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, with whatever the tokenizer puts before a text, nothing after."""
    prefix = prompt_prefix(tokenizer)
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[*prefix, *row] for row in rows]


def prompt_texts(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """The inverse of :func:`prompt_tokens`; special tokens that a template put in stay."""
    start = len(prompt_prefix(tokenizer))
    bare = [list(row[start:]) for row in rows]
    return [str(text) for text in tokenizer.batch_decode(bare, skip_special_tokens=False)]


def response_tokens(
    tokenizer: Any, texts: Sequence[str], finished: Sequence[bool], stop: int | None = None
) -> list[list[int]]:
    """Token ids of responses, ``stop`` (the eos if left out) last where one is ``finished``."""
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id if stop is None else stop]
    return [row + end if done else row for row, done in zip(rows, finished, strict=True)]


def padded(rows: Sequence[Sequence[int]], pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """(ids, mask) of shape (rows, longest row), padded right, or left."""
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    width = max(1, int(lengths.max()))
    fill = [[pad] * (width - len(row)) for row in rows]
    whole = [[*f, *row] if left else [*row, *f] for f, row in zip(fill, rows, strict=True)]
    place = torch.arange(width)
    mask = place >= width - lengths if left else place < lengths
    return torch.tensor(whole, dtype=torch.long), mask


@lru_cache(maxsize=16)
def vocabulary_key(tokenizer: Any) -> str:
    """Equal for tokenizers that read and write the same ids, so tokens need no detour over text."""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A transformers checkpoint: safetensors, config and tokenizer.

    The same whatever the tokenizer was last asked: fast ones keep their last padding.
    """
    model.save_pretrained(folder, safe_serialization=True)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
