"""The run file: one pydantic model a section, every error at once, in one sentence each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic import ValidationInfo as Info

DATA = "file (.jsonl, .json, .csv, .txt, each also .gz; .parquet, .arrow), folder, or hub name"


class Section(BaseModel):
    """A part of the run file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: Info) -> Any:
        """YAML reads yes, no, on and off as truth values, and pydantic takes those for 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        given = value if isinstance(value, list | tuple) else [value]
        if {int, float} & {kind, *get_args(kind)} and any(isinstance(v, bool) for v in given):
            raise ValueError(f"expected a number, got {str(value).lower()}")
        return value


class ModelSection(Section):
    """Where a model comes from."""

    model: str | None = Field(None, description="hub name or path of a transformers checkpoint")
    tokenizer: str | None = Field(None, description="name, path or 'bytes'; else the model's own")
    random: dict[str, Any] | None = Field(
        None, description="build with random weights from this config: model_type and sizes"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")

    @model_validator(mode="after")
    def _something(self) -> ModelSection:
        if self.random is not None and "model_type" not in self.random:
            raise ValueError("random needs a model_type, such as gpt_neox")
        return self


class RequiredModelSection(ModelSection):
    """A model that every run has."""

    @model_validator(mode="after")
    def _present(self) -> RequiredModelSection:
        if self.model is None and self.random is None:
            raise ValueError("has neither model nor random, and no world supplies one")
        return self


class PolicySection(RequiredModelSection):
    """The policy that is sampled and optimised."""

    value: Literal["shared", "separate", "reward_model"] = Field(
        "shared", description="value head: on the policy's trunk, its copy, or the newest reward's"
    )


class RewardModelSection(ModelSection):
    """The proxy reward models; a run whose reward is none needs no model here."""

    model: str | None = Field(
        None, description="hub name or path of a decoder, whose body gets a fresh linear head"
    )
    members: int = Field(1, ge=1, description="reward models trained an iteration")
    epochs: float | None = Field(None, gt=0, description="passes over the data; 5, or give updates")
    updates: int | None = Field(None, ge=1, description="optimiser updates; or give epochs")
    batch: int = Field(32, ge=1, description="comparisons an optimiser update")
    accumulate: int = Field(1, ge=1, description="micro-batches an update")
    lr: float = Field(1e-5, gt=0, le=1, description="peak learning rate of AdamW")
    lr_final: float = Field(0.0, ge=0, le=1, description="learning rate after linear decay")
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm at which it is clipped")
    max_tokens: int = Field(1024, ge=2, description="longest prompt + response, in tokens")
    unit: Literal["training_std", "sft_std", "nats"] = Field(
        "training_std",
        description="of scores: a std over training or SFT responses, or held-out nats",
    )

    @model_validator(mode="after")
    def _length(self) -> RewardModelSection:
        if self.epochs is not None and self.updates is not None:
            raise ValueError("give epochs or updates, not both (set the world's to null)")
        if self.epochs is None and self.updates is None:
            self.epochs = 5.0
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is no multiple of accumulate {self.accumulate}")
        return self


class GoldSection(ModelSection):
    """The gold reward model that stands for the human: a checkpoint, or a function of text."""

    model: str | None = Field(
        None, description="one-label checkpoint; decoders read prompt + response, encoders the pair"
    )
    function: str | None = Field(
        None, description="file.py:name or module:name of a function of completions, or a factory"
    )
    batch: int = Field(64, ge=1, description="responses scored at once")

    @model_validator(mode="after")
    def _one(self) -> GoldSection:
        if (self.model is None and self.random is None) == (self.function is None):
            raise ValueError("give exactly one of model (or random) and function")
        return self


class Shares(Section):
    """How the prompts are split, by hash of their text; the shares add up to 1."""

    preference: float = Field(0.4, gt=0, lt=1, description="share for preference pairs")
    rl: float = Field(0.4, gt=0, lt=1, description="share for policy optimisation")
    evaluation: float = Field(0.2, gt=0, lt=1, description="share for evaluation")

    @model_validator(mode="after")
    def _sum(self) -> Shares:
        total = self.preference + self.rl + self.evaluation
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares add up to {total:g}, expected 1")
        return self


class PromptsSection(Section):
    """Prompts, split into disjoint preference, RL and evaluation sets."""

    data: str = Field(description=DATA)
    split: str = Field("train", description="split of a hub data set")
    field: str = Field("prompt", description="column with the prompt, where rows have one")
    template: str = Field(
        "{prompt}", description="format string over a row's columns, 'alpaca' or 'open-assistant'"
    )
    shares: Shares = Field(default_factory=Shares, description="share of each split")
    preference: int = Field(1000, ge=2, description="prompts of which pairs are sampled")
    held_out: int = Field(100, ge=0, description="further ones, whose pairs only measure accuracy")
    evaluation: int = Field(192, ge=4, description="evaluation prompts")
    fresh: bool = Field(False, description="draw new preference prompts in every iteration")
    max_tokens: int = Field(520, ge=1, description="longer prompts are left out")


class GenerationSection(Section):
    """How responses are sampled."""

    max_new_tokens: int = Field(256, ge=1, description="longest response in tokens")
    temperature: float = Field(1.0, gt=0, description="logits are divided by it everywhere")
    preference_top_p: float = Field(
        1.0, gt=0, le=1, description="pairs alone, held-out ones too, are drawn from this nucleus"
    )
    stop: str | None = Field(None, description="stop token; the tokenizer's eos when left out")
    batch: int = Field(256, ge=1, description="responses sampled at once")


class PreferencesSection(Section):
    """How comparisons are collected."""

    responses: int = Field(2, ge=2, description="responses a prompt; all their pairs are labelled")


class KLSection(Section):
    """The penalty that keeps the policy near its reference, pi_k_init."""

    coefficient: float = Field(0.05, ge=0, description="coefficient of the per-token KL")
    estimator: Literal["k1", "k2", "k3", "exact"] = Field(
        "k1", description="of the sampled token, or exact; as a reward only k1 has KL's gradient"
    )


class Unfinished(Section):
    """What happens to the score of a response without its stop token."""

    penalty: float = Field(0.0, description="subtracted from the score, or put in its place")
    mode: Literal["subtract", "replace"] = Field("subtract", description="how it is applied")


class RLSection(Section):
    """The engine of policy optimisation; the algorithm's own settings are its plugin's."""

    rollouts: int | None = Field(None, ge=1, description="rollouts an iteration; or give updates")
    updates: int | None = Field(
        None, ge=1, description="updates an iteration, if the algorithm keeps every response"
    )
    rollout_size: int = Field(256, ge=1, description="responses a rollout")
    minibatch: int = Field(32, ge=1, description="responses an optimiser update")
    accumulate: int = Field(1, ge=1, description="micro-batches an update")
    epochs: int = Field(4, ge=1, description="passes over each rollout")
    lr: float = Field(1e-6, gt=0, le=1, description="learning rate of Adam at the start")
    lr_final: float = Field(1e-7, ge=0, le=1, description="learning rate at the end")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay of lr")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Adam's betas, each in [0, 1)")
    eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm at which it is clipped")
    clip_score: float | None = Field(None, gt=0, description="scores are cut to [-c, c]")
    unfinished: Unfinished = Field(Unfinished(), description="responses without a stop token")

    @field_validator("betas")
    @classmethod
    def _decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"each should be at least 0 and less than 1, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _sizes(self) -> RLSection:
        for whole, part in (("rollout_size", "minibatch"), ("minibatch", "accumulate")):
            n, m = getattr(self, whole), getattr(self, part)
            if n % m:
                raise ValueError(f"{whole} {n} is no multiple of {part} {m}")
        if self.rollouts is not None and self.updates is not None:
            raise ValueError("give rollouts or updates, not both (set the world's to null)")
        per_rollout = self.epochs * self.rollout_size // self.minibatch
        if self.updates is not None:
            self.rollouts = math.ceil(self.updates / per_rollout)
        self.rollouts, self.updates = self.rollouts or 188, None
        return self


class EvaluationSection(Section):
    """Measures on held-out prompts while the policy is optimised."""

    every: int = Field(10, ge=1, description="rollouts between evaluations; the last is evaluated")
    samples: int = Field(3, ge=0, description="sample texts kept with each evaluation")


class SFTSection(Section):
    """An optional supervised stage before the loop, through TRL's SFTTrainer."""

    data: str = Field(description=DATA)
    split: str = Field("train", description="split of a hub data set")
    prompt: str = Field("prompt", description="column with the prompt")
    completion: str = Field("completion", description="column with the response")
    epochs: float = Field(3.0, gt=0, description="passes over the data")
    batch: int = Field(4, ge=1, description="rows an update")
    lr: float = Field(8e-6, gt=0, le=1, description="learning rate")


