"""A language model that says which of two responses is better, for plugins that need a judge."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from os.path import expanduser, isdir
from string import Formatter
from typing import Any, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from ostinato import Context, UserError

TEMPLATE = """Here are a prompt and two responses to it.

Prompt: {prompt}

Response A: {first}

Response B: {second}

{principles}Which response is better, A or B?"""
SLOTS = ("prompt", "first", "second", "principles")


class JudgeSettings(BaseModel):
    """Which model judges, and how it is asked."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
    model: str | None = Field(
        None,
        description="hub name or path of the causal language model that judges; the run's own "
        "SFT policy when left out",
    )
    tokenizer: str | None = Field(
        None, description="hub name or path; the model's own when left out"
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the judge's weights; fp32 on a CPU, bf16 on a GPU"
    )
    batch: int = Field(16, ge=1, description="questions read at once")
    template: str = Field(
        TEMPLATE,
        description="the question: a format string over prompt, first, second and principles",
    )
    lead: str = Field(
        "The better response is",
        description="begins the judge's answer, in its own turn where there is a chat template",
    )
    answers: tuple[str, str] = Field(
        (" A", " B"),
        description="what follows if the response at {first}, or at {second}, is the better",
    )
    chat: bool = Field(
        True, description="put the question into the tokenizer's chat template, if it has one"
    )
    principles: list[str] = Field(
        [], description="sentences to judge by, each on a line of its own at {principles}"
    )
    principle: Literal["one", "all"] = Field(
        "one", description="one drawn for each comparison (Constitutional AI), or all of them"
    )

    @field_validator("model")
    @classmethod
    def _there(cls, value: str | None) -> str | None:
        if value and value.startswith((".", "/", "~")) and not isdir(expanduser(value)):
            raise ValueError(f"no folder '{value}'")
        return value

    @model_validator(mode="after")
    def _whole(self) -> JudgeSettings:
        for complaint in self._complaints():
            raise ValueError(complaint)
        return self

    def _complaints(self) -> Iterator[str]:
        try:
            slots = {name for _, name, _, _ in Formatter().parse(self.template)} - {None}
        except ValueError as error:
            yield f"template: {error}; a brace of the text itself is written twice"
            return
        for name in sorted(map(str, slots - set(SLOTS))):
            yield f"template: unknown {{{name}}}; valid names are {', '.join(SLOTS)}"
        for name in ("first", "second"):
            if name not in slots:
                yield f"template: has no {{{name}}}, so the judge would not see that response"
        if slots <= set(SLOTS):
            try:
                self.template.format(**dict.fromkeys(SLOTS, ""))
            except (ValueError, LookupError) as error:
                yield f"template: cannot be filled in: {error}; write a bare name in braces"
        if bool(self.principles) != ("principles" in slots) and self.template != TEMPLATE:
            fault = "has no {principles}" if self.principles else "has {principles}"
            yield f"template: {fault}, but there are {'some' if self.principles else 'none'}"
        if self.answers[0] == self.answers[1]:
            yield f"answers: both are '{self.answers[0]}'"
        if self.tokenizer is not None and self.model is None:
            yield "tokenizer: is given without a model"


