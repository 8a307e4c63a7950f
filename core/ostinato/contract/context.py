"""What a hook may ask of the run beside its own arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ostinato.config.draws import Draws
from ostinato.config.errors import NonFiniteError
from ostinato.config.sections import RunConfig
from ostinato.contract.batches import PolicyHandle, PolicyHistory
from ostinato.contract.columns import checked
from ostinato.models.generation import Shape, greedy, sample
from ostinato.models.gold import gold_scores
from ostinato.models.prompts import PromptSet
from ostinato.models.reward_model import MEAN, Reader
from ostinato.models.ruler import Ruler
from ostinato.models.samples import Samples, Scorer, Texts

if TYPE_CHECKING:
    from datasets import Dataset

    from ostinato.models.policy import Policy
    from ostinato.models.reward import Reward


OPTIMISATION = "the hooks of the policy's optimisation"
PARTS = {  # of the context that some hooks have, and where
    "policy": OPTIMISATION,
    "reference": OPTIMISATION,
    "reward": OPTIMISATION,
    "evaluation": "evaluate",
    "fit": "refine_data",
    "cached": "refine_data",
    "data": "wrap_reward",
    "reward_models": "draw_responses and select_comparisons",
    "policies": "the hooks of an iteration",
}


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` hooks measure: one sample of responses to the evaluation prompts."""

    policy: Policy
    sft: Policy
    reward: Reward  # R_k
    samples: Samples
    proxy: torch.Tensor  # (B,) calibrated scores of R_k
    latest: torch.Tensor  # (B,) and of the newest reward model
    gold: torch.Tensor | None  # (B,) standardised on SFT responses, None where that cannot be
    kl: torch.Tensor  # (B,) exact, to the SFT policy, nats per response
    sft_samples: Samples  # to the same prompts
    sft_gold: torch.Tensor | None
    draw: Callable[..., Samples]  # (purpose) samples once more, (purpose, other) another policy
    proxy_of: Callable[[Samples], torch.Tensor]  # this and those below: any samples, on the CPU
    latest_of: Callable[[Samples], torch.Tensor]
    gold_of: Callable[[Samples], torch.Tensor | None]


