"""Reward models: a causal body with a bias-free head, and combinations of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from ostinato.config.draws import Draws
from ostinato.config.errors import NonFiniteError, UserError, blamed
from ostinato.config.sections import RewardModelSection
from ostinato.models.loading import (
    from_checkpoint,
    load_model,
    load_saved,
    load_tokenizer,
    padded,
    prompt_tokens,
    response_tokens,
    save_model,
    vocabulary_key,
)
from ostinato.models.reward import Calibration, Reward, combine, mean_over_members
from ostinato.models.samples import RMOutputs, Samples, Scores, Texts, scores_fault

SCORING_BATCH = 256  # responses in one forward pass
PLUGIN_MODULES = "plugin_modules.safetensors"

Modules = Mapping[str, nn.Module]  # by plugin name


@dataclass(frozen=True)
class Reader:
    """What a plugin brings to reward models: how their outputs are read, what is trained with them.

    ``read`` is pure: logits (N, outputs), zeros (heads,) to take off the heads, the model's modules
    by plugin name, settings -> Scores. ``modules`` takes the size of the body's states.
    """

    read: Callable[..., Scores] | None = None
    modules: Callable[[int], nn.Module] | None = None


def read_mean(logits: Tensor, zeros: Tensor, modules: Modules) -> Scores:
    """Every output is a head of its own; the score is their mean. (N, outputs) -> Scores."""
    heads = logits - zeros
    return Scores(heads.mean(-1), heads[:, None, :])


MEAN: Mapping[str, Reader] = {"mean": Reader(read_mean)}


class RewardModel(nn.Module, Reward):
    """A transformers sequence-classification model that scores prompt + response.

    The head is transformers' bias-free ``score``; its input is the last real token's state. The
    checkpoint gives raw outputs; ``calibration``, ``reader`` and the reader's ``settings`` travel
    in its config.json. ``readers`` are those that the run's plugins bring, by name.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        reader: str = "mean",
        calibration: Calibration | None = None,
        max_tokens: int = 1024,
        settings: Mapping[str, Any] | None = None,
        readers: Mapping[str, Reader] = MEAN,
        stop: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.readers = readers
        self.model = model
        self.tokenizer = tokenizer
        self._read_with(reader, settings)
        self.calibration = calibration or Calibration()
        self.max_tokens = max_tokens
        self.stop = tokenizer.eos_token_id if stop is None else stop  # ends a finished response
        self.lm_head: nn.Module | None = None
        self.plugin_modules = nn.ModuleDict()
        self.key = vocabulary_key(tokenizer)
        self.eval()  # dropout is off unless a plugin needs it in training

    @classmethod
    def load(
        cls,
        section: RewardModelSection,
        lm_head: bool = False,
        key: str = "reward_model",
        trained: bool = False,
        readers: Mapping[str, Reader] = MEAN,
    ) -> RewardModel:
        """R_init: the body that the run file names; :meth:`with_head` gives it its head.

        Raises UserError, naming ``key``, if there is no such body, or no language-model head, or
        if it should be ``trained`` and has no head. Texts are cut to the model's context.
        """
        tokenizer = load_tokenizer(section, key)
        auto = AutoModelForSequenceClassification
        fresh = "" if trained else "score.weight"
        model = load_model(auto, section, tokenizer, key, fresh, num_labels=1)
        if not isinstance(getattr(model, "score", None), nn.Linear):
            wanted = "expected a decoder, such as a language model's body"
            kind = f"a {model.config.model_type} model has no linear `score` head"
            raise UserError(f"{key}: {kind}; {wanted}")
        room = getattr(model.config, "max_position_embeddings", None) or section.max_tokens
        made = cls(model, tokenizer, max_tokens=min(section.max_tokens, room), readers=readers)
        if lm_head:
            kinds = getattr(model.config, "architectures", None) or []
            headless = any(kind.endswith("ForSequenceClassification") for kind in kinds)
            if section.model and headless and not model.config.tie_word_embeddings:
                lack = f"the checkpoint '{section.model}' is a {kinds[0]} without one"
                raise UserError(f"{key}.model: a plugin needs the language-model head, and {lack}")
            lm = load_model(AutoModelForCausalLM, section, tokenizer, key)
            made.lm_head = copy.deepcopy(lm.get_output_embeddings())
        return made

    @classmethod
    def load_checkpoint(cls, folder: Path, readers: Mapping[str, Reader] = MEAN) -> RewardModel:
        """A reward model that a run saved. Raises UserError where its reader is none of these."""
        model, tokenizer = load_saved(AutoModelForSequenceClassification, folder)
        facts = getattr(model.config, "ostinato", None)
        if facts is None:
            raise UserError(f"{folder}: config.json holds no ostinato calibration")
        scale = facts["calibration"]
        calibration = Calibration(**scale | {"zeros": tuple(scale["zeros"])})
        made = cls(model, tokenizer, readers=readers, **facts | {"calibration": calibration})
        made._load_modules(folder)
        return made

    def _load_modules(self, folder: Path) -> None:
        """The plugin modules that were saved, made anew by their plugins.

        Those of plugins that the run does not list, or lists with other settings, serve nothing,
        and are left out; UserError where the model is read with them.
        """
        path = folder / PLUGIN_MODULES
        saved = load_file(path) if path.exists() else {}
        for name, reader in self.readers.items():
            weights = {
                key.removeprefix(f"{name}."): weight.clone()  # aligned, as if never saved
                for key, weight in saved.items()
                if key.startswith(f"{name}.")
            }
            if reader.modules is None or not (weights or name == self.reader):
                continue
            with Draws(0).forked("loaded modules"):  # drawn, and overwritten at once
                made = self.new_module(name)
            try:
                made.load_state_dict(weights)
            except RuntimeError:
                if name == self.reader:
                    fault = f"are not those that plugin '{name}' makes with its settings here"
                    raise UserError(f"{path}: the modules in it {fault}") from None
            else:
                self.plugin_modules[name] = made

    def new_module(self, name: str) -> nn.Module:
        """A plugin's module for this model, on its device. UserError where it is none."""
        make = self.readers[name].modules
        assert make is not None
        with blamed(name, "its modules(hidden_size)"):
            made = make(self.model.score.in_features)
        if not isinstance(made, nn.Module):
            fault = f"answered a {type(made).__name__}, expected a torch.nn.Module"
            raise UserError(f"plugin '{name}': its modules(hidden_size) {fault}")
        return made.to(self.model.device)

    def save(self, folder: Path) -> None:
        """A checkpoint that AutoModelForSequenceClassification loads; it gives raw scores."""
        facts = {name: getattr(self, name) for name in ("reader", "settings", "max_tokens", "stop")}
        self.model.config.ostinato = facts | {"calibration": vars(self.calibration)}
        save_model(self.model, self.tokenizer, folder)
        if len(self.plugin_modules):
            save_file(self.plugin_modules.state_dict(), folder / PLUGIN_MODULES)

    def copy(self) -> RewardModel:
        """An independent copy, not calibrated: what is done with it will change its scores."""
        shared = {id(kept): kept for kept in (self.tokenizer, self.readers)}
        made = copy.deepcopy(self, shared)
        made.calibration = Calibration()
        return made

    def with_head(
        self,
        draws: Draws,
        outputs: int = 1,
        reader: str = "mean",
        purpose: str = "reward head",
        settings: Mapping[str, Any] | None = None,
    ) -> RewardModel:
        """A copy with a fresh head ~ N(0, 1/sqrt(d + 1)), the same at every iteration.

        ``reader`` makes scores of its outputs: ``mean``, or the plugin whose ``read`` is called
        with ``settings``, which are what JSON holds and are saved with the model.
        """
        made = self.copy()
        size = made.model.score.in_features
        generator = replace(draws, iteration=0).generator(purpose)
        head = nn.Linear(size, outputs, bias=False)
        head.weight.data = torch.randn(outputs, size, generator=generator) / math.sqrt(size + 1)
        made.model.score = head.to(made.model.device)
        made.model.config.num_labels = made.model.num_labels = outputs
        made._read_with(reader, settings)
        return made

    def _read_with(self, reader: str, settings: Mapping[str, Any] | None) -> None:
        """Raises UserError where the run has no such reader."""
        if self.readers.get(reader, Reader()).read is None:
            fault = "which the run does not list or which has no function `read`"
            raise UserError(f"reward model: it is read by plugin '{reader}', {fault}")
        self.reader, self.settings = reader, dict(settings or {})

    def read(self, logits: Tensor, zeros: Sequence[float] = (0.0,)) -> Scores:
        """Raw scores of logits (N, outputs), each head less its zero. Raises UserError."""
        read = self.readers[self.reader].read
        assert read is not None
        modules = dict(self.plugin_modules.items())
        with blamed(self.reader, "its read") if self.reader != "mean" else nullcontext():
            found = read(logits, logits.new_tensor(zeros), modules, **self.settings)
        fault = scores_fault(found, len(logits))
        if fault is None and (found.parts.shape[1] != 1 or found.token_score is not None):
            fault = "Scores of several members, or of tokens, expected parts (N, 1, heads)"
        if fault:
            raise UserError(f"{self._whose()} answered {fault}")
        return found

    def _whose(self) -> str:
        return f"plugin '{self.reader}': its read" if self.reader != "mean" else "a reward model"

    @property
    def members(self) -> list[RewardModel]:
        return [self]

    def encode(
        self, prompts: Texts, responses: Texts, finished: Sequence[bool]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of prompts and responses in this model's own vocabulary."""
        answers = response_tokens(self.tokenizer, responses, finished, self.stop)
        return prompt_tokens(self.tokenizer, prompts), answers

    def joined(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, mask, response mask), each (N, T), padded right; long prompts lose their start."""
        answers = [list(r)[: self.max_tokens - 1] for r in responses]
        pairs = zip(prompts, answers, strict=True)
        starts = [list(p)[-(self.max_tokens - len(answer)) :] for p, answer in pairs]
        rows = [start + answer for start, answer in zip(starts, answers, strict=True)]
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(start) for start in starts])[:, None]
        response = mask & (torch.arange(ids.shape[1]) >= lengths)
        device = self.model.device
        return ids.to(device), mask.to(device), response.to(device)

    def forward(self, ids: Tensor, mask: Tensor, views: int = 1) -> RMOutputs:
        """Raw outputs for (N, T) tokens, padded right; ``views`` repeats them along the batch."""
        rows = len(ids)
        states = self.model.base_model(input_ids=ids.repeat(views, 1), use_cache=False)[0]
        last = (mask.sum(1) - 1).repeat(views)
        hidden = states[torch.arange(len(states), device=states.device), last]
        logits = self.model.score(hidden.to(self.model.score.weight.dtype)).float()
        lm_logits = self.lm_head(states) if self.lm_head is not None else None
        score = self.read(logits).score
        return RMOutputs(
            score.view(views, rows),
            logits.view(views, rows, -1),
            hidden.float().view(views, rows, -1),
            None if lm_logits is None else lm_logits.view(views, *ids.shape, -1),
            dict(self.plugin_modules.items()),
            self.model.score.weight,
            states=states.view(views, *ids.shape, -1),
        )

    @torch.no_grad()
    def raw(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Raw logits (N, outputs) and the states (N, D) that they are made of, for token ids."""
        found = []
        for start in range(0, len(prompts), SCORING_BATCH):
            part = slice(start, start + SCORING_BATCH)
            ids, mask, _ = self.joined(prompts[part], responses[part])
            found.append(self(ids, mask))
        return _joined(found)

    def critic(self) -> tuple[nn.Module, nn.Linear]:
        """Copies of the body and of the head: a value model whose values start as scores.

        The value at a token is the calibrated score of the text up to it: the head is rescaled. Of
        a reader that weighs its heads it is the plain mean of them, made linear around logits of 0.
        """
        with torch.enable_grad():
            at = self.model.score.weight.new_zeros(1, len(self.model.score.weight)).requires_grad_()
            offset = self._scores(at).parts.mean()
            (slope,) = torch.autograd.grad(offset, at)  # (1, outputs)
        head = nn.Linear(self.model.score.in_features, 1, device=at.device)
        head.weight = nn.Parameter(slope @ self.model.score.weight.detach())
        nn.init.constant_(head.bias, offset.item())
        return copy.deepcopy(self.model.base_model), head

    def _scores(self, logits: Tensor, hidden: Tensor | None = None) -> Scores:
        if not bool(logits.isfinite().all()):
            raise NonFiniteError("a reward model's score is not finite")
        scale = self.calibration
        raw = self.read(logits, scale.zeros)
        return Scores(
            (raw.score - scale.mean) / scale.unit,
            raw.parts / scale.unit,
            None if raw.part_std is None else raw.part_std / scale.unit,
            hidden[:, None] if raw.hidden is None and hidden is not None else raw.hidden,
        )

    def scores(self, samples: Samples) -> Scores:
        """Calibrated; straight from the policy's tokens where the vocabularies agree."""
        return self._scores(*self.outputs(samples))

    def logits(self, samples: Samples) -> Tensor:
        """Raw logits (N, outputs) of samples."""
        return self.outputs(samples)[0]

    @torch.no_grad()
    def outputs(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Raw logits (N, outputs) of samples, and the states (N, D) that they are made of."""
        if vocabulary_key(samples.tokenizer) != self.key:
            finished = samples.finished.tolist()
            return self.raw(*self.encode(samples.prompts, samples.responses, finished))
        ids = torch.cat([samples.prompt_ids, samples.response_ids], dim=1)
        mask = torch.cat([samples.prompt_mask, samples.mask], dim=1)
        if bool(samples.prompt_mask.all()) and ids.shape[1] <= self.max_tokens:  # no repacking
            parts = zip(ids.split(SCORING_BATCH), mask.split(SCORING_BATCH), strict=True)
            return _joined([self(i, m) for i, m in parts])
        return self.raw(*samples.tokens)

    def score_text(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Scores:
        """Calibrated, through this model's own tokenizer."""
        return self._scores(*self.raw(*self.encode(prompts, responses, finished)))

    def score(self, prompts: Texts, responses: Texts, finished: Sequence[bool]) -> Tensor:
        """Calibrated scores (B,) of text."""
        return self.score_text(prompts, responses, finished).score


def _joined(parts: Sequence[RMOutputs]) -> tuple[Tensor, Tensor]:
    """Logits (N, outputs) and hidden (N, D) of the first view of several passes."""
    return torch.cat([p.logits[0] for p in parts]), torch.cat([p.hidden[0] for p in parts])


def load_reward(folder: Path, readers: Mapping[str, Reader] = MEAN) -> Reward:
    """What :meth:`RewardModel.save` or a trained set of members wrote."""
    members = sorted(folder.glob("member-*"), key=lambda p: int(p.name.split("-")[1]))
    if not members:
        return RewardModel.load_checkpoint(folder, readers)
    return combine([RewardModel.load_checkpoint(m, readers) for m in members], mean_over_members)


def trained_reward(
    name: str, key: str, max_tokens: int = 2048, readers: Mapping[str, Reader] = MEAN
) -> Reward:
    """A reward model from anywhere: what a run saved, or a trained decoder with one output.

    ``name`` is a path or hub name; ``readers`` those of the run's plugins, ``ctx.readers``. Raises
    UserError, naming ``key``, where there is none.
    """
    folder = Path(name)
    members = any(folder.glob("member-*"))
    if members or (hasattr(from_checkpoint(AutoConfig, name, key), "ostinato") and folder.is_dir()):
        return load_reward(folder, readers)
    section = RewardModelSection(model=name, max_tokens=max_tokens)
    return RewardModel.load(section, key=key, trained=True)