class BackendSection(Section):
    """Where and how it runs; may change when a run is resumed."""

    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="what accelerate should use")
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="fp32 on CPU, bf16 on GPU")
    threads: int | None = Field(None, ge=1, le=1024, description="torch's; OMP_NUM_THREADS, or all")


def seconds(time: str) -> float:
    """``90 s``, ``5 min`` or ``1.5 h`` in seconds; 0 for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", time.strip(), re.ASCII)
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else 0.0


def plugin_name(entry: str) -> str:
    """What a run calls a plugin: an installed one's name, or the class of ``file.py:Class``."""
    return entry.rpartition(":")[2]


def _nothing() -> Any:
    """A section that is left out: its own errors then stand among all the others."""
    return {}


class RunConfig(Section):
    """A whole run file."""

    world: str | None = Field(None, description="embedded world that supplies models and prompts")
    seed: int = Field(0, ge=0, description="seed of every random draw")
    iterations: int = Field(4, ge=1, description="iterations of the loop")
    plugins: list[str | dict[str, dict[str, Any] | None]] = Field(
        [],
        description="names, or file.py:Class, each alone or as {name: settings}; order matters in "
        "chains",
    )
    policy: PolicySection = Field(default_factory=_nothing)
    reward_model: RewardModelSection = Field(default_factory=_nothing)
    gold: GoldSection | None = None
    prompts: PromptsSection = Field(default_factory=_nothing)
    preferences: PreferencesSection = Field(default_factory=PreferencesSection)
    generation: GenerationSection = Field(default_factory=lambda: GenerationSection())
    kl: KLSection = Field(default_factory=lambda: KLSection())
    rl: RLSection = Field(default_factory=lambda: RLSection())
    evaluation: EvaluationSection = Field(default_factory=lambda: EvaluationSection())
    sft: SFTSection | None = None
    backend: BackendSection = Field(default_factory=lambda: BackendSection())
    checkpoint_every: int | str | None = Field(
        None,
        description="rollouts between checkpoints, or the time, as `90 s`, `5 min` or `1 h`; when "
        "left out, 1 rollout for a policy of less than 50M parameters, else `5 min`",
    )

    _replayed: Mapping[str, Any] | None = None  # run.yaml of the run that this one replays
    _folder: Path | None = None  # where its world lies

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _rollouts_or_time(cls, value: Any) -> Any:
        number = isinstance(value, int) and value >= 1
        if value is None or number or (isinstance(value, str) and seconds(value) > 0):
            return value
        wanted = "a number of rollouts, such as 4, or a time, such as '5 min'"
        raise ValueError(f"expected {wanted}, got {value!r}")

    @field_validator("plugins", mode="before")
    @classmethod
    def _one_name_each(cls, value: Any) -> Any:
        for entry in value if isinstance(value, list) else ():
            one = {entry: None} if isinstance(entry, str) else entry
            if not isinstance(one, Mapping) or len(one) != 1:
                raise ValueError(f"{entry!r} should be a name, or one name with its settings")
            ((name, settings),) = one.items()
            if not isinstance(name, str) or not isinstance(settings, Mapping | None):
                raise ValueError(f"{entry!r}: settings of a plugin should be a mapping")
        return value

    @model_validator(mode="after")
    def _comparisons_for_nats(self) -> RunConfig:
        if self.reward_model.unit == "nats" and not self.prompts.held_out:
            raise ValueError("reward_model.unit nats needs held-out pairs; set prompts.held_out")
        return self

    @property
    def wanted_plugins(self) -> list[tuple[str, dict[str, Any]]]:
        """(name or file.py:Class, settings) in the run file's order."""
        return [
            (name, settings or {})
            for entry in self.plugins
            for name, settings in ({entry: None} if isinstance(entry, str) else entry).items()
        ]
