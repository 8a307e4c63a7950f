"""Batches of policy optimisation: samples, rewards, rollouts. Letters: B responses, T tokens.

Every field can be given; what is left out is drawn, the same for a seed. Lists become tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields as fields_of
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from ostinato.config.draws import Draws
from ostinato.contract.batches import PolicyOutputs, RewardBatch, Rollout
from ostinato.engine.rollouts import token_rewards
from ostinato.models.loading import padded, response_tokens
from ostinato.models.samples import Samples
from ostinato.testing.models import prompts, tiny_policy, tokenizer

T = TypeVar("T")
LENGTHS = (3, 5, 2, 6)  # of responses, stop token included; repeated where there are more
HIDDEN = 16  # of a tiny reward model
SPECIAL = 3  # the first ids: <eos>, <pad>, <unk>


def samples(
    lengths: Sequence[int] | None = None,
    *,
    responses: Sequence[str] | None = None,
    per_prompt: int = 1,
    seed: int = 0,
    **fields: Any,
) -> Samples:
    """Responses to prompts of the micro world; the last one, if drawn, lacks its stop token.

    ``lengths`` count their tokens; with ``responses`` they are these texts. ``per_prompt``
    responses to one prompt stand side by side.
    """
    known = tokenizer()
    if responses is not None:
        given = _tensor(fields.get("finished", [True] * len(responses)), torch.bool).tolist()
        rows = response_tokens(known, responses, given)
    else:
        wanted = LENGTHS if lengths is None else lengths
        given = [True] * (len(wanted) - 1) + [False]
        given = _tensor(fields.get("finished", given), torch.bool).tolist()
        draw = Draws(seed).generator("responses")
        rows = [
            torch.randint(SPECIAL, len(known), (n,), generator=draw).tolist()[: n - done]
            + [known.eos_token_id] * done
            for n, done in zip(wanted, given, strict=True)
        ]
    asked = prompts(-(-len(rows) // per_prompt)).repeated(per_prompt).first(len(rows))
    ids, seen = padded(asked.tokens, known.pad_token_id, left=True)
    answers, mask = padded(rows, known.pad_token_id)
    made = {"tokenizer": known, "prompt_ids": ids, "prompt_mask": seen, "texts": asked.texts}
    made |= {"response_ids": answers, "mask": mask, "finished": torch.tensor(given)}
    return Samples(**{**made, **fields, "finished": made["finished"]})


def rewards(
    lengths: Sequence[int] | None = None,
    *,
    members: int = 1,
    heads: int = 1,
    per_prompt: int = 1,
    seed: int = 0,
    **fields: Any,
) -> RewardBatch:
    """Rewards of B rollouts on their way to the optimiser.

    ``score`` is the mean of ``parts`` (B, members, heads) where neither is given.
    """
    drawn = _Drawn(lengths, per_prompt, seed, fields)
    made = drawn.shared() | {"part_std": None, "kl_coefficient": 0.05, "iteration": 1, "step": 0}
    shape = (drawn.rows, members, heads)
    score = made["score"]
    spread = drawn.normal("parts", *shape)
    spread = spread - spread.flatten(1).mean(1)[:, None, None]
    made |= {"parts": score[:, None, None] + spread, "kl_scale": torch.ones(drawn.rows)}
    made["hidden"] = drawn.normal("hidden", drawn.rows, members, HIDDEN)
    return drawn.filled(RewardBatch, made)


def rollout(
    lengths: Sequence[int] | None = None, *, per_prompt: int = 1, seed: int = 0, **fields: Any
) -> Rollout:
    """What a policy algorithm learns from; advantages and returns are 0 until it makes them.

    ``rewards`` hold the score at the end and the KL penalty at each token, unless given.
    """
    drawn = _Drawn(lengths, per_prompt, seed, fields)
    made = drawn.shared()
    mask, each = made["mask"], made["logprobs"] - made["ref_logprobs"]
    coefficient = drawn.tensor("kl_coefficient", torch.full((drawn.rows,), 0.05))
    paid = token_rewards(made["score"], each, coefficient, mask, True)
    values = drawn.normal("values", *mask.shape) * mask
    nothing = torch.zeros_like(each)
    made |= {"rewards": paid, "values": values, "kl_coefficient": coefficient}
    return drawn.filled(Rollout, made | {"advantages": nothing, "returns": nothing.clone()})


def policy_outputs(batch: Rollout, far: float = 0.1, seed: int = 0, **fields: Any) -> PolicyOutputs:
    """The policy's answers for a rollout, ``far`` from the old ones; logprobs take a gradient."""
    drawn = torch.randn(batch.mask.shape, generator=Draws(seed).generator("outputs"))
    made: dict[str, Any] = {
        "logprobs": ((batch.logprobs + far * drawn) * batch.mask).requires_grad_(),
        "values": batch.values.clone().requires_grad_(),
    }
    for name in ("policy", "reference"):
        if name not in fields:
            made[name] = tiny_policy()
    return PolicyOutputs(**made | fields)


