"""Train a reward model: the preference loss, auxiliary terms, and displaced gradients."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from ostinato.config.errors import NonFiniteError, UserError
from ostinato.contract.answers import wrong
from ostinato.contract.batches import PreferenceBatch
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.engine.comparisons import Comparisons, tokens_of
from ostinato.engine.displacement import displaced, displacement
from ostinato.models.reward_model import RewardModel

Log = Callable[..., Any]
Parameters = Mapping[str, nn.Parameter]
PROMPT = ("prompt", "prompt_ids")  # columns of unlabelled responses: one entry a prompt
RESPONSE = ("responses", "response_ids", "finished")  # several


def set_dropout(body: nn.Module, p: float) -> None:
    """Dropout probability of every dropout layer and every attention that drops weights itself."""
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        if isinstance(getattr(module, "attention_dropout", None), int | float):
            module.attention_dropout = p  # type: ignore[assignment]


@dataclass
class RewardTrainer:
    """``fit`` of ``ctx.member`` in one iteration, as ``train_rm`` hooks and the loop call it.

    ``plain``: the preference loss alone, without auxiliary terms, dropout or displacement.
    """

    plugins: Plugins
    ctx: Context
    log: Log
    policy_tokenizer: Any
    meta: Dataset | None = None
    plain: bool = False

    def __call__(
        self,
        initial: RewardModel,
        data: Dataset,
        *,
        epochs: float | None = None,
        lr: float | None = None,
        stop_loss: float | None = None,
        train: str = "all",
        purpose: str = "reward model",
    ) -> RewardModel:
        """A trained copy of ``initial``.

        ``epochs`` and ``lr`` override the run file's; training ends early once the preference loss,
        a running mean over ten updates, is below ``stop_loss``; ``train="head"`` freezes the body.
        The order of the data is drawn for (purpose, member), the same in every iteration.
        """
        if train not in {"all", "head"}:
            raise ValueError(f"train should be 'all' or 'head', got {train!r}")
        settings = self.ctx.config.reward_model
        model = initial.copy().to(self.ctx.device)
        self._add_modules(model)
        comparisons = Comparisons(data, model, self.policy_tokenizer)
        groups = len(comparisons.groups)
        per_batch = max(1, settings.batch // max(1, len(comparisons) // groups))
        total = self._total(groups, per_batch, epochs)
        peak = settings.lr if lr is None else lr
        recent: deque[float] = deque(maxlen=10)
        with self._training(model, train == "head") as parameters:
            decay = settings.weight_decay
            optimiser = torch.optim.AdamW(parameters.values(), lr=peak, weight_decay=decay)
            order = self._order(groups, per_batch, purpose)
            for step, batch in zip(range(total), order, strict=False):
                for group in optimiser.param_groups:
                    group["lr"] = self._lr(step, total, peak)
                chunks = [batch[i :: settings.accumulate] for i in range(settings.accumulate)]
                parts = [comparisons.batch(chunk) for chunk in chunks if chunk]
                ctx = self.ctx.at(step=step, training="" if purpose == "reward model" else purpose)
                with ctx.located():
                    row = self._update(model, parts, parameters, optimiser, purpose, ctx)
                recent.append(row["terms"][self.plugins.owners["preference_loss"]])
                row |= {"member": ctx.member, "purpose": purpose, "step": step + 1, "total": total}
                self.log("reward_model", **row, actions=self.plugins.taken_actions())
                if stop_loss is not None and sum(recent) / len(recent) < stop_loss:
                    break
        return model

    @contextmanager
    def _training(self, model: RewardModel, head: bool) -> Iterator[dict[str, nn.Parameter]]:
        """Inside, dropout is on for who needs it; the parameters that take gradients, by name."""
        dropout = None if self.plain else self.plugins.need("dropout")
        for name, p in model.named_parameters():
            p.requires_grad_(not head or name.startswith(("model.score", "plugin_modules")))
        if dropout:
            set_dropout(model.model, dropout)
            model.train()
        yield {name: p for name, p in model.named_parameters() if p.requires_grad}
        model.requires_grad_(True).eval()
        if dropout:
            set_dropout(model.model, 0.0)

    def _add_modules(self, model: RewardModel) -> None:
        draws = replace(self.ctx.draws, iteration=0)  # they start the same in every iteration
        for name, reader in model.readers.items():
            if reader.modules is not None and name not in model.plugin_modules:  # else trained on
                with draws.forked(self.ctx.purpose(f"modules of {name}")):
                    model.plugin_modules[name] = model.new_module(name)

    def _total(self, groups: int, per_batch: int, epochs: float | None) -> int:
        settings = self.ctx.config.reward_model
        if epochs is None and settings.updates is not None:
            return settings.updates
        passes = settings.epochs if epochs is None else epochs
        assert passes is not None
        return max(1, math.ceil(math.ceil(groups / per_batch) * passes - 1e-9))

    def _lr(self, step: int, total: int, peak: float) -> float:
        settings = self.ctx.config.reward_model
        warm = min(1.0, (step + 1) / (settings.warmup + 1))
        return warm * (peak + (min(settings.lr_final, peak) - peak) * step / total)

    def _order(self, groups: int, per_batch: int, purpose: str) -> Iterator[list[int]]:
        """Batches of group numbers for ever, the same in every iteration; permuted each epoch."""
        draws = replace(self.ctx.draws, iteration=0)
        for epoch in itertools.count():
            generator = draws.generator(self.ctx.purpose(f"{purpose} order"), epoch)
            shuffled = torch.randperm(groups, generator=generator).tolist()
            yield from (shuffled[i : i + per_batch] for i in range(0, groups, per_batch))

    def _update(
        self,
        model: RewardModel,
        batches: list[PreferenceBatch],
        parameters: Parameters,
        optimiser: torch.optim.Optimizer,
        purpose: str,
        ctx: Context,
    ) -> dict[str, Any]:
        """One optimiser step on the micro-batches of one batch."""
        weight = torch.stack([b.weight.sum() for b in batches]).sum().clamp_min(1e-12)
        comparisons = sum(len(b.pairs) for b in batches)

        def loss_of(place: int) -> tuple[Tensor, dict[str, float], float]:
            here = ctx.at(micro_batch=place)
            # the global generator feeds dropout alone; seeded, `loss()` sees the masks of the step
            with here.draws.forked(here.purpose(f"{purpose} dropout"), ctx.step):
                return self._loss(model, batches[place], weight, comparisons, here)

        def whole_loss() -> Tensor:
            return torch.stack([loss_of(place)[0] for place in range(len(batches))]).sum()

        with ctx.draws.forked(ctx.purpose(f"{purpose} displacement"), ctx.step):
            by = self._displacement(model, parameters, whole_loss, ctx)
        optimiser.zero_grad(set_to_none=True)
        terms: dict[str, float] = {}
        right = 0.0
        with displaced(parameters, by):
            for place in range(len(batches)):
                loss, parts, correct = loss_of(place)
                loss.backward()
                right += correct
                for name, value in parts.items():
                    terms[name] = terms.get(name, 0.0) + value
        max_norm = ctx.config.reward_model.max_grad_norm
        norm = nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        total = sum(terms.values())
        if not math.isfinite(total) or not math.isfinite(float(norm)):
            bad = [n for n, v in terms.items() if not math.isfinite(v)] or ["gradient"]
            raise NonFiniteError(f"reward model: {bad[0]} is not finite")
        optimiser.step()
        return {
            "loss": total,
            "terms": terms,
            "accuracy": right / comparisons,
            "grad_norm": float(norm),
            "lr": optimiser.param_groups[0]["lr"],
        }

    def _loss(
        self, model: RewardModel, batch: PreferenceBatch, weight: Tensor, count: int, ctx: Context
    ) -> tuple[Tensor, dict[str, float], float]:
        """(this micro-batch's share of the loss, its terms, comparisons that came out right).

        ``weight`` and ``count`` are those of the whole batch's comparisons.
        """
        views = 1 if self.plain else self.plugins.need("views") or 1
        with self.ctx.autocast():
            outputs = model(batch.input_ids, batch.mask, views)
        if views > 1 and bool((outputs.hidden[0] == outputs.hidden[1]).all()):
            raise UserError(
                "reward model: two dropout views are equal; the body has no dropout to switch on"
            )
        owner = self.plugins.owners["preference_loss"]
        each = self.plugins.call(owner, "preference_loss", batch=batch, outputs=outputs, ctx=ctx)
        if tuple(each.shape) not in {(len(batch.pairs),), (views, len(batch.pairs))}:
            shape = f"{tuple(each.shape)} for {len(batch.pairs)} comparisons"
            raise wrong(owner, "preference_loss", f"answered shape {shape}")
        each = each.mean(0) if each.ndim == 2 else each
        self.plugins.acted(owner, "preference_loss", float(each.detach().mean()))
        loss: Tensor = (each * batch.weight).sum() / weight
        terms = {owner: float(loss.detach())}
        share = len(batch.pairs) / count
        answers = self.plugins.each("rm_loss", batch=batch, outputs=outputs, ctx=ctx)
        for name, found in () if self.plain else answers:
            for term, value in found.items():
                loss = loss + share * value
                terms[f"{name}/{term}"] = share * float(value.detach())
            magnitude = sum(abs(float(value.detach())) for value in found.values())
            self.plugins.acted(name, "rm_loss", magnitude)
        score = outputs.score[0].detach()
        correct = (score[batch.pairs[:, 0]] > score[batch.pairs[:, 1]]).sum()
        return loss, terms, float(correct)

    def _displacement(
        self, model: RewardModel, parameters: Parameters, loss: Callable[[], Tensor], ctx: Context
    ) -> dict[str, Tensor]:
        """The sum of what ``meta_update`` hooks answer, by parameter name."""
        if self.plain or not self.plugins.implementing("meta_update"):
            return {}
        batch = None if self.meta is None else self._meta_rows(self.meta, ctx)
        score = partial(self._meta_scores, model, batch)
        given = {"loss": loss, "score": score, "meta_batch": batch, "ctx": ctx}
        return displacement(self.plugins, "meta_update", parameters, **given)

    def _meta_rows(self, meta: Dataset, ctx: Context) -> dict[str, Any]:
        """Other prompts at each update, half as many as a batch has comparisons."""
        rows = torch.randperm(len(meta), generator=ctx.generator("meta prompts"))
        found: dict[str, Any] = meta[rows[: max(1, ctx.config.reward_model.batch // 2)].tolist()]
        return found

    def _meta_scores(self, model: RewardModel, batch: Mapping[str, Any] | None) -> Tensor:
        """Scores (prompts, responses) of unlabelled responses, with their graph."""
        if batch is None:
            raise UserError("a meta_update hook asks for meta responses that no plugin needs")
        count = len(batch["responses"][0])
        prompts, prompt_ids = ([p for p in batch[c] for _ in range(count)] for c in PROMPT)
        responses, ids, finished = ([r for rows in batch[c] for r in rows] for c in RESPONSE)
        texts = prompts, responses, finished
        tokens = tokens_of(model, self.policy_tokenizer, (prompt_ids, ids), texts)
        input_ids, mask, _ = model.joined(*tokens)
        with self.ctx.autocast():
            logits = model(input_ids, mask).logits[0]
        return model.read(logits).score.view(-1, count)