@dataclass(frozen=True)
class Context:
    """The run as a hook sees it."""

    config: RunConfig
    draws: Draws
    device: torch.device
    sft: PolicyHandle
    gold: Scorer | None = None
    readers: Mapping[str, Reader] = field(default_factory=lambda: MEAN)  # of the run's plugins
    iteration: int = 0  # from 1; this and the seven below seed `generator`
    step: int = 0  # rollouts or optimiser steps of the current stage
    member: int = 0  # the reward model in training
    update: int = 0  # the policy's optimiser update
    micro_batch: int = 0  # the part of it
    attempt: int = 0  # how often the rollout was refilled
    draw: int = 0  # the call of `sampling_logits` in its rollout
    training: str = ""  # one of several in a stage: the `name` or `purpose` that was asked for
    directory: Path = Path()  # the run's folder
    ruler: Ruler | None = None  # the SFT responses on which every reward has mean 0
    # what the prompts file says, beside the prompt, of prompts, or of those of samples
    columns: Callable[[Samples | Texts], dict[str, list[Any]]] = lambda asked: {}
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext  # around forward passes
    logged: dict[str, float] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)  # those of PARTS that are there

    def _part(self, name: str) -> Any:
        if name not in self.parts:
            raise RuntimeError(f"ctx.{name} is there in {PARTS[name]} only")
        return self.parts[name]

    @property
    def policy(self) -> Policy:
        """The policy that is optimised; take no gradient outside a loss, and change nothing."""
        found: Policy = self._part("policy")
        return found

    @property
    def reference(self) -> Policy:
        """The policy that the KL pulls it to."""
        found: Policy = self._part("reference")
        return found

    @property
    def reward(self) -> Reward:
        """The reward that it is optimised on, R_k."""
        found: Reward = self._part("reward")
        return found

    @property
    def evaluation(self) -> Evaluation:
        """What is evaluated."""
        found: Evaluation = self._part("evaluation")
        return found

    @property
    def fit(self) -> Callable[..., Any]:
        """(data, purpose, epochs=...) -> RewardModel, trained on the preference loss alone."""
        found: Callable[..., Any] = self._part("fit")
        return found

    @property
    def cached(self) -> Callable[[str, Callable[[], Dataset]], Dataset]:
        """(name, make) -> a data set that is made once an iteration."""
        found: Callable[[str, Callable[[], Dataset]], Dataset] = self._part("cached")
        return found

    @property
    def data(self) -> Dataset | None:
        """D_k; None in a run that learns no reward model."""
        found: Dataset | None = self._part("data")
        return found

    @property
    def reward_models(self) -> tuple[Reward, ...]:
        """R~_1 .. R~_{k-1}."""
        found: tuple[Reward, ...] = self._part("reward_models")
        return found

    @property
    def policies(self) -> PolicyHistory:
        """The policies of the iterations before, as handles."""
        found: PolicyHistory = self._part("policies")
        return found

    def gold_scores(self, samples: Samples) -> torch.Tensor | None:
        """Raw golds (B,) in fp32 on the CPU; None without a gold model. Raises NonFiniteError."""
        if self.gold is None:
            return None
        assert self.config.gold is not None
        return gold_scores(self.gold, samples, self.config.gold.batch)

    def responses(self, data: Dataset, side: str) -> Samples:
        """One side of comparisons as the policy's tokens: first and second, or chosen, rejected."""
        return Samples.of(self.sft.load().tokenizer, data, side).to(self.device)

    def at(self, **changes: Any) -> Context:
        """The context with other fields or parts."""
        parts = {name: changes.pop(name) for name in PARTS if name in changes}
        if parts:
            changes["parts"] = {**self.parts, **parts}
        return replace(self, **changes)

    def sample(
        self,
        policy: Policy,
        prompts: PromptSet | Samples,
        purpose: str,
        count: int = 1,
        top_p: float = 1.0,
        temperature: float | None = None,
        shape: Shape | None = None,
        reference: Policy | None = None,
    ) -> Samples:
        """``count`` responses of any policy to each prompt, those of one prompt side by side.

        The draws depend on the purpose and the place of the run alone. ``temperature`` is the
        policy's own unless given; 0 takes the likeliest token. ``shape(logits, reference_logits)``
        answers the logits (B, vocabulary) that a token is drawn from; the second are those of
        ``reference`` at the same temperature, None without one.
        """
        tokens = prompts.tokens[0] if isinstance(prompts, Samples) else prompts.tokens
        texts = prompts.texts
        generator = self.generator(purpose, policy.lm.device)
        if temperature is not None:
            warmth = temperature or 1.0
            policy, reference = policy.at(warmth), reference and reference.at(warmth)
        if temperature == 0:
            asked = shape or (lambda logits, _: logits)
            shape = lambda logits, other: greedy(asked(logits, other))  # noqa: E731
        with self.autocast():
            return sample(
                policy,
                [row for row in tokens for _ in range(count)],
                self.config.generation,
                generator,
                None if texts is None else [text for text in texts for _ in range(count)],
                top_p,
                shape,
                reference,
            )

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for this purpose at this place of the run."""
        return self.draws.generator(self.purpose(purpose), self.step, device)

    def purpose(self, purpose: str) -> str:
        """The purpose with training, member, update and so on, where not the first."""
        place: dict[str, int | str] = {"training": self.training, "member": self.member}
        place |= {"update": self.update, "micro-batch": self.micro_batch}
        place |= {"attempt": self.attempt, "draw": self.draw}
        return "/".join([purpose, *(f"{name} {n}" for name, n in place.items() if n)])

    @contextmanager
    def located(self) -> Iterator[None]:
        """Inside, a NonFiniteError says at which iteration and step it arose."""
        try:
            yield
        except NonFiniteError as error:
            where = f"at iteration {self.iteration}, step {self.step + 1}"
            raise NonFiniteError(f"{error} {where}") from error

    def log(self, **values: float) -> None:
        """Add numbers to the next row of metrics.jsonl.

        Raises UserError for a name that is a column of the core, and for what is no finite number.
        """
        self.logged.update({name: checked(name, value) for name, value in values.items()})
