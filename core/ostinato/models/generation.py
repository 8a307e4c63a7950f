"""Batched sampling of responses with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ostinato.config.errors import NonFiniteError, UserError, closest
from ostinato.config.sections import GenerationSection
from ostinato.models.loading import padded
from ostinato.models.policy import Policy
from ostinato.models.samples import Samples


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
) -> Samples:
    """One response to each prompt (token ids), drawn at the policy's temperature.

    Prompts are padded left, responses right with the pad token; the stop token is looked for in
    the response only and is its last real token. ``texts``: the prompts as they were before they
    became tokens, which lose what the vocabulary lacks. ``top_p`` restricts each token's draw.
    """
    stop = stop_token(policy.tokenizer, settings)
    pad = int(policy.tokenizer.pad_token_id)
    device = policy.lm.device
    ids, mask = padded(prompts, pad, left=True)
    ids, mask = ids.to(device), mask.to(device)
    parts = [
        _sample_batch(policy, i, m, settings.max_new_tokens, stop, pad, generator, top_p)
        for i, m in zip(ids.split(settings.batch), mask.split(settings.batch), strict=True)
    ]
    width = max(part.shape[1] for part in parts)
    responses = torch.cat(
        [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-1) for part in parts]
    )
    real = responses >= 0
    responses = responses.masked_fill(~real, pad)
    last = responses.gather(1, (real.sum(1, keepdim=True) - 1).clamp_min(0)).squeeze(1)
    return Samples(policy.tokenizer, ids, mask, responses, real, last == stop, texts)


def _sample_batch(
    policy: Policy,
    ids: Tensor,
    mask: Tensor,
    limit: int,
    stop: int,
    pad: int,
    generator: torch.Generator,
    top_p: float,
) -> Tensor:
    """Responses (B, T), -1 after the stop token."""
    trunk, cache = policy.lm.base_model, DynamicCache(config=policy.lm.config)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    ragged = not bool(mask.all())
    seen = mask.long()
    positions = (seen.cumsum(1) - 1).clamp_min(0)
    step, out = ids, []
    for _ in range(limit):
        extra = {"attention_mask": seen, "position_ids": positions} if ragged else {}
        states = trunk(input_ids=step, past_key_values=cache, use_cache=True, **extra)[0]
        token = draw(nucleus(policy.logits(states[:, -1]), top_p), generator)
        out.append(token.masked_fill(done[:, None], -1))
        done = done | (token[:, 0] == stop)
        if bool(done.all()):
            break
        step = token.masked_fill(done[:, None], pad)
        if ragged:
            seen = torch.cat([seen, torch.ones_like(token)], dim=1)
            positions = positions[:, -1:] + 1
    return torch.cat(out, dim=1)


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