class Judge:
    """A causal language model that answers questions with one of two texts.

    ``key``: what its settings stand under in a run file, for complaints.
    """

    def __init__(self, lm: Any, tokenizer: Any, settings: JudgeSettings, key: str) -> None:
        self.lm, self.tokenizer, self.settings, self.key = lm, tokenizer, settings, key
        self.chat = settings.chat and getattr(tokenizer, "chat_template", None) is not None
        self.keeps = "logits_to_keep" in inspect.signature(lm.forward).parameters
        bare, whole = (tokenizer("a", add_special_tokens=s)["input_ids"] for s in (False, True))
        self.prefix = [] if self.chat else whole[: whole.index(bare[0])]  # a bos token, or nothing

    @classmethod
    def load(cls, settings: JudgeSettings, ctx: Context, key: str) -> Judge:
        """The judge that the settings name; let it go soon, for training needs the room."""
        if settings.model is None:
            policy = ctx.sft.load()
            return cls(policy.lm, policy.tokenizer, settings, key)
        cpu = ctx.device.type == "cpu"
        dtype = settings.dtype if settings.dtype != "auto" else ("fp32" if cpu else "bf16")
        lm, tokenizer = loaded(settings.model, settings.tokenizer, dtype, key)
        return cls(lm.to(ctx.device).eval(), tokenizer, settings, key)

    def both_orders(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Log-odds (2, comparisons) of the place A: first stands there, then second.

        ``generator`` draws the principle of a comparison, the same in both orders.
        """
        by = self._principles(len(prompts), generator)
        asked = [self._question(*row) for row in zip(prompts, first, second, by, strict=True)]
        asked += [self._question(*row) for row in zip(prompts, second, first, by, strict=True)]
        return self.log_odds(asked).view(2, -1)

    def _question(self, prompt: str, first: str, second: str, principles: str) -> str:
        return self.settings.template.format(
            prompt=prompt, first=first, second=second, principles=principles
        )

    def _principles(self, count: int, generator: torch.Generator) -> list[str]:
        """What stands at {principles} in each comparison's question."""
        sentences = [f"{sentence}\n" for sentence in self.settings.principles]
        if not sentences or self.settings.principle == "all":
            return ["".join(sentences)] * count
        return [sentences[i] for i in torch.randint(len(sentences), (count,), generator=generator)]

    @torch.no_grad()
    def log_odds(self, questions: Sequence[str]) -> Tensor:
        """log P(answers[0]) - log P(answers[1]) after each question (questions,), in nats.

        An answer of several tokens counts with the sum of their log-probabilities. Tokens that
        both answers begin with cancel. Raises UserError where answers are the same to the model,
        or a question is longer than it can read.
        """
        wanted: dict[tuple[int, ...], list[tuple[int, int, int, float]]] = defaultdict(list)
        encoded = [self._encode(questions, answer) for answer in self.settings.answers]
        for row, pair in enumerate(zip(*encoded, strict=True)):
            shared = self._shared(*pair)
            for ids, sign in zip(pair, (1.0, -1.0), strict=True):
                for place in range(shared, len(ids)):
                    wanted[tuple(ids[:-1])].append((row, place - 1, ids[place], sign))
        self._check_length(max(map(len, wanted)))
        odds = torch.zeros(len(questions), dtype=torch.float64)
        texts = sorted(wanted, key=len, reverse=True)
        for start in range(0, len(texts), self.settings.batch):
            part = texts[start : start + self.settings.batch]
            places = sorted({place for ids in part for _, place, _, _ in wanted[ids]})
            logprobs = self._read(part, places)  # (batch, places, vocabulary)
            for at, ids in enumerate(part):
                for row, place, token, sign in wanted[ids]:
                    odds[row] += sign * float(logprobs[at, places.index(place), token])
        return odds

    def _encode(self, questions: Sequence[str], answer: str) -> list[list[int]]:
        """Tokens of each question with this answer; whole texts, for tokens may join at a seam."""
        lead = self.settings.lead
        if self.chat:
            turns = [[{"role": "user", "content": question}] for question in questions]
            asked = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            texts = [f"{text}{lead}{answer}" for text in asked]
        else:
            texts = [f"{question}\n{lead}{answer}" for question in questions]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*self.prefix, *row] for row in rows]

    def _shared(self, first: list[int], second: list[int]) -> int:
        """How many tokens the two begin with alike."""
        shared = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
        )
        if shared == min(len(first), len(second)):
            one, other = self.settings.answers
            same = "the same tokens" if first == second else "the beginning of each other"
            raise UserError(
                f"{self.key}.answers: '{one}' and '{other}' are {same} to the judge's "
                "tokenizer; choose two that it tells apart"
            )
        if not shared:  # empty responses in a template that has no words of its own
            raise UserError(f"{self.key}.lead: a question has no token before its answer")
        return shared

    def _check_length(self, tokens: int) -> None:
        config = self.lm.config.get_text_config()
        room = getattr(config, "max_position_embeddings", None) or tokens
        if tokens > room:
            raise UserError(
                f"{self.key}.template: the longest question has {tokens} tokens, but the "
                f"judge reads {room}; shorten it, prompts.max_tokens or generation.max_new_tokens"
            )

    def _read(self, rows: Sequence[Sequence[int]], places: Sequence[int]) -> Tensor:
        """Log-probabilities of what follows each place (rows, places, vocabulary), in nats."""
        width, device = max(map(len, rows)), self.lm.device
        pad = self.tokenizer.pad_token_id or 0  # behind the text, where nothing sees it
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = (torch.arange(width, device=device) < lengths[:, None]).long()
        keep = torch.tensor(places, device=device)
        if self.keeps:
            asked = {"logits_to_keep": keep}
            logits = self.lm(input_ids=ids, attention_mask=mask, use_cache=False, **asked).logits
        else:
            logits = self.lm(input_ids=ids, attention_mask=mask).logits[:, keep]
        found: Tensor = logits.float().log_softmax(-1)
        return found


def loaded(model: str, tokenizer: str | None, dtype: str, key: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer; no code that comes with them is run.

    Raises UserError where either is not there, or the checkpoint has no language-model head.
    """
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    lm, facts = _from_pretrained(
        "AutoModelForCausalLM", model, f"{key}.model", dtype=kind, output_loading_info=True
    )
    if lacking := sorted(facts["missing_keys"]):  # transformers filled them with random numbers
        raise UserError(
            f"{key}.model: '{model}' is no causal language model: its checkpoint "
            f"holds no '{lacking[0]}'"
        )
    name = tokenizer or model
    words = _from_pretrained("AutoTokenizer", name, f"{key}.tokenizer")
    if not words("a", add_special_tokens=False)["input_ids"]:  # made of a bare config
        raise UserError(f"{key}.tokenizer: '{name}' holds no tokenizer; name one")
    return lm, words


def _from_pretrained(auto: str, name: str, key: str, **arguments: Any) -> Any:
    path = expanduser(name)
    try:
        return getattr(transformers, auto).from_pretrained(
            path, trust_remote_code=False, **arguments
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{key}: '{name}' cannot be loaded: {first}") from error


def preference(odds: Tensor) -> Tensor:
    """Log-odds (comparisons,) that first is better: both orders, averaged, so position cancels.

    An additive preference of a place, in nats, is gone from (odds(1, 2) - odds(2, 1)) / 2.
    """
    return (odds[0] - odds[1]) / 2


def inconsistent(odds: Tensor) -> float:
    """Share of comparisons in which one place wins twice: the order decides."""
    return float((odds[0] * odds[1] > 0).double().mean())
