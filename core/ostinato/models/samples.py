"""What models take and answer: samples of responses, scores, a reward model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ostinato.models.loading import padded, prompt_texts

Texts = Sequence[str]


@dataclass
class Samples:
    """Prompts with sampled responses, tokens of one tokenizer; text is decoded when asked for."""

    tokenizer: Any
    prompt_ids: Tensor  # (B, P) padded left
    prompt_mask: Tensor  # (B, P) true where real
    response_ids: Tensor  # (B, T) padded right
    mask: Tensor  # (B, T) true where real; the stop token is the last one that is
    finished: Tensor  # (B,) the stop token came
    texts: Sequence[str] | None = None  # prompts before they became tokens, where that is known
    logprobs: Tensor | None = None  # (B, T) of the draws, where their logits were reshaped

    @classmethod
    def of(cls, tokenizer: Any, data: Mapping[str, Any], side: str) -> Samples:
        """The responses of one side of comparisons: first, second, chosen or rejected."""
        pad, prompts, answers = (
            tokenizer.pad_token_id,
            data["prompt_ids"][:],
            data[f"{side}_ids"][:],
        )
        finished = torch.tensor(data[f"{side}_finished"][:])
        padded_rows = *padded(prompts, pad, left=True), *padded(answers, pad)
        return cls(tokenizer, *padded_rows, finished, data["prompt"][:])

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @cached_property
    def prompts(self) -> list[str]:
        """Prompt texts; special tokens that a template put in are part of them."""
        if self.texts is not None:
            return list(self.texts)
        return prompt_texts(self.tokenizer, self.tokens[0])

    @cached_property
    def responses(self) -> list[str]:
        """Response texts, without their stop token and special tokens."""
        pairs = zip(self.tokens[1], self.finished.tolist(), strict=True)
        rows = [row[:-1] if finished else row for row, finished in pairs]
        return [str(t) for t in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @property
    def lengths(self) -> Tensor:
        """Real response tokens, the stop token included (B,)."""
        return self.mask.sum(1)

    @property
    def tokens(self) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of prompts and of responses, unpadded."""
        prompts = zip(self.prompt_ids.cpu(), self.prompt_mask.cpu(), strict=True)
        responses = zip(self.response_ids.cpu(), self.mask.cpu(), strict=True)
        return [p[m].tolist() for p, m in prompts], [r[m].tolist() for r, m in responses]

    def equal(self, other: Samples) -> Tensor:
        """Where the responses are the same tokens as another's (B,)."""
        rows = zip(self.tokens[1], other.tokens[1], strict=True)
        return torch.tensor([mine == theirs for mine, theirs in rows])

    def to(self, device: torch.device) -> Samples:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Samples(self.tokenizer, **moved, texts=self.texts)

    def rows(self, index: Tensor) -> Samples:
        """The samples at ``index``; response columns that became all padding are cut off."""
        width = max(1, int(self.mask[index].sum(1).max()))
        kept = {k: v[index] for k, v in vars(self).items() if isinstance(v, Tensor)}
        kept |= {k: kept[k][:, :width] for k in ("response_ids", "mask", "logprobs") if k in kept}
        texts = self.texts and [self.texts[i] for i in torch.arange(len(self))[index.cpu()]]
        return Samples(self.tokenizer, **kept, texts=texts)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Samples of one tokenizer, one below the other."""
        first = parts[0]
        found: dict[str, Tensor] = {}
        for name in (k for k, v in vars(first).items() if isinstance(v, Tensor)):
            rows = [getattr(part, name) for part in parts]
            fill = first.tokenizer.pad_token_id if name.endswith("ids") else 0
            found[name] = below(rows, fill, left=name.startswith("prompt"))
        texts = None if first.texts is None else [t for part in parts for t in part.texts or ()]
        return cls(first.tokenizer, **found, texts=texts)


def below(parts: Sequence[Tensor], fill: float = 0, left: bool = False) -> Tensor:
    """Rows of several (B, T, ...), one below the other, each padded to the widest; (B,) joined."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    widest = max(part.shape[1] for part in parts)
    rows = []
    for part in parts:
        lack = widest - part.shape[1]
        sides = [0, 0] * (part.ndim - 2) + ([lack, 0] if left else [0, lack])
        rows.append(torch.nn.functional.pad(part, sides, value=fill) if lack else part)
    return torch.cat(rows)


@dataclass
class Scores:
    """What a reward model says of B samples."""

    score: Tensor  # (B,) calibrated
    # (B, members, heads) the same before members and heads were reduced; the score when left out
    parts: Tensor = None  # type: ignore[assignment]
    part_std: Tensor | None = None  # (B, members, heads) where a model predicts one
    hidden: Tensor | None = None  # (B, members, D) fp32, features at the last token
    token_score: Tensor | None = None  # (B, T) rewards of single tokens, beside the score

    def __post_init__(self) -> None:
        if self.parts is None and isinstance(self.score, Tensor):
            self.parts = self.score.reshape(-1, 1, 1)

    @property
    def total(self) -> Tensor:
        """The score with the rewards of all tokens (B,): what a whole response is worth."""
        return self.score if self.token_score is None else self.score + self.token_score.sum(1)


def scores_fault(answer: Any, rows: int, width: int | None = None) -> str | None:
    """What keeps an answer from being the Scores of ``rows`` samples, or None.

    ``width``: tokens of the longest response, where it may have rewards of tokens.
    """
    if not isinstance(answer, Scores):
        return f"a {type(answer).__name__}, expected ostinato.Scores"
    parts = getattr(answer.parts, "shape", ())
    wanted: dict[str, tuple[int | str, ...]] = {
        "score": (rows,),
        "parts": (rows, "members", "heads"),
        "part_std": tuple(parts),
        "hidden": (rows, "members", "D"),
        "token_score": (rows, "T" if width is None else width),
    }
    for name, shape in wanted.items():
        value = getattr(answer, name)
        if value is None and name not in {"score", "parts"}:
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            return f"Scores whose {name} is a {kind}, expected a tensor of floats"
        sizes = zip(value.shape, shape, strict=False)
        if value.ndim != len(shape) or any(s != w for s, w in sizes if isinstance(w, int)):
            expected = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
            return f"Scores whose {name} has shape {tuple(value.shape)}, expected {expected}"
    return None


class Scorer(Protocol):
    """The contract of every reward model, gold or proxy: text in, one score a response out."""

    def score(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Tensor:
        """Scores (B,). ``finished``: the response ended with its stop token."""


@dataclass
class RMOutputs:
    """A reward model's answers for a PreferenceBatch, V dropout views of each response."""

    score: Tensor  # (V, N) raw
    logits: Tensor  # (V, N, outputs)
    hidden: Tensor  # (V, N, D) at the final token
    lm_logits: Tensor | None = None  # (V, N, T, vocabulary) if a plugin needs `lm_head`
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)  # by plugin name
    # (outputs, D) the weight that makes logits of hidden, with its gradient
    head: Tensor = field(default_factory=lambda: torch.empty(0))
    states: Tensor | None = None  # (V, N, T, D) hidden states at every token
