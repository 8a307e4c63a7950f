"""The gold reward model that stands for the human: a checkpoint, or a function of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ostinato.config.errors import NonFiniteError, UserError
from ostinato.config.named import load_named
from ostinato.config.sections import GoldSection, RewardModelSection
from ostinato.models.functions import Columns, PlainFunction, is_plain, plain
from ostinato.models.loading import from_checkpoint, load_weights
from ostinato.models.reward_model import SCORING_BATCH, RewardModel
from ostinato.models.samples import Samples, Scorer, Texts

SIGNATURE = (
    "expected score(prompts, responses, finished), lists of text, text and truth values, to answer "
    "a tensor with a number a response"
)
MAX_TOKENS = 2048  # longest prompt + response that a checkpoint reads, if its context has the room


def load_gold(
    section: GoldSection,
    device: torch.device,
    columns: Callable[[Texts], Columns] = lambda prompts: {},
) -> Scorer:
    """The gold reward model: raw scores, nothing calibrated.

    A checkpoint with transformers' ``score`` head (the decoders) is read as a reward model is, any
    other one as a classifier of pairs; ``columns`` gives a plain function the further columns of
    prompts. Raises UserError where there is no such model or function, or the checkpoint was not
    trained to score.
    """
    if section.function is not None:
        return _of_function(section.function, columns)
    if section.random is None and not _has_score(section):
        return GoldClassifier.load(section, device)
    shared = section.model_dump(exclude={"function", "batch"})
    loaded = RewardModelSection(**shared, max_tokens=MAX_TOKENS)
    return RewardModel.load(loaded, key="gold", trained=True).to(device)


def try_gold(section: GoldSection, prompts: Texts, columns: Columns) -> None:
    """Ask ``gold.function`` once, of made-up responses to ``prompts``; UserError if it is wrong."""
    gold = load_gold(section, torch.device("cpu"), lambda prompts: columns)
    if prompts:
        gold.score(prompts, ["a response"] * len(prompts), [True] * len(prompts))


def gold_scores(gold: Scorer, samples: Samples, batch: int) -> Tensor:
    """Gold scores (B,) of samples, fp32 on the CPU. Raises NonFiniteError."""
    prompts, responses, finished = samples.prompts, samples.responses, samples.finished.tolist()
    found = [
        gold.score(prompts[i : i + batch], responses[i : i + batch], finished[i : i + batch])
        for i in range(0, len(prompts), batch)
    ]
    scores = torch.cat([f.detach().float().cpu() for f in found])
    if not bool(scores.isfinite().all()):
        raise NonFiniteError("the gold reward model's scores are not finite")
    return scores


@dataclass(frozen=True)
class GoldFunction:
    """What ``gold.function`` makes; its answers are checked, and faults name the factory."""

    name: str
    made: Any

    def score(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Tensor:
        """Scores (B,). Raises UserError, or NonFiniteError, that names the function."""
        whose = f"gold.function: the score of {self.name}()"
        try:
            found = self.made.score(prompts, responses, finished)
        except UserError:  # it has its own sentence
            raise
        except (Exception, SystemExit) as error:
            first = next(iter(str(error).splitlines()), "")
            hint = f"; {SIGNATURE}" if isinstance(error, TypeError) else ""
            raise UserError(f"{whose} failed: {type(error).__name__}: {first}{hint}") from error
        if not isinstance(found, Tensor):
            raise UserError(f"{whose} is a {type(found).__name__}; {SIGNATURE}")
        shape, count = tuple(found.shape), len(prompts)
        if shape != (count,):
            raise UserError(f"{whose} has shape {shape} for {count} responses; {SIGNATURE}")
        if not bool(found.isfinite().all()):
            raise NonFiniteError(f"{whose} is not finite")
        return found


@dataclass(frozen=True)
class PlainGold:
    """A plain function of prompts and completions as gold."""

    function: PlainFunction
    columns: Callable[[Texts], Columns]

    def score(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Tensor:
        """Scores (B,). Raises UserError, or NonFiniteError, that names the function."""
        given = {"prompts": list(prompts), "completions": list(responses)}
        return self.function({**self.columns(prompts), **given})


def _of_function(name: str, columns: Callable[[Texts], Columns]) -> Scorer:
    """A plain function has a parameter ``completions``; whatever else makes what has ``score``."""
    found = load_named(name, "gold.function")
    if is_plain(found):
        return PlainGold(plain(found, f"gold.function: {name}"), columns)
    whose = f"gold.function: {name}()"
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise UserError(f"{whose} failed: {type(error).__name__}: {error}") from error
    if not callable(getattr(made, "score", None)):
        raise UserError(f"{whose} answered a {type(made).__name__} without score; {SIGNATURE}")
    return GoldFunction(name, made)


class GoldClassifier(nn.Module):
    """A classifier of (prompt, response) pairs, such as BERT's: its one logit is the score.

    The whole forward pass of AutoModelForSequenceClassification; the tokenizer joins the pair.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = min(MAX_TOKENS, tokenizer.model_max_length, _positions(model))
        self.eval()

    @classmethod
    def load(cls, section: GoldSection, device: torch.device) -> GoldClassifier:
        """Raises UserError: not loadable, not trained to score, more than one label, no padding."""
        auto = AutoModelForSequenceClassification
        remote: dict[str, Any] = {"trust_remote_code": section.trust_remote_code}
        model = load_weights(auto, section.model, "gold.model", **remote)
        if (count := model.config.num_labels) != 1:
            said = f"has {count} labels, expected a model with one, its score"
            raise UserError(f"gold.model: '{section.model}' {said}")
        name = section.tokenizer or section.model
        tokenizer = from_checkpoint(AutoTokenizer, name, "gold.tokenizer", **remote)
        if tokenizer.pad_token_id is None:
            raise UserError(f"gold.tokenizer: '{name}' has no pad token")
        return cls(model, tokenizer).to(device)

    @torch.no_grad()
    def score(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Tensor:
        """Scores (B,), as raw logits. ``finished`` is not seen: pairs hold no stop token."""
        how = {"padding": True, "truncation": True, "return_tensors": "pt"}
        found = []
        for start in range(0, len(prompts), SCORING_BATCH):
            part = slice(start, start + SCORING_BATCH)
            texts = list(prompts[part]), list(responses[part])
            pairs = self.tokenizer(*texts, max_length=self.max_tokens, **how).to(self.model.device)
            found.append(self.model(**pairs).logits[:, 0].float())
        return torch.cat(found)


def _has_score(section: GoldSection) -> bool:
    """Whether transformers gives this architecture a linear ``score``; no weight is made."""
    remote = {"trust_remote_code": section.trust_remote_code}
    config = from_checkpoint(AutoConfig, section.model, "gold.model", **remote)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, **remote)
    except (ValueError, RuntimeError):  # no such class, or no meta tensors: loading says so
        return True
    return isinstance(getattr(model, "score", None), nn.Linear)


def _positions(model: Any) -> int:
    """How many tokens the body has positions for; RoBERTa's begin behind its padding."""
    room = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    first = getattr(table, "padding_idx", None)
    return int(room) if first is None else int(room) - first - 1
