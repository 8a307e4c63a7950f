"""The responses of a rollout: to which prompts, and from which distribution."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count as counted

import torch
from torch import Tensor

from ostinato.config.errors import NonFiniteError
from ostinato.contract.answers import wrong
from ostinato.contract.context import Context
from ostinato.contract.guards import watched
from ostinato.contract.plugins import Plugins
from ostinato.models.generation import Shape
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.samples import Samples


@dataclass(frozen=True)
class Drawing:
    """The draws of one run of ``optimise``, which ``name`` tells from others of the iteration."""

    plugins: Plugins
    policy: Policy
    anchor: Policy
    name: str
    prompts: PromptSet

    def __call__(self, ctx: Context, prompts: int, responses: int) -> Samples:
        """So many responses to each of so many prompts, those of one prompt side by side."""
        chosen = self.prompts.take(self._chosen(ctx, prompts))
        shape = self._shape(ctx)
        reference = self.anchor if shape and self.plugins.need("reference_logits") else None
        purpose = f"rollout {self.name}"
        who = "' or '".join(self.plugins.implementing("sampling_logits"))
        parts = {f"ctx.{name}": part for name, part in ctx.parts.items()} if shape else {}
        with watched(who, "sampling_logits", parts):
            return ctx.sample(
                self.policy, chosen, purpose, responses, shape=shape, reference=reference
            )

    def _chosen(self, ctx: Context, count: int) -> list[int]:
        """Rows of the RL prompts: what the owner of ``choose_prompts`` says, or permutations."""
        usual = self._permuted(ctx, count)
        if "choose_prompts" not in self.plugins.owners:
            return usual

        def differing(rows: list[int]) -> float:
            return sum((Counter(map(int, rows)) - Counter(usual)).values()) / count

        given = {"prompts": self.prompts, "count": count, "step": ctx.step, "ctx": ctx}
        return [int(i) for i in self.plugins.one("choose_prompts", differing, **given)]

    def _permuted(self, ctx: Context, count: int) -> list[int]:
        """A fresh permutation of the RL prompts each time round; for a refill one of its own."""
        size, purpose = len(self.prompts), f"rl prompts {self.name}"
        start = 0 if ctx.attempt else ctx.step * count
        found: list[int] = []
        for place in range(start, start + count):
            epoch, index = divmod(place, size)
            if not found or index == 0:
                again = ctx.generator(f"{purpose} {epoch}") if ctx.attempt else None
                generator = again or ctx.draws.generator(purpose, epoch)
                order = torch.randperm(size, generator=generator)
            found.append(int(order[index]))
        return found

    def _shape(self, ctx: Context) -> Shape | None:
        """What the ``sampling_logits`` of all plugins make of logits; None without any."""
        hook, calls = "sampling_logits", counted()
        if not self.plugins.implementing(hook):
            return None

        def shape(logits: Tensor, reference: Tensor | None) -> Tensor:
            given = {"reference": reference, "ctx": ctx.at(draw=next(calls))}
            return self.plugins.chain(hook, "logits", logits, moved, **given)

        return shape


def moved(name: str, before: Tensor, after: Tensor) -> float:
    """Mean total variation between what two logits (B, vocabulary) draw, the second checked."""
    hook = "sampling_logits"
    right = isinstance(after, Tensor) and after.is_floating_point() and after.shape == before.shape
    if not right:
        tensor = isinstance(after, Tensor)
        given = f"{after.dtype} {tuple(after.shape)}" if tensor else type(after).__name__
        raise wrong(name, hook, f"answered a {given}, expected logits {tuple(before.shape)}")
    if bool((after.isnan() | (after == torch.inf)).any()):
        raise NonFiniteError(f"plugin '{name}': hook '{hook}' answered a logit that is NaN or inf")
    if not bool(after.isfinite().any(-1).all()):
        raise wrong(name, hook, "left a response no token; one logit of each row should be finite")
    chances = [x.float().softmax(-1) for x in (before, after)]
    return float((chances[0] - chances[1]).abs().sum(-1).mean() / 2)
