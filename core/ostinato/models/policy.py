"""The policy: a causal language model, and while it is optimised, a value head on its trunk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ostinato.config.errors import UserError
from ostinato.config.sections import PolicySection
from ostinato.models.loading import load_model, load_saved, load_tokenizer, save_model
from ostinato.models.samples import Samples

if TYPE_CHECKING:
    from ostinato.models.reward import Reward


class Policy(nn.Module):
    """A transformers causal LM; ``temperature`` divides its logits wherever they are used."""

    def __init__(self, lm: Any, tokenizer: Any, temperature: float = 1.0) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.value_head: nn.Linear | None = None
        self.value_trunk: nn.Module | None = None
        self.eval()  # dropout is off in policy and reference, always

    @classmethod
    def load(cls, section: PolicySection, temperature: float) -> Policy:
        """The policy that the run file names, checked for a head that is a plain matrix."""
        tokenizer = load_tokenizer(section, "policy")
        lm = load_model(AutoModelForCausalLM, section, tokenizer, "policy")
        policy = cls(lm, tokenizer, temperature)
        policy._check_head()
        return policy

    @classmethod
    def load_checkpoint(cls, folder: Path, temperature: float) -> Policy:
        return cls(*load_saved(AutoModelForCausalLM, folder), temperature)

    def save(self, folder: Path) -> None:
        """A transformers checkpoint that AutoModelForCausalLM loads; the value head is left out."""
        save_model(self.lm, self.tokenizer, folder)

    def copy(self) -> Policy:
        """An independent copy of the language model, without a value head."""
        return Policy(copy.deepcopy(self.lm), self.tokenizer, self.temperature)

    def at(self, temperature: float) -> Policy:
        """The same weights, not a copy of them, at another temperature."""
        return Policy(self.lm, self.tokenizer, temperature)

    def with_value(self, kind: str, latest: Reward | None = None, heads: int = 1) -> Policy:
        """Add value heads that start at zero, on the trunk (shared) or on a copy (separate).

        Or a value model that starts as a copy of the ``latest`` reward model, its first member.
        """
        if kind == "reward_model":
            assert latest is not None
            self.value_trunk, head = latest.members[0].critic()
            if heads > 1:  # each starts as the reward
                one, head = head, nn.Linear(head.in_features, heads, device=self.lm.device)
                alike = one.weight.repeat(heads, 1), one.bias.repeat(heads)
                head.load_state_dict(dict(zip(("weight", "bias"), alike, strict=True)))
            self.value_head = head
            return self
        size = self.lm.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(size, heads, device=self.lm.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if kind == "separate":
            self.value_trunk = copy.deepcopy(self.lm.base_model)
        return self

    @torch.no_grad()
    def _check_head(self) -> None:
        ids = torch.tensor([[self.tokenizer.eos_token_id]])
        whole = self.lm(input_ids=ids).logits
        parts = self.lm.get_output_embeddings()(self.lm.base_model(input_ids=ids)[0])
        if not torch.allclose(whole, parts, atol=1e-4):
            fault = "rescales its logits after the output head, which is not supported"
            raise UserError(f"policy: a {self.lm.config.model_type} model {fault}")

    def hidden(self, samples: Samples, trunk: nn.Module | None = None) -> Tensor:
        """Trunk states that predict each real response token, all responses joined (R, D)."""
        ids = torch.cat([samples.prompt_ids, samples.response_ids], dim=1)[:, :-1]
        extra: dict[str, Tensor] = {}
        if not bool(samples.prompt_mask.all()):  # else the causal mask alone is right, and faster
            seen = torch.cat([samples.prompt_mask, samples.mask], dim=1)[:, :-1].long()
            extra = {"attention_mask": seen, "position_ids": (seen.cumsum(1) - 1).clamp_min(0)}
        states = (trunk or self.lm.base_model)(input_ids=ids, use_cache=False, **extra)[0]
        found: Tensor = states[:, samples.prompt_ids.shape[1] - 1 :][samples.mask]
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (R, vocabulary) over the temperature; fp32, but rounded to bf16 under autocast."""
        made: Tensor = self.lm.get_output_embeddings()(hidden).float()
        return made if self.temperature == 1.0 else made / self.temperature

    def logprobs(self, samples: Samples) -> Tensor:
        """Log-probabilities of the response tokens (B, T), nats per token, 0 on padding."""
        return spread(self._picked(self.hidden(samples), samples), samples.mask)

    def evaluate(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """(logprobs, values), each (B, T), 0 on padding; values are 0 without a head.

        The values of several heads are (B, T, heads).
        """
        hidden = self.hidden(samples)
        picked = self._picked(hidden, samples)
        values = torch.zeros_like(picked)
        if self.value_head is not None:
            if self.value_trunk is not None:
                hidden = self.hidden(samples, self.value_trunk)
            values = self.value_head(hidden.to(self.value_head.weight.dtype)).float()
            values = values.squeeze(-1)  # (R,), or (R, heads) of several
        return spread(picked, samples.mask), spread(values, samples.mask)

    def _picked(self, hidden: Tensor, samples: Samples) -> Tensor:
        logits, tokens = self.logits(hidden), samples.response_ids[samples.mask]
        return logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Values of the real tokens (R, ...) back in their places (B, T, ...), 0 on padding."""
    more = flat.shape[1:]
    where = mask.view(*mask.shape, *(1 for _ in more))
    return flat.new_zeros(*mask.shape, *more).masked_scatter(where, flat)
