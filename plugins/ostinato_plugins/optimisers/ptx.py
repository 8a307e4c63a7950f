"""Pretraining gradients in the policy's loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

from ostinato import (
    Context,
    PolicyOutputs,
    UserError,
    hookimpl,
    padded,
    prompt_tokens,
    read_rows,
    response_tokens,
)

IGNORED = -100  # cross_entropy's own value for "no target here"


class Ptx:
    """Add the loss on a pretraining corpus to the policy's, against forgetting (Book, 8.2)."""

    paper = "A Little Bit of RLHF, section 8.2; Ouyang et al. 2022 (InstructGPT, PPO-ptx)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        data: str = Field(
            description="the corpus: JSON/JSONL file, Arrow file or folder, or hub name"
        )
        split: str = Field("train", description="split of a hub data set")
        field: str = Field("text", description="column with the text")
        prompt: str | None = Field(
            None, description="column with a context before the text, which carries no loss"
        )
        gamma: float = Field(
            0.5, ge=0, description="weight of the loss in nats per token (the papers' gamma; ours)"
        )
        batch: int = Field(
            16, ge=1, description="pieces of text an optimiser update, split over its micro-batches"
        )
        max_tokens: int = Field(256, ge=2, description="longer texts are cut into such pieces")

        @model_validator(mode="after")
        def _there(self) -> Ptx.Config:
            """A file is read at `check`; a hub data set waits until it is needed."""
            path = Path(self.data)
            here = path.suffix or path.exists() or self.data.startswith((".", "/", "~"))
            if here and not any(self.texts()[1]):
                raise UserError(f"plugins.ptx.data: all texts of '{self.data}' are empty")
            return self

        def texts(self) -> tuple[list[str], list[str]]:
            """Contexts and texts of the corpus; UserError where a row lacks a column."""
            rows = read_rows(self.data, self.split, "plugins.ptx.data")
            columns = [column for column in (self.prompt, self.field) if column is not None]
            for number, row in enumerate(rows, start=1):
                for column in columns:
                    if not isinstance(row.get(column), str):
                        raise UserError(
                            f"plugins.ptx.data: row {number} of '{self.data}' has no text in its "
                            f"column '{column}'; its columns are {', '.join(row)}"
                        )
            contexts = ["" if self.prompt is None else row[self.prompt] for row in rows]
            return contexts, [row[self.field] for row in rows]

    config: Config

    def __init__(self) -> None:
        self._pieces: list[tuple[list[int], list[int]]] = []

    @hookimpl
    def policy_loss(self, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """``nll``: gamma times the mean negative log-likelihood of the pieces drawn, per token."""
        settings, policy = self.config, outputs.policy
        stop = policy.tokenizer.get_vocab().get(ctx.config.generation.stop)
        self._pieces = self._pieces or self.pieces(policy.tokenizer, stop)
        count = -(-settings.batch // ctx.config.rl.accumulate)
        drawn = torch.randint(len(self._pieces), (count,), generator=ctx.generator("ptx"))
        ids, targets = zip(*(self._pieces[i] for i in drawn.tolist()), strict=True)
        return {"nll": settings.gamma * nll(policy.lm, policy.tokenizer.pad_token_id, ids, targets)}

    def pieces(self, tokenizer: Any, stop: int | None = None) -> list[tuple[list[int], list[int]]]:
        """(token ids, targets) of every piece; targets are IGNORED where there is no loss.

        A text ends as a response of the run does, with ``stop`` (the eos if left out).
        """
        contexts, texts = self.config.texts()
        heads = prompt_tokens(tokenizer, contexts)
        tails = response_tokens(tokenizer, texts, [True] * len(texts), stop)
        whole = [
            (head + tail, [IGNORED] * len(head) + tail)
            for head, tail in zip(heads, tails, strict=True)
        ]
        size = self.config.max_tokens
        cut = [
            (ids[start : start + size], targets[start : start + size])
            for ids, targets in whole
            for start in range(0, len(ids), size)
        ]
        found = [piece for piece in cut if any(t != IGNORED for t in piece[1][1:])]
        if not found:
            raise UserError(
                f"plugins.ptx.data: '{self.config.data}' holds no text of two tokens or more"
            )
        return found


def nll(lm: Any, pad: int, ids: Any, targets: Any) -> Tensor:
    """Mean -log p of the targets (rows of tokens), each predicted by what stands before it."""
    inputs, mask = padded(ids, pad)  # (batch, tokens)
    wanted, _ = padded(targets, IGNORED)
    inputs, mask, wanted = (x.to(lm.device) for x in (inputs, mask, wanted))
    logits = lm(input_ids=inputs, attention_mask=mask.long(), use_cache=False).logits.float()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
