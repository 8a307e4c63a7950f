"""Rollouts without a model, for the tests of policy algorithms: random ones, and all there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostinato.contract.batches import PolicyOutputs, Rollout
from ostinato.contract.plugins import activate

TABLES = ("rewards", "logprobs", "ref_logprobs", "values", "advantages", "returns")


def algorithm(name: str, **settings: Any) -> Any:
    """A policy algorithm with its settings."""
    return activate([(name, settings)], "test")[name].instance


def random_rollout(seed: int, responses: int = 1, far: float = 0.4) -> tuple[Rollout, Tensor]:
    """A float64 rollout and the policy's new log-probabilities (B, T), ``far`` from the old.

    Ragged responses whose padding holds junk; the rows of one prompt do not stand together.
    """
    draw = np.random.default_rng(seed)
    prompts, tokens = int(draw.integers(2, 5)), int(draw.integers(4, 9))
    rows = prompts * responses
    mask = np.arange(tokens) < draw.integers(1, tokens + 1, rows)[:, None]
    made = {name: torch.tensor(draw.normal(size=(rows, tokens))) for name in TABLES}
    new = made["logprobs"] + far * torch.tensor(draw.normal(size=(rows, tokens)))
    rollout = Rollout(
        samples=None,  # type: ignore[arg-type]
        mask=torch.tensor(mask),
        score=torch.tensor(draw.normal(size=rows)),
        kl_coefficient=torch.tensor(draw.uniform(0.1, 0.9, size=rows)),
        group=torch.tensor(draw.permutation(np.repeat(np.arange(prompts), responses))),
        finished=torch.ones(rows, dtype=torch.bool),
        **made,
    )
    return rollout, new


def with_advantages(made: Any, rollout: Rollout) -> Rollout:
    """The rollout as the engine hands it to ``loss``."""
    advantages, returns = made.advantages(rollout, None)
    return replace(rollout, advantages=advantages, returns=returns)


def terms(made: Any, rollout: Rollout, new: Tensor) -> dict[str, Tensor]:
    """What the algorithm's loss says of these log-probabilities."""
    outputs = PolicyOutputs(new, torch.zeros_like(new), None, None)  # type: ignore[arg-type]
    found: dict[str, Tensor] = made.loss(rollout, outputs, None)
    return found


def total(found: dict[str, Tensor]) -> Tensor:
    """The sum that is minimised."""
    return torch.stack([v for key, v in found.items() if not key.startswith("log/")]).sum()


WORDS = 3
SENTENCES = list(product(range(WORDS), repeat=2))  # every response there is
SIZE = WORDS + WORDS**2


def parameters(seed: int) -> Tensor:
    """Logits of a softmax policy over two tokens, the second given the first."""
    return torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tables(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the first token (V,), and of the second given the first (V, V)."""
    return theta[:WORDS].log_softmax(0), theta[WORDS:].view(WORDS, WORDS).log_softmax(1)


def logprobs(theta: Tensor, sentences: Sequence[tuple[int, int]]) -> Tensor:
    """Log-probabilities of these responses' tokens (B, 2)."""
    first, second = tables(theta)
    a, b = torch.tensor(sentences).T
    return torch.stack([first[a], second[a, b]], dim=1)


def sentence_rollout(
    sentences: Sequence[tuple[int, int]],
    sampler: Tensor,
    reference: Tensor,
    score: Callable[[tuple[int, int]], float],
    beta: float,
    responses: int,
) -> Rollout:
    """These responses, ``responses`` to a prompt; the score on the last token, k1 KL on each."""
    old, ref = logprobs(sampler, sentences), logprobs(reference, sentences)
    scores = torch.tensor([score(s) for s in sentences], dtype=torch.float64)
    rows = len(sentences)
    return Rollout(
        samples=None,  # type: ignore[arg-type]
        mask=torch.ones(rows, 2, dtype=torch.bool),
        score=scores,
        rewards=torch.stack([torch.zeros_like(scores), scores], dim=1) - beta * (old - ref),
        logprobs=old,
        ref_logprobs=ref,
        values=torch.zeros_like(old),
        kl_coefficient=torch.full((rows,), beta, dtype=torch.float64),
        group=torch.arange(rows) // responses,
        finished=torch.ones(rows, dtype=torch.bool),
        advantages=torch.zeros_like(old),
        returns=torch.zeros_like(old),
    )


def expected_gradient(
    made: Any,
    theta: Tensor,
    reference: Tensor,
    score: Callable[[tuple[int, int]], float],
    beta: float,
    sampler: Tensor | None = None,
) -> Tensor:
    """Gradient of the algorithm's loss, averaged over every sample of a prompt's responses.

    They are drawn from the policy with the parameters ``sampler``, by default ``theta``. All
    samples stand in one batch; each is weighted by its chance through advantage and coefficient,
    which a loss must be linear in.
    """
    sampler = theta if sampler is None else sampler
    count = made.responses_per_prompt
    drawn = list(product(SENTENCES, repeat=count))
    flat = [sentence for sample in drawn for sentence in sample]
    rollout = with_advantages(made, sentence_rollout(flat, sampler, reference, score, beta, count))
    chance = rollout.logprobs.sum(1).view(-1, count).sum(1).exp().repeat_interleave(count)
    weight = chance * len(drawn)  # the loss is a mean over all
    rollout = replace(
        rollout,
        advantages=rollout.advantages * weight[:, None],
        kl_coefficient=rollout.kl_coefficient * weight,
    )
    theta = theta.clone().requires_grad_()
    value = total(terms(made, rollout, logprobs(theta, flat)))
    return torch.autograd.grad(value, theta)[0]


def policy_gradient(
    theta: Tensor, reference: Tensor, score: Callable[[tuple[int, int]], float], beta: float
) -> Tensor:
    """Gradient of E[score] - beta KL(policy || reference), by differentiating the sum itself."""
    theta = theta.clone().requires_grad_()
    whole = logprobs(theta, SENTENCES).sum(1)
    scores = torch.tensor([score(s) for s in SENTENCES], dtype=torch.float64)
    gap = whole - logprobs(reference, SENTENCES).sum(1)
    objective = (whole.exp() * (scores - beta * gap)).sum()
    return torch.autograd.grad(objective, theta)[0]