class _Drawn:
    """The fields of one batch: given ones as tensors, all others drawn."""

    def __init__(
        self, lengths: Sequence[int] | None, per_prompt: int, seed: int, given: dict[str, Any]
    ) -> None:
        self.seed, self.given, self.per_prompt = seed, given, per_prompt
        if "samples" not in given:
            given["samples"] = samples(self._lengths(lengths), per_prompt=per_prompt, seed=seed)
        self.samples: Samples = given["samples"]
        self.rows = len(self.samples.mask)

    def _lengths(self, lengths: Sequence[int] | None) -> list[int]:
        """As many as the given fields have rows; all of their width, where they have one."""
        if lengths is not None:
            return list(lengths)
        if "mask" in self.given:
            return [int(n) for n in _tensor(self.given["mask"], torch.bool).sum(1)]
        sized = (v for v in self.given.values() if isinstance(v, Tensor | list | tuple))
        shapes = [tuple(torch.as_tensor(v).shape) for v in sized]
        rows = next((shape[0] for shape in shapes if shape), 0)
        width = next((shape[1] for shape in shapes if len(shape) == 2), None)
        if width is not None:
            return [width] * rows
        return list(islice(cycle(LENGTHS), rows or len(LENGTHS) * self.per_prompt))

    def tensor(self, name: str, default: Tensor) -> Tensor:
        """The field, as a tensor of the default's kind where it is a list."""
        return _tensor(self.given[name], default.dtype) if name in self.given else default

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers, for each field others."""
        return torch.randn(shape, generator=Draws(self.seed).generator(name))

    def shared(self) -> dict[str, Any]:
        """What rewards and rollouts both have."""
        mask = self.tensor("mask", self.samples.mask)
        reference = -2 * self.normal("ref_logprobs", *mask.shape).abs() * mask
        near = (reference + 0.2 * self.normal("logprobs", *mask.shape)).clamp_max(0) * mask
        return {
            "samples": self.samples,
            "mask": mask,
            "score": self.tensor("score", self.normal("score", self.rows)),
            "logprobs": self.tensor("logprobs", near),
            "ref_logprobs": self.tensor("ref_logprobs", reference),
            "finished": self.samples.finished,
            "group": torch.arange(self.rows) // self.per_prompt,
        }

    def filled(self, kind: type[T], made: dict[str, Any]) -> T:
        """The batch; TypeError, naming it, for a field that it does not have."""
        known = {field.name for field in fields_of(kind)}  # type: ignore[arg-type]
        if unknown := sorted(set(self.given) - known):
            raise TypeError(f"{kind.__name__} has no field '{unknown[0]}'")
        found = {n: v for n, v in made.items() if n in known} | self.given
        for name, value in found.items():
            default = made.get(name)
            if isinstance(value, list | tuple):
                kept = default.dtype if isinstance(default, Tensor) else None
                found[name] = _tensor(value, kept)
        return kind(**found)


def _tensor(value: Any, dtype: torch.dtype | None) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=dtype)
