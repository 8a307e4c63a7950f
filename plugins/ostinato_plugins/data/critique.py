"""Revision by principles: a language model rewrites responses, and the rewrites are preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field, field_validator
from transformers import AutoModelForCausalLM

from ostinato import (
    Context,
    Policy,
    PromptSet,
    Samples,
    hookimpl,
    prompt_tokens,
    response_tokens,
)
from ostinato.config.sections import ModelSection
from ostinato.models.generation import check_length, stop_token
from ostinato.models.loading import load_model, load_tokenizer

QUESTION = "Prompt: {prompt}\n\nResponse: {response}\n\n"
CRITIQUE = QUESTION + "Criticise this response by the principle: {principle}\n\nCritique:"
REVISION = (
    QUESTION
    + "Critique by the principle: {principle}\n{critique}\n\n"
    + "The response, rewritten so that it follows the principle:"
)
SLOTS = {"critique": {"prompt", "response", "principle"}}
SLOTS["revision"] = SLOTS["critique"] | {"critique"}
KEY = "plugins.critique"
Row = dict[str, Any]


class Critique:
    """Let a language model rewrite responses by principles, and prefer the rewrites (Book 13.2)."""

    paper = "A Little Bit of RLHF, section 13.2; Bai et al. 2022 (Constitutional AI), section 3.1"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid", validate_default=True)
        principles: list[str] = Field(
            min_length=1, description="sentences, of which each revision draws one"
        )
        model: str | None = Field(
            None,
            description="hub name or path of the causal language model that rewrites; the run's "
            "own SFT policy when left out",
        )
        tokenizer: str | None = Field(
            None, description="hub name or path; the model's own when left out"
        )
        of: Literal["chosen", "rejected"] = Field(
            "rejected", description="which response of a comparison is rewritten"
        )
        share: float = Field(1.0, gt=0, le=1, description="share of those that are rewritten")
        rounds: int = Field(1, ge=1, description="revisions, each of the one before")
        critique: str | None = Field(
            CRITIQUE,
            description="asks for the critique: a format string over prompt, response and "
            "principle; null revises without one",
        )
        revision: str = Field(
            REVISION, description="asks for the rewrite: likewise, with {critique} too"
        )
        chat: bool = Field(
            True, description="ask in a user's turn where the tokenizer has a chat template"
        )
        max_new_tokens: int | None = Field(
            None, ge=1, description="longest critique or rewrite; generation's when left out"
        )
        label: float = Field(1.0, gt=0.5, le=1, description="P(the rewrite is preferred)")

        @field_validator("critique", "revision")
        @classmethod
        def _slots(cls, value: str | None, info: Any) -> str | None:
            allowed = SLOTS[info.field_name]
            try:
                found = {
                    name for _, name, _, _ in Formatter().parse(value or "") if name is not None
                }
            except ValueError as error:
                raise ValueError(f"cannot be filled in: {error}") from None
            if odd := sorted(found - allowed):
                names = ", ".join(sorted(allowed))
                raise ValueError(f"asks for {{{odd[0]}}}, expected some of {names}")
            if value is not None and "response" not in found:
                raise ValueError("has no {response}")
            return value

    config: Config

    def __init__(self) -> None:
        self.rewrites: dict[str, str | None] = {}  # by the response's id; None: there is none

    @hookimpl
    def refine_data(self, data: Dataset, ctx: Context) -> Dataset:
        """Adds a comparison, rewrite over response, for each response that was rewritten.

        Each response is rewritten once in a run: in later iterations its rewrite is known.
        """
        of = self.config.of
        rows: dict[str, Row] = {}
        for row in data.to_list():
            rows.setdefault(row[f"{of}_id"], row)
        new = {name: row for name, row in rows.items() if name not in self.rewrites}
        if new:
            self._rewrite(new, ctx)
        policy = ctx.sft.load()
        added = [
            self._row(row, text, policy, ctx)
            for name, row in rows.items()
            if (text := self.rewrites[name]) is not None
        ]
        ctx.log(**{"critique/added": float(len(added))})
        return Dataset.from_list([*data.to_list(), *added], features=data.features)

    def _rewrite(self, rows: Mapping[str, Row], ctx: Context) -> None:
        """Fills in what becomes of each response.

        What was not drawn, was not finished or came out as it was has no rewrite.
        """
        chosen = torch.rand(len(rows), generator=ctx.generator("critique share"))
        drawn = [n for n, u in zip(rows, chosen.tolist(), strict=True) if u < self.config.share]
        self.rewrites |= dict.fromkeys(rows)
        if not drawn:
            return
        prompts = [rows[name]["prompt"] for name in drawn]
        first = [rows[name][self.config.of] for name in drawn]
        writer, texts = _Writer.load(self.config, ctx), first
        whole = torch.ones(len(drawn), dtype=torch.bool)
        for place in range(self.config.rounds):
            texts, finished = writer.revised(prompts, texts, place, ctx)
            whole &= finished.cpu()
        for name, before, after, good in zip(drawn, first, texts, whole.tolist(), strict=True):
            if good and after and after != before:
                self.rewrites[name] = after

    def _row(self, row: Row, text: str, policy: Policy, ctx: Context) -> Row:
        """The comparison of a response with its rewrite, in the policy's tokens."""
        tokenizer, of = policy.tokenizer, self.config.of
        stop = stop_token(tokenizer, ctx.config.generation)
        (ids,) = response_tokens(tokenizer, [text], [True], stop)
        parts = {name.removeprefix(of): value for name, value in row.items() if name.startswith(of)}
        made = row | {f"rejected{part}": value for part, value in parts.items()}
        made |= {f"chosen{part}": None for part in parts}
        return made | {
            "chosen": tokenizer.decode(ids[:-1], skip_special_tokens=True),
            "chosen_ids": ids,
            "chosen_finished": True,
            "chosen_id": f"critique/{row[f'{of}_id']}",
            "label": self.config.label,
            "margin": 0.0,
            "weight": 1.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """The rewrites: a resumed run goes on with the same."""
        return {"rewrites": self.rewrites}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rewrites = dict(state["rewrites"])


class _Writer:
    """The language model, and how it is asked."""

    def __init__(self, policy: Policy, settings: Critique.Config) -> None:
        self.policy, self.settings = policy, settings

    @classmethod
    def load(cls, settings: Critique.Config, ctx: Context) -> _Writer:
        """Raises UserError where there is no such model."""
        if settings.model is None:
            return cls(ctx.sft.load(), settings)
        section = ModelSection(model=settings.model, tokenizer=settings.tokenizer)
        tokenizer = load_tokenizer(section, KEY)
        lm = load_model(AutoModelForCausalLM, section, tokenizer, KEY)
        return cls(Policy(lm.to(ctx.device), tokenizer), settings)

    def revised(
        self, prompts: Sequence[str], responses: Sequence[str], place: int, ctx: Context
    ) -> tuple[list[str], torch.Tensor]:
        """The responses, each rewritten by a principle drawn for it, and which are finished."""
        known, count = self.settings.principles, len(prompts)
        generator = ctx.generator(f"critique principles {place}")
        by = [known[i] for i in torch.randint(len(known), (count,), generator=generator)]
        slots = [
            {"prompt": p, "response": r, "principle": c, "critique": ""}
            for p, r, c in zip(prompts, responses, by, strict=True)
        ]
        if self.settings.critique is not None:
            found = self._answers(self.settings.critique, slots, f"critique {place}", ctx)
            for slot, text in zip(slots, found.responses, strict=True):
                slot["critique"] = text.strip()
        answers = self._answers(self.settings.revision, slots, f"revision {place}", ctx)
        return [text.strip() for text in answers.responses], answers.finished

    def _answers(
        self, template: str, slots: Sequence[Mapping[str, str]], purpose: str, ctx: Context
    ) -> Samples:
        tokenizer, texts = self.policy.tokenizer, [template.format(**slot) for slot in slots]
        if self.settings.chat and getattr(tokenizer, "chat_template", None) is not None:
            turns = [[{"role": "user", "content": text}] for text in texts]
            how = {"tokenize": False, "add_generation_prompt": True}
            texts = tokenizer.apply_chat_template(turns, **how)
        tokens = prompt_tokens(tokenizer, texts)
        generation = ctx.config.generation
        changes: dict[str, Any] = {}
        if self.settings.model is not None:
            changes["stop"] = None  # it names a token of the policy's vocabulary
        if self.settings.max_new_tokens is not None:
            changes["max_new_tokens"] = self.settings.max_new_tokens
        config = ctx.config.model_copy(update={"generation": generation.model_copy(update=changes)})
        check_length(self.policy.lm, max(map(len, tokens)), config.generation, KEY)
        asked = PromptSet(list(range(len(texts))), texts, tokens)
        return ctx.at(config=config).sample(self.policy, asked, purpose)
