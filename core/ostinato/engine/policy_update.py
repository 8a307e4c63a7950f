"""Update the policy on one rollout: epochs of minibatches, accumulation, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.config.errors import NonFiniteError
from ostinato.config.sections import RLSection
from ostinato.contract.algorithms import terms_of
from ostinato.contract.batches import PolicyOutputs, Rollout
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.contract.policy_algorithm import PolicyAlgorithm
from ostinato.engine.displacement import displaced, displacement
from ostinato.models.policy import Policy


@dataclass(frozen=True)
class PolicyUpdate:
    """The optimiser updates of one run of ``optimise``; ``anchor`` is the KL's reference.

    ``on_update(policy, anchor)`` runs after each. ``name`` tells several runs of one iteration
    apart. A rollout takes ``epochs`` times as many updates as its rows fill minibatches.
    """

    plugins: Plugins
    policy: Policy
    anchor: Policy
    algorithm: PolicyAlgorithm
    name: str
    optimiser: torch.optim.Optimizer
    on_update: Callable[[Policy, Policy], None] | None

    def __call__(
        self, rollout: Rollout, whole: PolicyOutputs | None, done: int, ctx: Context
    ) -> dict[str, Any]:
        """Epochs of minibatches; answers the means of what each update logged.

        ``whole``: outputs for the whole rollout with their graph, which serve the first update.
        ``done``: updates before this rollout, which is that of ``ctx.step``.
        """
        rows: list[dict[str, float]] = []
        minibatches = list(self._minibatches(rollout, ctx))
        for place, minibatch in enumerate(minibatches):
            lr = learning_rate(ctx.config.rl, ctx.step, place, len(minibatches))
            rows.append(self._minibatch(rollout, minibatch, whole, lr, ctx.at(update=done)))
            done, whole = done + 1, None
            if self.on_update is not None:
                with torch.no_grad():
                    self.on_update(self.policy, self.anchor)
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        terms = {key: means.pop(key) for key in list(means) if key not in {"grad_norm", "lr"}}
        return {"updates": done, **means, "terms": terms}

    def _minibatches(self, rollout: Rollout, ctx: Context) -> Iterator[Tensor]:
        """Rows of every update: each epoch permutes the rollout, or its groups as wholes."""
        settings, device = ctx.config.rl, rollout.mask.device
        for epoch in range(settings.epochs):
            generator = ctx.generator(f"minibatches {self.name} {epoch}")
            if self.algorithm.whole_groups:
                groups, place = rollout.group.unique(return_inverse=True)
                rank = torch.randperm(len(groups), generator=generator).to(device)
                order = rank[place].argsort(stable=True)
            else:
                order = torch.randperm(len(rollout.mask), generator=generator).to(device)
            yield from self._split(rollout, order, settings.minibatch)

    def _split(self, rollout: Rollout, rows: Tensor, size: int) -> list[Tensor]:
        """Rows in parts of ``size``; a part takes as many whole groups as usually have that size.

        A filter may have left groups of fewer rows, which then fill no part.
        """
        if not self.algorithm.whole_groups:
            return list(rows.split(size))
        count = size // self.algorithm.responses_per_prompt
        sizes = rollout.group[rows].unique_consecutive(return_counts=True)[1].split(count)
        return list(rows.split([int(part.sum()) for part in sizes]))

    def _minibatch(
        self, rollout: Rollout, rows: Tensor, whole: PolicyOutputs | None, lr: float, ctx: Context
    ) -> dict[str, float]:
        """One optimiser update; micro-batches are weighted so that accumulation changes nothing."""
        logged: dict[str, Tensor] = {}
        meta = bool(self.plugins.implementing("policy_meta_update"))
        parameters = dict(self.policy.named_parameters()) if meta else {}
        by = self._displacement(parameters, rollout, rows, ctx) if meta else {}
        self.optimiser.zero_grad(set_to_none=True)
        with displaced(parameters, by):
            for share, found in self._losses(rollout, rows, None if by else whole, ctx):
                (share * total(found)).backward()
                for key, term in found.items():
                    logged[key] = logged.get(key, torch.zeros_like(term)) + (share * term).detach()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        max_norm = ctx.config.rl.max_grad_norm
        logged["grad_norm"] = nn.utils.clip_grad_norm_(self.policy.parameters(), max_norm)
        row = dict(zip(logged, torch.stack(list(logged.values())).tolist(), strict=True))
        self._check(row)
        self.optimiser.step()
        return row | {"lr": lr}

    def _displacement(
        self, parameters: Mapping[str, nn.Parameter], rollout: Rollout, rows: Tensor, ctx: Context
    ) -> dict[str, Tensor]:
        """The sum of what ``policy_meta_update`` hooks answer, by parameter name."""

        def loss() -> Tensor:
            with torch.enable_grad(), self.plugins.aside():  # what it logs is the update's own
                parts = self._losses(rollout, rows, None, ctx)
                return torch.stack([share * total(found) for share, found in parts]).sum()

        given = {"loss": loss, "ctx": ctx}
        return displacement(self.plugins, "policy_meta_update", parameters, **given)

    def _losses(
        self, rollout: Rollout, rows: Tensor, whole: PolicyOutputs | None, ctx: Context
    ) -> Iterator[tuple[Tensor | float, dict[str, Tensor]]]:
        """The terms of each micro-batch, and its share of the minibatch."""
        tokens, by_tokens = rollout.mask[rows].sum(), self.algorithm.mean_over == "tokens"
        for place, (part, outputs) in enumerate(self._passes(rollout, rows, whole, ctx)):
            share = part.mask.sum() / tokens if by_tokens else len(part.mask) / len(rows)
            yield share, self._terms(part, outputs, ctx.at(micro_batch=place))

    def _passes(
        self, rollout: Rollout, rows: Tensor, whole: PolicyOutputs | None, ctx: Context
    ) -> Iterator[tuple[Rollout, PolicyOutputs]]:
        """Micro-batches, each with the policy's outputs for it."""
        if whole is not None:
            yield rollout, whole
            return
        settings = ctx.config.rl
        for micro in self._split(rollout, rows, settings.minibatch // settings.accumulate):
            part = rollout.rows(micro)
            with ctx.autocast():
                logprobs, values = self.policy.evaluate(part.samples)
            yield part, PolicyOutputs(logprobs, values, self.policy, self.anchor)

    def _terms(self, part: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """The algorithm's terms, then those of every plugin with ``policy_loss``."""
        owner = self.plugins.owners["policy_algorithm"]
        terms = terms_of(owner, self.algorithm, part, outputs, ctx)
        with ctx.autocast():  # a term may take forward passes of its own
            answers = list(self.plugins.each("policy_loss", batch=part, outputs=outputs, ctx=ctx))
        for name, extra in answers:
            terms |= {f"{name}/{term}": value for term, value in extra.items()}
            magnitude = sum(abs(float(value.detach())) for value in extra.values())
            self.plugins.acted(name, "policy_loss", magnitude)
        return terms

    def _check(self, row: Mapping[str, float]) -> None:
        """Every number finite, or the run stops before the optimiser's step."""
        for key, value in row.items():
            if not math.isfinite(value):
                plugin, _, term = key.rpartition("/")
                owner = self.plugins.owners["policy_algorithm"]
                name = owner if plugin in {"", "log"} else plugin
                what = "gradient" if key == "grad_norm" else f"loss term '{term}'"
                raise NonFiniteError(f"plugin '{name}': the {what} is not finite")


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum that is minimised, a scalar."""
    return torch.stack([term for key, term in terms.items() if not key.startswith("log/")]).sum()


def learning_rate(settings: RLSection, step: int, place: int, count: int) -> float:
    """The learning rate of update ``place`` (from 0) of the ``count`` of rollout ``step``.

    It follows the share of rollouts done, since an algorithm may keep more rows of one rollout
    than of another.
    """
    assert settings.rollouts is not None
    if settings.schedule == "constant":
        return settings.lr
    part = (step * count + place) / (settings.rollouts * count)
    left = 1 - part if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * part))
    return settings.lr_final + (settings.lr - settings.lr_final) * left
