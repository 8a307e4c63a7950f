"""Batched sampling of responses with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ostinato.config.errors import NonFiniteError, UserError, closest
from ostinato.config.sections import GenerationSection
from ostinato.models.loading import padded
from ostinato.models.policy import Policy
from ostinato.models.samples import Samples, below

Shape = Callable[[Tensor, Tensor | None], Tensor]


def stop_token(tokenizer: Any, settings: GenerationSection) -> int:
    """The id, in the policy's tokenizer, of the token that ends a response."""
    if settings.stop is None:
        return int(tokenizer.eos_token_id)
    known = tokenizer.get_vocab()
    if settings.stop not in known:
        wrong = f"generation.stop: '{settings.stop}' is no token of the policy's tokenizer"
        raise UserError(f"{wrong}{closest(settings.stop, known)}")
    return int(known[settings.stop])


def check_length(
    model: Any, longest_prompt: int, settings: GenerationSection, whose: str = "policy"
) -> None:
    """UserError where prompt and response (in tokens) do not fit into the model's context."""
    room = getattr(model.config, "max_position_embeddings", None)
    asked = settings.max_new_tokens
    if room is not None and longest_prompt + asked > room:
        whole = f"generation.max_new_tokens {asked} after a prompt of {longest_prompt} tokens"
        hint = "lower it or prompts.max_tokens"
        raise UserError(f"{whole} exceeds the {whose}'s context of {room}; {hint}")


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSection,
    generator: torch.Generator,
    texts: Sequence[str] | None = None,
    top_p: float = 1.0,
    shape: Shape | None = None,
    reference: Policy | None = None,
) -> Samples:
    """One response to each prompt (token ids), drawn at the policy's temperature.

    Prompts are padded left, responses right with the pad token; the stop token is looked for in
    the response only and is its last real token. ``texts``: the prompts as they were before they
    became tokens, which lose what the vocabulary lacks. ``top_p`` restricts each token's draw.
    ``shape(logits, reference_logits)`` answers the logits (B, vocabulary) that are drawn from;
    the second are None without a ``reference``. The samples then have ``logprobs``.
    """
    stop = stop_token(policy.tokenizer, settings)
    pad = int(policy.tokenizer.pad_token_id)
    device = policy.lm.device
    ids, mask = padded(prompts, pad, left=True)
    ids, mask = ids.to(device), mask.to(device)
    draws = _Draws(policy, reference, shape, top_p, generator)
    drawn = [
        _sample_batch(draws, i, m, settings.max_new_tokens, stop, pad)
        for i, m in zip(ids.split(settings.batch), mask.split(settings.batch), strict=True)
    ]
    responses = below([tokens for tokens, _ in drawn], fill=-1)
    real = responses >= 0
    responses = responses.masked_fill(~real, pad)
    last = responses.gather(1, (real.sum(1, keepdim=True) - 1).clamp_min(0)).squeeze(1)
    found = [logprobs for _, logprobs in drawn if logprobs is not None]
    logprobs = below(found) if found else None
    return Samples(policy.tokenizer, ids, mask, responses, real, last == stop, texts, logprobs)


@dataclass(frozen=True)
class _Draws:
    """Where the next tokens come from."""

    policy: Policy
    reference: Policy | None
    shape: Shape | None
    top_p: float
    generator: torch.Generator

    def readers(self) -> list[_Reader]:
        """The policy, and the reference where there is one, before the first token."""
        return [_Reader(p) for p in (self.policy, self.reference) if p is not None]

    def __call__(self, logits: Tensor, *reference: Tensor) -> tuple[Tensor, Tensor | None]:
        """A token (B, 1), and its log-probability (B, 1) where logits are reshaped."""
        if self.shape is None:
            return draw(nucleus(logits, self.top_p), self.generator), None
        shaped = nucleus(self.shape(logits, *(reference or (None,))), self.top_p)
        token = draw(shaped, self.generator)
        return token, shaped.float().log_softmax(-1).gather(-1, token)


class _Reader:
    """A policy that reads on, token by token, with its key-value cache."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.cache = policy, DynamicCache(config=policy.lm.config)

    def __call__(self, ids: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, vocabulary) after these further tokens (B, T)."""
        given = {"input_ids": ids, "past_key_values": self.cache, "use_cache": True, **extra}
        states = self.policy.lm.base_model(**given)[0]
        return self.policy.logits(states[:, -1])


def _sample_batch(
    draws: _Draws, ids: Tensor, mask: Tensor, limit: int, stop: int, pad: int
) -> tuple[Tensor, Tensor | None]:
    """Responses (B, T), -1 after the stop token; log-probabilities where logits are reshaped."""
    readers = draws.readers()
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    ragged = not bool(mask.all())
    seen = mask.long()
    positions = (seen.cumsum(1) - 1).clamp_min(0)
    step = ids
    out: list[Tensor] = []
    logprobs: list[Tensor] = []
    for _ in range(limit):
        extra = {"attention_mask": seen, "position_ids": positions} if ragged else {}
        token, logprob = draws(*(read(step, extra) for read in readers))
        out.append(token.masked_fill(done[:, None], -1))
        if logprob is not None:
            logprobs.append(logprob.masked_fill(done[:, None], 0.0))
        done = done | (token[:, 0] == stop)
        if bool(done.all()):
            break
        step = token.masked_fill(done[:, None], pad)
        if ragged:
            seen = torch.cat([seen, torch.ones_like(token)], dim=1)
            positions = positions[:, -1:] + 1
    return torch.cat(out, dim=1), torch.cat(logprobs, dim=1) if logprobs else None


def greedy(logits: Tensor) -> Tensor:
    """Logits (B, vocabulary) of which only the likeliest token, the first of equals, is left."""
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits (B, vocabulary), -inf outside the likeliest tokens that together reach ``top_p``."""
    if top_p == 1:
        return logits
    chances, order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    outside = chances.cumsum(-1) - chances >= top_p  # those before it reach it already
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A token (B, 1) from each softmax of (B, vocabulary): where the cumulative one passes u.

    One random number a row; ``torch.multinomial`` draws one a word, which on a CPU was a third of
    sampling at a vocabulary of 2048. In float64, so that no tail is lost to rounding. Raises
    NonFiniteError.
    """
    cumulative = logits.softmax(-1).double().cumsum(-1)
    total = cumulative[:, -1:]
    if not bool(total.isfinite().all()):
        raise NonFiniteError("the policy's logits are not finite")
    u = torch.rand(total.shape, dtype=total.dtype, device=total.device, generator=generator)
    place = torch.searchsorted(cumulative, u * total, right=True)  # never a token of probability 0
    return place.clamp_max(logits.shape[-1] - 1)
